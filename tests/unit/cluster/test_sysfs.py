from pathlib import Path

import pytest

from raylane.cluster.hosts import Acs, Iommu
from raylane.cluster.sysfs import acs_state, iommu_state, numa_node

BUS_ID = "00000000:3B:00.0"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A GPU below one bridge, as Linux shows it."""
    real = tmp_path / "devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0"
    real.mkdir(parents=True)
    link = tmp_path / "bus/pci/devices/0000:3b:00.0"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    return real


@pytest.mark.parametrize(("content", "expected"), [("1\n", 1), ("0\n", 0), ("-1\n", None), (None, None), ("?", None)])
def test_numa_node(tmp_path: Path, device: Path, content: str | None, expected: int | None) -> None:
    if content is not None:
        (device / "numa_node").write_text(content)
    assert numa_node(BUS_ID, tmp_path) == expected


@pytest.mark.parametrize(
    ("kind", "units", "expected"),
    [
        pytest.param("DMA", 1, Iommu.TRANSLATED, id="translating"),
        pytest.param("DMA-FQ", 1, Iommu.TRANSLATED, id="translating lazily"),
        pytest.param("identity", 1, Iommu.IDENTITY, id="passed through"),
        pytest.param(None, 0, Iommu.OFF, id="no unit is running"),
        pytest.param(None, 1, None, id="a unit runs and the device has no group"),
        pytest.param(None, None, None, id="Linux shows nothing"),
    ],
)
def test_iommu(tmp_path: Path, device: Path, kind: str | None, units: int | None, expected: Iommu | None) -> None:
    if kind is not None:
        (device / "iommu_group").mkdir()
        (device / "iommu_group/type").write_text(kind + "\n")
    if units is not None:
        (tmp_path / "class/iommu").mkdir(parents=True)
        for i in range(units):
            (tmp_path / f"class/iommu/dmar{i}").mkdir()
    assert iommu_state([BUS_ID], tmp_path) is expected


def config_space(acs_control: int | None, length: int = 4096) -> bytes:
    """A bridge's config space: an AER capability at 0x100, then perhaps ACS at 0x148."""
    data = bytearray(4096)
    following = 0 if acs_control is None else 0x148
    data[0x100:0x104] = (0x0001 | 1 << 16 | following << 20).to_bytes(4, "little")
    if acs_control is not None:
        data[0x148:0x14C] = (0x000D | 1 << 16).to_bytes(4, "little")
        data[0x14E:0x150] = acs_control.to_bytes(2, "little")
    return bytes(data[:length])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(config_space(0b0011101), Acs.REDIRECT, id="peer requests and completions go up"),
        pytest.param(config_space(0b0010001), Acs.OFF, id="ACS is there and does not redirect peers"),
        pytest.param(config_space(None), None, id="the bridge has no ACS"),
        pytest.param(config_space(0b0011101, length=64), None, id="an ordinary user sees 64 bytes"),
        pytest.param(None, None, id="no config file"),
    ],
)
def test_acs(tmp_path: Path, device: Path, config: bytes | None, expected: Acs | None) -> None:
    if config is not None:
        (device.parent / "config").write_bytes(config)
    assert acs_state([BUS_ID], tmp_path) is expected
