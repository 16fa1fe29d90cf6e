"""How fast a pair of GPUs is: what was measured decides, the driver's labels are the fallback. Pure.

Every pair gets one figure, the time of an all-reduce of 32 MiB, because prefill traffic decides between pairs: 2,048
prompt tokens of a 70B model are all-reduces of 33.5 MB, while a decode step sends well under 1 MB.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from raylane.cluster.hosts import Gpu, Host, Link, LinkLevel, LinkMeasurement, PeerStatus, Verdict

MESSAGE_BYTES = 32 * 1024 * 1024
SAME_CLASS = 1.10
"""Times within 10 % of a class's fastest count as equal: repeated measurements of one link differ by a few percent."""

NVLINK_BYTES_PER_S = 21.8e9
"""Per NVLink link and direction: 393 GB/s were measured between H200 GPUs with 18 links (25 GB/s each by datasheet)."""

PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
DEFAULT_PCIE_BYTES_PER_S = 16 * PCIE_LANE_BYTES_PER_S[4]

LEVEL_SHARE = {
    LinkLevel.PIX: 0.80,
    LinkLevel.PXB: 0.70,
    LinkLevel.PHB: 0.60,
    LinkLevel.NODE: 0.50,
    LinkLevel.SYS: 0.28,
}
"""Share of the slower GPU's PCIe rate: 25 GB/s on one switch and under 10 GB/s across sockets of a PCIe 4.0 x16 host;
the levels between are spaced evenly, only their order matters."""

NanosecondMatrix = tuple[tuple[int | None, ...], ...]
FarMatrix = tuple[tuple[int, ...], ...]
"""How far apart the GPUs of each pair are where their links are equally fast: see `far_apart`. Empty: nothing known."""


class Source(StrEnum):
    """Where a pair's time comes from. SIMILAR: not measured itself, as slow as the slowest measured of its level."""

    MEASURED = "measured"
    SIMILAR = "similar"
    LABEL = "label"


@dataclass(frozen=True)
class PairScore:
    """Time of a 32 MiB all-reduce on this pair; `seconds` is None where the pair must not be used, and why."""

    seconds: float | None
    source: Source
    level: LinkLevel | None
    reason: str

    @property
    def usable(self) -> bool:
        return self.seconds is not None


@dataclass(frozen=True)
class HostLinks:
    """The usable GPUs of a host, in its order, and every pair's score.

    `costs[i][j]` is the time of the pair's speed class in ns, None where the pair must not be used; `far[i][j]` decides
    between pairs of one class.
    """

    uuids: tuple[str, ...]
    scores: tuple[tuple[PairScore | None, ...], ...]
    costs: NanosecondMatrix
    far: FarMatrix

    def score(self, a: str, b: str) -> PairScore:
        """The score of two different GPUs by uuid."""
        score = self.scores[self.uuids.index(a)][self.uuids.index(b)]
        assert score is not None  # noqa: S101  only the diagonal is None
        return score


def transfer_time_s(measured: LinkMeasurement) -> float | None:
    """Seconds of a 32 MiB all-reduce: measured, or 32 MiB over the slower direction's bandwidth plus the latency.

    A ring all-reduce of S bytes over n GPUs sends 2 (n - 1) / n x S each way, which is S for two (NCCL tests, busbw).
    """
    if measured.allreduce_32mb_s is not None:
        return measured.allreduce_32mb_s
    rates = [rate for rate in (measured.a_to_b_bytes_per_s, measured.b_to_a_bytes_per_s) if rate]
    return MESSAGE_BYTES / min(rates) + (measured.latency_s or 0.0) if rates else None


def pcie_bytes_per_s(gpu: Gpu) -> float:
    """The GPU's slot rate: fastest generation (an idle GPU falls back to the first) times the lanes in use now."""
    lane = PCIE_LANE_BYTES_PER_S.get(gpu.pcie_gen_max or 0)
    width = gpu.pcie_width_now or gpu.pcie_width_max
    return lane * width if lane and width else DEFAULT_PCIE_BYTES_PER_S


def label_time_s(a: Gpu, b: Gpu, link: Link) -> float:
    """Seconds of a 32 MiB all-reduce guessed from the label; without peer access data goes through the CPU's memory."""
    if link.level is LinkLevel.NVLINK:
        return MESSAGE_BYTES / (NVLINK_BYTES_PER_S * (link.nvlink_count or 1))
    share = LEVEL_SHARE[link.level or LinkLevel.SYS]
    if not peer_access_offered(link):
        share = min(share, LEVEL_SHARE[LinkLevel.NODE])
    return MESSAGE_BYTES / (share * min(pcie_bytes_per_s(a), pcie_bytes_per_s(b)))


