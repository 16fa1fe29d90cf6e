"""What a host's GPUs are and how they are linked: plain frozen values, the same from NVML, from a file or from a test.

Whatever the driver does not tell is None, never 0 or -1.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt, with_config

STRICT = ConfigDict(extra="forbid", use_enum_values=False, allow_inf_nan=False)

Seconds = Annotated[float, Field(gt=0, le=1e6)]  # of a message between GPUs: beyond it is no measurement
BytesPerS = Annotated[float, Field(ge=1)]


def _node_or_none(value: Any) -> Any:
    """Linux writes -1 for a device that belongs to no NUMA node."""
    return None if type(value) is int and value == -1 else value


NumaNode = Annotated[NonNegativeInt | None, BeforeValidator(_node_or_none)]


class LinkLevel(StrEnum):
    """What two GPUs have in common, nearest first (the words of `nvidia-smi topo -m`).

    NVLINK a direct link, PIX one PCIe switch, PXB several switches, PHB one CPU root complex, NODE one NUMA node,
    SYS the link between CPU sockets.
    """

    NVLINK = "NVLINK"
    PIX = "PIX"
    PXB = "PXB"
    PHB = "PHB"
    NODE = "NODE"
    SYS = "SYS"


class PeerStatus(StrEnum):
    """What the driver says about one GPU reading or writing another's memory. It can be wrong: see `probe`."""

    OK = "ok"
    CHIPSET_NOT_SUPPORTED = "chipset not supported"
    GPU_NOT_SUPPORTED = "gpu not supported"
    TOPOLOGY_NOT_SUPPORTED = "topology not supported"
    DISABLED = "disabled by the driver's settings"
    NOT_SUPPORTED = "not supported"
    UNKNOWN = "unknown"


class Verdict(StrEnum):
    """Whether data sent between GPUs arrived whole and in time."""

    OK = "ok"
    BROKEN = "broken"


class Iommu(StrEnum):
    """OFF none, IDENTITY addresses pass unchanged, TRANSLATED they are remapped (with ACS: peer writes may be lost)."""

    OFF = "off"
    IDENTITY = "identity"
    TRANSLATED = "translated"


class Acs(StrEnum):
    """OFF peers on one switch talk directly, REDIRECT the switch sends their traffic up to the CPU first."""

    OFF = "off"
    REDIRECT = "redirect"


@with_config(STRICT)
@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver reports it. `processes` are the pids that hold memory on it."""

    uuid: str
    index: NonNegativeInt
    name: str
    memory_bytes: PositiveInt | None = None
    pci_bus_id: str | None = None
    numa_node: NumaNode = None
    cpu_affinity: tuple[NonNegativeInt, ...] | None = None
    pcie_gen_now: NonNegativeInt | None = None
    pcie_gen_max: NonNegativeInt | None = None
    pcie_width_now: NonNegativeInt | None = None
    pcie_width_max: NonNegativeInt | None = None
    mig: bool | None = None
    ecc: bool | None = None
    persistence: bool | None = None
    processes: tuple[NonNegativeInt, ...] | None = None


@with_config(STRICT)
@dataclass(frozen=True)
class LinkMeasurement:
    """What the probe saw between GPUs a and b.

    `peer_access` False: direct peer access failed and the times are those through host memory (NCCL_P2P_DISABLE=1).
    `latency_s` is half a round trip of 8 bytes; `allreduce_*_s` one NCCL all-reduce of that many bytes.
    """

    verdict: Verdict
    reason: str | None = None
    peer_access: bool | None = None
    a_to_b_bytes_per_s: BytesPerS | None = None
    b_to_a_bytes_per_s: BytesPerS | None = None
    latency_s: Seconds | None = None
    allreduce_8kb_s: Seconds | None = None
    allreduce_256kb_s: Seconds | None = None
    allreduce_32mb_s: Seconds | None = None


@dataclass(frozen=True)
class Link:
    """The link of one pair of GPUs (uuids `a` and `b`, a before b in the host's order)."""

    a: str
    b: str
    level: LinkLevel | None
    nvlink_count: int | None = None
    p2p_read: PeerStatus | None = None
    p2p_write: PeerStatus | None = None
    measured: LinkMeasurement | None = None


@with_config(STRICT)
@dataclass(frozen=True)
class GroupMeasurement:
    """What the probe saw in a group of more than two GPUs."""

    uuids: tuple[str, ...]
    verdict: Verdict
    reason: str | None = None
    allreduce_8kb_s: Seconds | None = None
    allreduce_256kb_s: Seconds | None = None
    allreduce_32mb_s: Seconds | None = None


@dataclass(frozen=True)
class Host:
    """One machine: its GPUs, a link for every pair of them, and what stood in the way of reading more (`problems`)."""

    name: str
    gpus: tuple[Gpu, ...]
    links: tuple[Link, ...]
    driver_version: str | None = None
    acs: Acs | None = None
    iommu: Iommu | None = None
    groups: tuple[GroupMeasurement, ...] = ()
    problems: tuple[str, ...] = ()

    def __hash__(self) -> int:
        """By name and GPUs alone: hashing every link would cost more than what is cached by host."""
        return hash((self.name, tuple(gpu.uuid for gpu in self.gpus)))

    def gpu(self, uuid: str) -> Gpu:
        """The GPU with this uuid; KeyError if the host has none."""
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise KeyError(uuid)

    def link(self, a: str, b: str) -> Link:
        """The link between two GPUs in either order; KeyError if there is none."""
        for link in self.links:
            if {link.a, link.b} == {a, b}:
                return link
        raise KeyError((a, b))
