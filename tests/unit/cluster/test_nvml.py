"""The reader against a stand-in for the pynvml module with its real function names and errors."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from raylane.cluster.errors import FailedError
from raylane.cluster.hosts import LinkLevel, PeerStatus
from raylane.cluster.nvml import GPU_GONE, LIBRARY_GONE, NO_DRIVER, P2P_READ, P2P_WRITE, read_host

EVERY_ERROR = sorted(value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_"))
FIELDS = {
    "nvmlDeviceGetMemoryInfo": "memory_bytes",
    "nvmlDeviceGetPciInfo": "pci_bus_id",
    "nvmlDeviceGetCpuAffinity": "cpu_affinity",
    "nvmlDeviceGetCurrPcieLinkGeneration": "pcie_gen_now",
    "nvmlDeviceGetMaxPcieLinkGeneration": "pcie_gen_max",
    "nvmlDeviceGetCurrPcieLinkWidth": "pcie_width_now",
    "nvmlDeviceGetMaxPcieLinkWidth": "pcie_width_max",
    "nvmlDeviceGetMigMode": "mig",
    "nvmlDeviceGetEccMode": "ecc",
    "nvmlDeviceGetPersistenceMode": "persistence",
    "nvmlDeviceGetComputeRunningProcesses": "processes",
}


@dataclass
class Library:
    """Two GPUs. `errors` maps a function's name to the NVML error it raises (for GPU 1 only, with `only_gpu_1`)."""

    errors: dict[str, int] = field(default_factory=dict)
    only_gpu_1: bool = False
    ancestor: int = pynvml.NVML_TOPOLOGY_NODE
    peer: dict[int, int] = field(default_factory=dict)
    nvlinks: dict[int, list[str]] = field(default_factory=dict)
    shut_down: int = 0

    def __getattribute__(self, name: str) -> Any:
        errors = object.__getattribute__(self, "errors")
        if name not in errors:
            return object.__getattribute__(self, name)
        assert hasattr(pynvml, name), f"pynvml has no {name}"

        def fail(*args: Any) -> Any:
            if self.only_gpu_1 and args[0] not in (1, "handle 1"):
                return object.__getattribute__(self, name)(*args)
            raise pynvml.NVMLError(errors[name])

        return fail

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.shut_down += 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.82.07"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"handle {index}"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return f"GPU-{handle[-1]}"

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"NVIDIA L40S"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(total=46068 * 2**20)

    def nvmlDeviceGetPciInfo(self, handle: str) -> Any:
        return SimpleNamespace(busId=f"00000000:{handle[-1]}a:00.0")

    def nvmlDeviceGetCpuAffinity(self, handle: str, words: int) -> list[int]:
        return [0b101, 1] + [0] * (words - 2)

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: str) -> int:
        return 1

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: str) -> int:
        return 4

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: str) -> int:
        return 8

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: str) -> int:
        return 16

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        return [0, 1]

    def nvmlDeviceGetEccMode(self, handle: str) -> list[int]:
        return [1, 0]

    def nvmlDeviceGetPersistenceMode(self, handle: str) -> int:
        return 1

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=22), SimpleNamespace(pid=11), SimpleNamespace(pid=22)]

    def nvmlDeviceGetTopologyCommonAncestor(self, a: str, b: str) -> int:
        return self.ancestor

    def nvmlDeviceGetP2PStatus(self, a: str, b: str, capability: int) -> int:
        return self.peer.get(capability, int(pynvml.NVML_P2P_STATUS_NOT_SUPPORTED))

    def nvmlDeviceGetNvLinkState(self, handle: str, link: int) -> int:
        if link >= len(self.nvlinks.get(int(handle[-1]), [])):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return int(self.nvlinks[int(handle[-1])][link] != "down")

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: str, link: int) -> int:
        to_switch = self.nvlinks[int(handle[-1])][link] == "switch"
        return int(pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH if to_switch else pynvml.NVML_NVLINK_DEVICE_TYPE_GPU)

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: str, link: int) -> Any:
        return SimpleNamespace(busId=self.nvlinks[int(handle[-1])][link])


def test_the_stand_in_has_only_functions_that_pynvml_has() -> None:
    functions = [name for name in dir(Library) if name.startswith("nvml")]
    assert len(functions) > 20
    assert all(callable(getattr(pynvml, name)) for name in functions)