def peer_access_offered(link: Link) -> bool:
    """False only if the driver says that one of the two directions is not possible."""
    return all(status in (PeerStatus.OK, None) for status in (link.p2p_read, link.p2p_write))


def score_pair(a: Gpu, b: Gpu, link: Link, slowest_of_level: dict[LinkLevel | None, float]) -> PairScore:
    """Score one pair. An unmeasured pair on a probed host never looks faster than its measured likes."""
    if a.name != b.name:
        return PairScore(None, Source.LABEL, link.level, f"different GPUs ({a.name} and {b.name})")
    if link.measured is not None and link.measured.verdict is Verdict.BROKEN:
        return PairScore(None, Source.MEASURED, link.level, f"broken: {link.measured.reason or 'the probe failed'}")
    measured_s = transfer_time_s(link.measured) if link.measured else None
    if measured_s is not None:
        return PairScore(measured_s, Source.MEASURED, link.level, f"32 MiB all-reduce in {measured_s * 1e3:.3g} ms")
    if link.level in slowest_of_level:
        return PairScore(slowest_of_level[link.level], Source.SIMILAR, link.level, "like the slowest measured pair")
    return PairScore(label_time_s(a, b, link), Source.LABEL, link.level, "by label")


def far_apart(a: Gpu, b: Gpu) -> int:
    """0 on one NUMA node, 2 on two, 1 where that is not known; of a GPU without a node its nearest CPUs tell."""
    if a.numa_node is not None and b.numa_node is not None:
        return 0 if a.numa_node == b.numa_node else 2
    if a.cpu_affinity and b.cpu_affinity:
        return 2 if set(a.cpu_affinity).isdisjoint(b.cpu_affinity) else 0
    return 1


@lru_cache(maxsize=4096)
def host_links(host: Host) -> HostLinks:
    """Score every pair of the host's GPUs. GPUs in MIG mode are left out: an engine cannot take one whole."""
    gpus = [gpu for gpu in host.gpus if not gpu.mig]
    links = {(link.a, link.b): link for link in host.links}
    slowest = slowest_measured(host)
    size = len(gpus)
    rows: list[list[PairScore | None]] = [[None] * size for _ in range(size)]
    for i, a in enumerate(gpus):
        for j, b in enumerate(gpus[:i]):
            link = links.get((b.uuid, a.uuid)) or links.get((a.uuid, b.uuid)) or Link(b.uuid, a.uuid, None)
            rows[i][j] = rows[j][i] = score_pair(b, a, link, slowest)
    scores = tuple(tuple(row) for row in rows)
    far = tuple(tuple(0 if a is b else far_apart(a, b) for b in gpus) for a in gpus)
    return HostLinks(tuple(gpu.uuid for gpu in gpus), scores, cost_matrix(scores), far)


def slowest_measured(host: Host) -> dict[LinkLevel | None, float]:
    """Of each level on this host, the slowest time that was measured, in seconds."""
    slowest: dict[LinkLevel | None, float] = {}
    for link in host.links:
        if link.measured is None or link.measured.verdict is Verdict.BROKEN:
            continue
        measured_s = transfer_time_s(link.measured)
        if measured_s is not None:
            slowest[link.level] = max(measured_s, slowest.get(link.level, 0.0))
    return slowest


def cost_matrix(scores: tuple[tuple[PairScore | None, ...], ...]) -> NanosecondMatrix:
    """The times of the pairs' speed classes in ns; None where unusable."""
    times = {score.seconds for row in scores for score in row if score is not None and score.seconds is not None}
    classes = speed_classes(times)
    return tuple(
        tuple(classes[score.seconds] if score is not None and score.seconds is not None else None for score in row)
        for row in scores
    )


def speed_classes(times_s: set[float]) -> dict[float, int]:
    """Each time with the time of the fastest of its class, in ns and to two digits.

    A class ends where a time exceeds its fastest by over 10 %; two digits keep such classes apart.
    """
    classes: dict[float, int] = {}
    fastest: float | None = None
    for time_s in sorted(times_s):
        if fastest is None or time_s > fastest * SAME_CLASS:
            fastest = time_s
        classes[time_s] = max(1, int(float(f"{fastest * 1e9:.1e}")))
    return classes
