"""What Linux knows of a PCIe device and NVML does not say: its NUMA node, the IOMMU's mode, ACS on the way up.

All reads are those of an ordinary user. ACS needs more than the first 64 bytes of the bridges' config space, which
Linux shows to root only: without it the answer is None.
"""

from collections.abc import Iterable
from pathlib import Path

from raylane.cluster.hosts import Acs, Iommu

SYSFS = Path("/sys")

EXTENDED_CAPABILITIES = 0x100  # PCI Express base specification, section 7.6
ACS_CAPABILITY = 0x000D
ACS_CONTROL_OFFSET = 6
ACS_REDIRECT_BITS = 0b1100  # P2P request redirect, P2P completion redirect


def device_folder(pci_bus_id: str, sysfs: Path) -> Path:
    """NVML's 00000000:3B:00.0 is Linux's 0000:3b:00.0."""
    domain, _, rest = pci_bus_id.lower().partition(":")
    return sysfs / "bus/pci/devices" / f"{domain[-4:]}:{rest}"


def numa_node(pci_bus_id: str, sysfs: Path = SYSFS) -> int | None:
    """The device's NUMA node; None where the firmware does not say (Linux shows -1) or the file cannot be read."""
    try:
        node = int((device_folder(pci_bus_id, sysfs) / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def iommu_state(pci_bus_ids: Iterable[str], sysfs: Path = SYSFS) -> Iommu | None:
    """TRANSLATED if that holds for any of the devices; OFF if Linux runs no IOMMU at all; None if it cannot be told."""
    types = {kind for bus_id in pci_bus_ids if (kind := iommu_type(bus_id, sysfs)) is not None}
    if any(kind.startswith("DMA") for kind in types):
        return Iommu.TRANSLATED
    if types:
        return Iommu.IDENTITY
    units = sysfs / "class/iommu"
    return Iommu.OFF if units.is_dir() and not any(units.iterdir()) else None


def iommu_type(pci_bus_id: str, sysfs: Path) -> str | None:
    """Linux's word for the device's IOMMU domain: DMA, DMA-FQ, identity."""
    try:
        return (device_folder(pci_bus_id, sysfs) / "iommu_group/type").read_text().strip()
    except OSError:
        return None


def acs_state(pci_bus_ids: Iterable[str], sysfs: Path = SYSFS) -> Acs | None:
    """REDIRECT if a bridge above any of the devices redirects peer traffic; None if no bridge could be read."""
    controls = [
        control
        for bus_id in pci_bus_ids
        for bridge in bridges_above(bus_id, sysfs)
        if (control := acs_control(bridge)) is not None
    ]
    if not controls:
        return None
    return Acs.REDIRECT if any(control & ACS_REDIRECT_BITS for control in controls) else Acs.OFF


def bridges_above(pci_bus_id: str, sysfs: Path) -> list[Path]:
    """The config files of the bridges between the device and its CPU, nearest first."""
    parents = device_folder(pci_bus_id, sysfs).resolve().parents
    return [parent / "config" for parent in parents if (parent / "config").is_file()]


def acs_control(config: Path) -> int | None:
    """The ACS control register of a bridge; None if it has none or only the short config space may be read."""
    try:
        data = config.read_bytes()
    except OSError:
        return None
    offset = EXTENDED_CAPABILITIES
    while EXTENDED_CAPABILITIES <= offset <= len(data) - 8:
        header = int.from_bytes(data[offset : offset + 4], "little")
        if header & 0xFFFF == ACS_CAPABILITY:
            at = offset + ACS_CONTROL_OFFSET
            return int.from_bytes(data[at : at + 2], "little")
        following = header >> 20
        if following <= offset:
            return None
        offset = following
    return None