def test_a_gpu_is_read_whole(tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices/0000:0a:00.0"
    device.mkdir(parents=True)
    (device / "numa_node").write_text("1\n")
    library = Library()
    host = read_host(library, tmp_path, "h")
    gpu = host.gpus[0]
    assert (host.name, host.driver_version, len(host.gpus), host.problems) == ("h", "580.82.07", 2, ())
    assert (gpu.uuid, gpu.index, gpu.name, gpu.memory_bytes) == ("GPU-0", 0, "NVIDIA L40S", 48_305_799_168)
    assert (gpu.pci_bus_id, gpu.numa_node, gpu.cpu_affinity) == ("00000000:0A:00.0", 1, (0, 2, 64))
    assert (gpu.pcie_gen_now, gpu.pcie_gen_max, gpu.pcie_width_now, gpu.pcie_width_max) == (1, 4, 8, 16)
    assert (gpu.mig, gpu.ecc, gpu.persistence, gpu.processes) == (False, True, True, (11, 22))
    assert library.shut_down == 1


@pytest.mark.parametrize(
    ("ancestor", "level"),
    [
        (pynvml.NVML_TOPOLOGY_SINGLE, LinkLevel.PIX),
        (pynvml.NVML_TOPOLOGY_MULTIPLE, LinkLevel.PXB),
        (pynvml.NVML_TOPOLOGY_HOSTBRIDGE, LinkLevel.PHB),
        (pynvml.NVML_TOPOLOGY_NODE, LinkLevel.NODE),
        (pynvml.NVML_TOPOLOGY_SYSTEM, LinkLevel.SYS),
        (12345, None),
    ],
)
def test_the_common_ancestor_is_the_level(tmp_path: Path, ancestor: int, level: LinkLevel | None) -> None:
    link = read_host(Library(ancestor=ancestor), tmp_path).links[0]
    assert (link.a, link.b, link.level, link.nvlink_count) == ("GPU-0", "GPU-1", level, None)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (pynvml.NVML_P2P_STATUS_OK, PeerStatus.OK),
        (pynvml.NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED, PeerStatus.CHIPSET_NOT_SUPPORTED),
        (pynvml.NVML_P2P_STATUS_GPU_NOT_SUPPORTED, PeerStatus.GPU_NOT_SUPPORTED),
        (pynvml.NVML_P2P_STATUS_IOH_TOPOLOGY_NOT_SUPPORTED, PeerStatus.TOPOLOGY_NOT_SUPPORTED),
        (pynvml.NVML_P2P_STATUS_DISABLED_BY_REGKEY, PeerStatus.DISABLED),
        (pynvml.NVML_P2P_STATUS_NOT_SUPPORTED, PeerStatus.NOT_SUPPORTED),
        (pynvml.NVML_P2P_STATUS_UNKNOWN, PeerStatus.UNKNOWN),
        (99, PeerStatus.UNKNOWN),
    ],
)
def test_reads_and_writes_between_peers_are_told_apart(tmp_path: Path, status: int, expected: PeerStatus) -> None:
    peer = {P2P_READ: pynvml.NVML_P2P_STATUS_OK, P2P_WRITE: status}
    link = read_host(Library(peer=peer), tmp_path).links[0]
    assert (link.p2p_read, link.p2p_write) == (PeerStatus.OK, expected)


THROUGH_NVLINK = {pynvml.NVML_P2P_CAPS_INDEX_NVLINK: pynvml.NVML_P2P_STATUS_OK}


@pytest.mark.parametrize(
    ("nvlinks", "peer", "count"),
    [
        pytest.param({0: ["00000000:1A:00.0"] * 4 + ["down"], 1: []}, {}, 4, id="four direct links, one down"),
        pytest.param({0: ["00000000:5A:00.0"] * 4, 1: []}, {}, None, id="links to some other GPU"),
        pytest.param({0: ["switch"] * 18, 1: ["switch"] * 18}, THROUGH_NVLINK, 18, id="through NVSwitches"),
        pytest.param({0: ["switch"] * 18, 1: ["switch"] * 16}, THROUGH_NVLINK, 16, id="two links of one GPU down"),
        pytest.param({0: ["switch"] * 18, 1: ["switch"] * 18}, {}, None, id="switches that do not join the two"),
    ],
)
def test_nvlinks_are_counted(
    tmp_path: Path, nvlinks: dict[int, list[str]], peer: dict[int, int], count: int | None
) -> None:
    link = read_host(Library(nvlinks=nvlinks, peer=peer), tmp_path).links[0]
    assert link.nvlink_count == count
    assert link.level is (LinkLevel.NODE if count is None else LinkLevel.NVLINK)


