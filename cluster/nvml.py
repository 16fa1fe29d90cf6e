"""Read this host's GPUs and links through NVML, as an ordinary user.

Errors are mapped once, in `Reader.ask`: what a GPU or driver does not offer is None; a GPU that no longer answers is
left out and named in the host's problems; a machine without the driver is a host without GPUs.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pynvml

from raylane.cluster import sysfs
from raylane.cluster.errors import FailedError
from raylane.cluster.hosts import Gpu, Host, Link, LinkLevel, PeerStatus

AFFINITY_WORDS = 64  # of 64 CPUs each

NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
GPU_GONE = (
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_GPU_NOT_FOUND,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_IRQ_ISSUE,
    pynvml.NVML_ERROR_INSUFFICIENT_POWER,
    pynvml.NVML_ERROR_TIMEOUT,
)
LIBRARY_GONE = (pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, *NO_DRIVER)

LEVELS = {
    pynvml.NVML_TOPOLOGY_INTERNAL: LinkLevel.PIX,  # two GPUs on one board, behind the board's own switch
    pynvml.NVML_TOPOLOGY_SINGLE: LinkLevel.PIX,
    pynvml.NVML_TOPOLOGY_MULTIPLE: LinkLevel.PXB,
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: LinkLevel.PHB,
    pynvml.NVML_TOPOLOGY_NODE: LinkLevel.NODE,
    pynvml.NVML_TOPOLOGY_SYSTEM: LinkLevel.SYS,
}
PEER_STATUS = {
    pynvml.NVML_P2P_STATUS_OK: PeerStatus.OK,
    pynvml.NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED: PeerStatus.CHIPSET_NOT_SUPPORTED,
    pynvml.NVML_P2P_STATUS_GPU_NOT_SUPPORTED: PeerStatus.GPU_NOT_SUPPORTED,
    pynvml.NVML_P2P_STATUS_IOH_TOPOLOGY_NOT_SUPPORTED: PeerStatus.TOPOLOGY_NOT_SUPPORTED,
    pynvml.NVML_P2P_STATUS_DISABLED_BY_REGKEY: PeerStatus.DISABLED,
    pynvml.NVML_P2P_STATUS_NOT_SUPPORTED: PeerStatus.NOT_SUPPORTED,
}

P2P_READ, P2P_WRITE = 0, 1  # nvmlGpuP2PCapsIndex_t; some releases of pynvml define them as tuples by mistake


class GpuGoneError(Exception):
    """A GPU stopped answering while it was read; the message is NVML's."""


def read_host(library: Any = pynvml, sysfs_root: Path = sysfs.SYSFS, name: str | None = None) -> Host:
    """This machine's GPUs and links. `library` is the pynvml module or a stand-in with the same functions.

    Raises FailedError when NVML is there and does not work (say, the driver was updated under a running kernel).
    """
    host_name = name or platform.node()
    try:
        library.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in NO_DRIVER:
            return Host(host_name, (), (), problems=(f"no NVIDIA driver on this machine ({error})",))
        raise FailedError(f"NVML does not start: {error}{hint(error)}") from error
    try:
        return Reader(library, sysfs_root).read(host_name)
    finally:
        library.nvmlShutdown()


def hint(error: pynvml.NVMLError) -> str:
    """What to do about an error of the whole library, where it is known."""
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "; the driver was updated while its old version is loaded: reboot, or reload the nvidia modules"
    if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
        return "; this user may not open /dev/nvidiactl"
    return ""


