"""Group a host's GPUs so that the fast links lie inside the groups. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TypeVar

from raylane.cluster.hosts import Host, LinkLevel
from raylane.cluster.links import FarMatrix, HostLinks, NanosecondMatrix, Source, host_links
from raylane.cluster.subsets import EXACT_GPUS, subset_tables

Indices = tuple[int, ...]
Cell = TypeVar("Cell")


@dataclass(frozen=True)
class Domain:
    """GPUs that belong together; `level`, `seconds` and `source` are those of the slowest link among them.

    A GPU without a partner is a domain of its own, with None for all three.
    """

    uuids: tuple[str, ...]
    level: LinkLevel | None
    seconds: float | None
    source: Source | None


def domains(host: Host, size: int = 2) -> tuple[Domain, ...]:
    """Split a host into domains of `size` GPUs (2, 4, 8 or 16), and smaller ones for what is left.

    Pairs: as many usable ones as possible, then the slowest of them as fast as possible, then the least sum of times,
    then the fewest across NUMA nodes; exact up to 16 GPUs, above that exact within each run of 16 neighbours. Larger
    domains join smaller ones by the same rule. GPUs in MIG mode are in no domain.
    """
    links = host_links(host)
    return tuple(describe(links, group) for group in partition(links.costs, size, links.far))


def describe(links: HostLinks, group: Indices) -> Domain:
    """A group of indices as a Domain."""
    uuids = tuple(links.uuids[i] for i in group)
    scores = [score for i, j in combinations(group, 2) if (score := links.scores[i][j]) is not None]
    slowest = max(scores, key=lambda score: score.seconds or 0.0, default=None)
    if slowest is None:
        return Domain(uuids, None, None, None)
    return Domain(uuids, slowest.level, slowest.seconds, slowest.source)


@lru_cache(maxsize=256)
def partition(costs: NanosecondMatrix, size: int, far: FarMatrix = ()) -> tuple[Indices, ...]:
    """Groups of at most `size` indices, each index in one group, ordered by their first index.

    `far` decides between equal times.
    """
    if size not in (1, 2, 4, 8, 16):
        raise ValueError(f"domains have 1, 2, 4, 8 or 16 GPUs, not {size}")
    if size == 1:
        return tuple((i,) for i in range(len(costs)))
    parts = partition(costs, size // 2, far)
    whole = [part for part in parts if len(part) == size // 2]
    rest = [part for part in parts if len(part) < size // 2]
    groups = pair_up(joint_costs(costs, whole), joint_far(far, whole))
    joined = [tuple(sorted(sum((whole[i] for i in group), ()))) for group in groups]
    return tuple(sorted([*joined, *rest]))


def joint_costs(costs: NanosecondMatrix, parts: list[Indices]) -> NanosecondMatrix:
    """Between each two parts the slowest link from one to the other; None if one of those must not be used."""

    def slowest(first: Indices, second: Indices) -> int | None:
        across = [costs[i][j] for i in first for j in second]
        known = [cost for cost in across if cost is not None]
        return max(known) if len(known) == len(across) else None

    return tuple(tuple(None if a is b else slowest(a, b) for b in parts) for a in parts)


def joint_far(far: FarMatrix, parts: list[Indices]) -> FarMatrix:
    """Between each two parts, how far apart their GPUs are in all."""
    return tuple(tuple(sum(far[i][j] for i in a for j in b) for b in parts) for a in parts) if far else ()


def pair_up(costs: NanosecondMatrix, far: FarMatrix = ()) -> list[Indices]:
    """The best pairing of all indices, those left over alone. Above 16, run by run until nothing more pairs up."""
    left = list(range(len(costs)))
    pairs: list[Indices] = []
    while len(left) > 1:
        runs = [left[start : start + EXACT_GPUS] for start in range(0, len(left), EXACT_GPUS)]
        found = [pair for run in runs for pair in pair_run(costs, run, far)]
        if not found:
            break
        pairs += found
        taken = {i for pair in found for i in pair}
        left = [i for i in left if i not in taken]
    return [*pairs, *((i,) for i in left)]


def pair_run(costs: NanosecondMatrix, run: list[int], far: FarMatrix = ()) -> list[Indices]:
    """The best pairing of at most 16 of the indices."""
    tables = subset_tables(picked_out(costs, run), picked_out(far, run))
    return [(run[i], run[j]) for i, j in tables.pairs((1 << len(run)) - 1)]


def picked_out(matrix: tuple[tuple[Cell, ...], ...], indices: Sequence[int]) -> tuple[tuple[Cell, ...], ...]:
    """The rows and columns of these indices; an empty matrix stays empty."""
    return tuple(tuple(matrix[i][j] for j in indices) for i in indices) if matrix else ()