@pytest.mark.parametrize("value", [error for error in EVERY_ERROR if error not in (*GPU_GONE, *LIBRARY_GONE)])
def test_what_a_gpu_does_not_tell_is_none(tmp_path: Path, value: int) -> None:
    host = read_host(Library(errors=dict.fromkeys(FIELDS, value)), tmp_path)
    assert len(host.gpus) == 2
    assert [getattr(host.gpus[0], name) for name in FIELDS.values()] == [None] * len(FIELDS)


@pytest.mark.parametrize("function", ["nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetP2PStatus"])
def test_what_a_link_does_not_tell_is_none(tmp_path: Path, function: str) -> None:
    link = read_host(Library(errors={function: pynvml.NVML_ERROR_NOT_SUPPORTED}), tmp_path).links[0]
    assert None in (link.level, link.p2p_read)


@pytest.mark.parametrize("value", GPU_GONE)
@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"])
def test_a_gpu_that_is_gone_is_left_out_and_named(tmp_path: Path, function: str, value: int) -> None:
    host = read_host(Library(errors={function: value}, only_gpu_1=True), tmp_path)
    assert [gpu.uuid for gpu in host.gpus] == ["GPU-0"]
    assert host.problems[0].startswith("GPU 1 does not answer and is left out: ")


def test_a_gpu_this_user_may_not_open_is_left_out_and_named(tmp_path: Path) -> None:
    errors = {"nvmlDeviceGetHandleByIndex": pynvml.NVML_ERROR_NO_PERMISSION}
    host = read_host(Library(errors=errors, only_gpu_1=True), tmp_path)
    assert len(host.gpus) == 1
    assert "no handle" in host.problems[0]


def test_a_gpu_lost_while_its_link_is_read_keeps_an_unknown_link(tmp_path: Path) -> None:
    errors = {"nvmlDeviceGetTopologyCommonAncestor": pynvml.NVML_ERROR_GPU_IS_LOST}
    host = read_host(Library(errors=errors), tmp_path)
    assert host.links[0].level is None
    assert "link of GPUs 0 and 1" in host.problems[0]


@pytest.mark.parametrize("value", NO_DRIVER)
def test_a_machine_without_the_driver_is_a_host_without_gpus(tmp_path: Path, value: int) -> None:
    host = read_host(Library(errors={"nvmlInit": value}), tmp_path)
    assert (host.gpus, host.driver_version) == ((), None)
    assert "no NVIDIA driver" in host.problems[0]


@pytest.mark.parametrize("value", [error for error in EVERY_ERROR if error not in NO_DRIVER])
def test_a_driver_that_does_not_start_is_a_failure(tmp_path: Path, value: int) -> None:
    with pytest.raises(FailedError, match="NVML does not start"):
        read_host(Library(errors={"nvmlInit": value}), tmp_path)


def test_an_updated_driver_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="reboot"):
        read_host(Library(errors={"nvmlInit": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}), tmp_path)


@pytest.mark.parametrize("value", LIBRARY_GONE)
def test_a_library_that_goes_away_while_reading_is_a_failure(tmp_path: Path, value: int) -> None:
    library = Library(errors={"nvmlDeviceGetName": value})
    with pytest.raises(FailedError, match="NVML stopped working"):
        read_host(library, tmp_path)
    assert library.shut_down == 1


@pytest.mark.parametrize("value", EVERY_ERROR)
def test_without_the_number_of_gpus_nothing_is_said(tmp_path: Path, value: int) -> None:
    with pytest.raises(FailedError, match="nvmlDeviceGetCount"):
        read_host(Library(errors={"nvmlDeviceGetCount": value}), tmp_path)


def test_this_machine_can_be_read_whatever_it_has() -> None:
    host = read_host()
    assert host.gpus or host.problems