class Reader:
    """Questions to an initialised NVML, each answered with a plain value or None."""

    def __init__(self, library: Any, sysfs_root: Path) -> None:
        self._nvml = library
        self._sysfs = sysfs_root

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's answer; None where it is not to be had. GpuGoneError, FailedError for what is worse."""
        try:
            return function(*args)
        except pynvml.NVMLError as error:
            if error.value in GPU_GONE:
                raise GpuGoneError(str(error)) from error
            if error.value in LIBRARY_GONE:
                raise FailedError(f"NVML stopped working: {error}{hint(error)}") from error
            return None

    def read(self, name: str) -> Host:
        """Every GPU that answers, a link for each two of them, and the problems met."""
        with self.failing("nvmlDeviceGetCount"):
            count = self._nvml.nvmlDeviceGetCount()
        gpus: list[tuple[Gpu, Any]] = []
        problems: list[str] = []
        for index in range(count):
            try:
                gpus.append(self.gpu(index))
            except GpuGoneError as error:
                problems.append(f"GPU {index} does not answer and is left out: {error}")
        links: list[Link] = []
        for a, b in combinations(gpus, 2):
            try:
                links.append(self.link(a, b))
            except GpuGoneError as error:
                links.append(Link(a[0].uuid, b[0].uuid, None))
                problems.append(f"the link of GPUs {a[0].index} and {b[0].index} could not be read: {error}")
        bus_ids = [gpu.pci_bus_id for gpu, _ in gpus if gpu.pci_bus_id]
        return Host(
            name=name,
            gpus=tuple(gpu for gpu, _ in gpus),
            links=tuple(links),
            driver_version=self.text(self.ask(self._nvml.nvmlSystemGetDriverVersion)),
            acs=sysfs.acs_state(bus_ids, self._sysfs),
            iommu=sysfs.iommu_state(bus_ids, self._sysfs),
            problems=tuple(problems),
        )

    @contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """Turn any NVML error into a FailedError: nothing can be said without this answer."""
        try:
            yield
        except pynvml.NVMLError as error:
            raise FailedError(f"NVML: {what}: {error}{hint(error)}") from error

    def gpu(self, index: int) -> tuple[Gpu, Any]:
        """One GPU and its NVML handle. GpuGoneError if it does not answer or has no uuid."""
        nvml, ask = self._nvml, self.ask
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        uuid = self.text(ask(nvml.nvmlDeviceGetUUID, handle)) if handle is not None else None
        if uuid is None:
            raise GpuGoneError("NVML gives this user no handle or uuid for it")
        memory, processes = ask(nvml.nvmlDeviceGetMemoryInfo, handle), self.processes(handle)
        bus_id = self.bus_id(ask(nvml.nvmlDeviceGetPciInfo, handle))
        gpu = Gpu(
            uuid=uuid,
            index=index,
            name=self.text(ask(nvml.nvmlDeviceGetName, handle)) or "unknown",
            memory_bytes=None if memory is None else int(memory.total),
            pci_bus_id=bus_id,
            numa_node=sysfs.numa_node(bus_id, self._sysfs) if bus_id else None,
            cpu_affinity=cpus(ask(nvml.nvmlDeviceGetCpuAffinity, handle, AFFINITY_WORDS)),
            pcie_gen_now=ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
            pcie_gen_max=ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            pcie_width_now=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
            pcie_width_max=ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
            mig=self.current(ask(nvml.nvmlDeviceGetMigMode, handle)),
            ecc=self.current(ask(nvml.nvmlDeviceGetEccMode, handle)),
            persistence=self.flag(ask(nvml.nvmlDeviceGetPersistenceMode, handle)),
            processes=processes,
        )
        return gpu, handle

    def processes(self, handle: Any) -> tuple[int, ...] | None:
        """Pids with a compute context on the GPU; None if this user may not know."""
        found = self.ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        return None if found is None else tuple(sorted({int(process.pid) for process in found}))

    def link(self, a: tuple[Gpu, Any], b: tuple[Gpu, Any]) -> Link:
        """What NVML says of two GPUs. Direct NVLinks win over the PCIe level, as in `nvidia-smi topo -m`."""
        nvml = self._nvml
        level = LEVELS.get(self.ask(nvml.nvmlDeviceGetTopologyCommonAncestor, a[1], b[1]))
        count = self.nvlinks(a, b)
        return Link(
            a=a[0].uuid,
            b=b[0].uuid,
            level=LinkLevel.NVLINK if count else level,
            nvlink_count=count,
            p2p_read=self.peer_status(a[1], b[1], P2P_READ),
            p2p_write=self.peer_status(a[1], b[1], P2P_WRITE),
        )

    def peer_status(self, a: Any, b: Any, capability: int) -> PeerStatus | None:
        status = self.ask(self._nvml.nvmlDeviceGetP2PStatus, a, b, capability)
        return None if status is None else PEER_STATUS.get(status, PeerStatus.UNKNOWN)

    def nvlinks(self, a: tuple[Gpu, Any], b: tuple[Gpu, Any]) -> int | None:
        """Active NVLinks from a to b, directly or through NVSwitches (then the smaller number of the two GPUs' links).

        None without any.
        """
        direct = [end for end in self.nvlink_ends(a[1]) if end == b[0].pci_bus_id]
        if direct:
            return len(direct)
        if self.peer_status(a[1], b[1], pynvml.NVML_P2P_CAPS_INDEX_NVLINK) is not PeerStatus.OK:
            return None
        return min(len([end for end in self.nvlink_ends(gpu[1]) if end == SWITCH]) for gpu in (a, b)) or None

    def nvlink_ends(self, handle: Any) -> list[str]:
        """For each active NVLink what is at its other end: SWITCH or a PCI bus id."""
        nvml = self._nvml
        ends = []
        for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
            if not self.ask(nvml.nvmlDeviceGetNvLinkState, handle, link):
                continue
            if (
                self.ask(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link)
                == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
            ):
                ends.append(SWITCH)
            elif (end := self.bus_id(self.ask(nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link))) is not None:
                ends.append(end)
        return ends

    @staticmethod
    def text(value: str | bytes | None) -> str | None:
        """NVML text; older pynvml releases give bytes."""
        return value.decode() if isinstance(value, bytes) else value

    @classmethod
    def bus_id(cls, info: Any) -> str | None:
        """The bus id of an NVML PCI record in capitals, as `nvidia-smi` prints it."""
        text = None if info is None else cls.text(info.busId)
        return text.upper() if text else None

    @staticmethod
    def flag(value: int | None) -> bool | None:
        return None if value is None else bool(value)

    @classmethod
    def current(cls, pair: list[int] | None) -> bool | None:
        """The current one of NVML's [current, pending]."""
        return None if pair is None else cls.flag(pair[0])


SWITCH = "NVSwitch"


def cpus(words: Any) -> tuple[int, ...] | None:
    """CPU numbers of NVML's bit mask; None if it names none."""
    if words is None:
        return None
    found = tuple(64 * i + bit for i, word in enumerate(words) for bit in range(64) if word >> bit & 1)
    return found or None
