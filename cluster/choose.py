"""Which free GPUs one replica takes. Pure: Ray counts GPUs, this chooses them.

A group for tensor parallelism comes out of the best pairing of everything that is free (most pairs, then the slowest
as fast as possible, then the least sum, then the fewest across NUMA nodes), so that this replica is linked well and the
next ones too. A single GPU is
taken where it costs the least: from a half-used domain first, so that whole domains stay for tensor parallelism.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from raylane.cluster.domains import partition, picked_out
from raylane.cluster.hosts import Host, LinkLevel, Verdict
from raylane.cluster.links import FarMatrix, HostLinks, NanosecondMatrix, PairScore, Source, host_links
from raylane.cluster.subsets import EXACT_GPUS, FAR_STEPS, UNUSABLE, SubsetTables, Table, subset_tables

DOMAIN_SIZES = (2, 4, 8)


@dataclass(frozen=True)
class Choice:
    """The GPUs of one replica in the host's order.

    `second_best`: their slowest link is slower than the one in the domain (of this size) of one of them, whose other
    GPUs are taken. `level`, `seconds` (32 MiB all-reduce) and `source` are those of the slowest link; None for one GPU.
    """

    uuids: tuple[str, ...]
    reason: str
    second_best: bool
    level: LinkLevel | None = None
    seconds: float | None = None
    source: Source | None = None


@dataclass(frozen=True)
class Refusal:
    """No set of free GPUs will do, and why."""

    reason: str


@dataclass(frozen=True)
class _Pool:
    """GPUs with their tables (bit k of a subset is GPU `indices[k]`), which are free, which domains wholly so."""

    indices: tuple[int, ...]
    tables: SubsetTables
    free: int
    whole: tuple[tuple[int, ...], ...]  # for each domain size, the subsets (as bits) of domains wholly in the pool


def choose(free: frozenset[str], host: Host, tp: int) -> Choice | Refusal:
    """Choose `tp` of the `free` GPUs (uuids). Broken pairs and groups are never chosen.

    Raises ValueError for a uuid that is not the host's and for tp below 1. At most 16 free GPUs are weighed at once;
    of more than 16, windows of 16 are tried, half-used domains first.
    """
    if tp < 1:
        raise ValueError(f"tensor parallel size {tp}; at least 1")
    if unknown := free - {gpu.uuid for gpu in host.gpus}:
        raise ValueError(f"{host.name} has no GPU {', '.join(sorted(unknown))}")
    links = host_links(host)
    able = tuple(i for i, uuid in enumerate(links.uuids) if uuid in free)
    if len(able) < tp:
        return Refusal(_too_few(host, len(able), len(free) - len(able), tp))
    picked = pick(links.costs, able, tp, broken_groups(host, links), links.far)
    if picked is None:
        return Refusal(f"{host.name}: no {tp} of its {len(able)} free GPUs have usable links to each other")
    return _explain(links, able, picked)


def pick(
    costs: NanosecondMatrix,
    able: tuple[int, ...],
    tp: int,
    broken: frozenset[frozenset[int]] = frozenset(),
    far: FarMatrix = (),
) -> tuple[int, ...] | None:
    """`choose` on indices of a matrix of pair times: `tp` of the free ones (`able`), or None if no set will do."""
    for window in windows(costs, able, far):
        pool = _pool(costs, window, able, far)
        subset = _best_subset(pool, tp, broken)
        if subset is not None:
            return _members(pool, subset)
    return None


def windows(costs: NanosecondMatrix, able: tuple[int, ...], far: FarMatrix = ()) -> list[tuple[int, ...]]:
    """Sets of at most 16 GPUs to weigh: the whole host if that small, else the free ones, half-used domains first."""
    if len(costs) <= EXACT_GPUS:
        return [tuple(range(len(costs)))]
    if len(able) <= EXACT_GPUS:
        return [able]
    free = set(able)
    ordered = [
        i
        for whole in (False, True)
        for domain in partition(costs, 2, far)
        if (len(domain) == 2 and free.issuperset(domain)) is whole
        for i in domain
        if i in free
    ]
    starts = range(0, len(ordered) - EXACT_GPUS // 2, EXACT_GPUS // 2)
    return [tuple(sorted(ordered[start : start + EXACT_GPUS])) for start in starts]


def _pool(costs: NanosecondMatrix, window: tuple[int, ...], able: tuple[int, ...], far: FarMatrix) -> _Pool:
    position = {index: bit for bit, index in enumerate(window)}
    free = set(able) & set(window)
    whole = tuple(
        tuple(
            sum(1 << position[i] for i in domain)
            for domain in partition(costs, size, far)
            if len(domain) == size and free.issuperset(domain)
        )
        for size in DOMAIN_SIZES
    )
    tables = subset_tables(picked_out(costs, window), picked_out(far, window))
    return _Pool(window, tables, sum(1 << position[i] for i in free), whole)


def _best_subset(pool: _Pool, tp: int, broken: frozenset[frozenset[int]]) -> int | None:
    """The best subset of `tp` GPUs as bits, or None if there is none."""
    tables = pool.tables
    subsets = np.arange(len(tables.size))
    fits = (tables.size == tp) & (tables.slowest_link < UNUSABLE) & (subsets & ~pool.free == 0)
    candidates = subsets[fits]
    if broken:
        keep = [frozenset(_members(pool, int(subset))) not in broken for subset in candidates]
        candidates = candidates[np.array(keep, dtype=bool)]
    if not candidates.size:
        return None
    keys = _keys(pool, candidates, tp)
    order = np.lexsort(keys[::-1])  # numpy sorts by the last key first
    return int(candidates[order[0]])


def _keys(pool: _Pool, candidates: Table, tp: int) -> list[Table]:
    """What decides between candidates, most important first; smaller is better everywhere."""
    tables = pool.tables
    rest = pool.free ^ candidates
    own, rest_slowest = tables.slowest_link[candidates], tables.slowest_pair[rest]
    splits = [_splits(domains, candidates) for domains in pool.whole]
    if tp == 1:
        partners = np.array([_partners(tables.prices, int(subset)) for subset in candidates], dtype=np.int64)
        sums = tables.pair_sum[rest]
        return [tables.singles[rest], splits[0], partners, rest_slowest, sums, *splits[1:], candidates]
    own_sum = tables.link_sum[candidates]
    time_ns, far = np.divmod(own_sum + tables.pair_sum[rest], FAR_STEPS)
    own_far = own_sum % FAR_STEPS
    return [tables.singles[rest], np.maximum(own, rest_slowest), time_ns, own, far, own_far, *splits, candidates]


def _partners(prices: NanosecondMatrix, single: int) -> int:
    """How many GPUs the one in this subset has a usable link to."""
    return sum(price is not None for price in prices[single.bit_length() - 1])


def _splits(domains: tuple[int, ...], candidates: Table) -> Table:
    """How many wholly free domains each candidate would leave half used."""
    counts = np.zeros_like(candidates)
    for domain in domains:
        taken = candidates & domain
        counts += (taken != 0) & (taken != domain)
    return counts


def _members(pool: _Pool, subset: int) -> tuple[int, ...]:
    return tuple(index for bit, index in enumerate(pool.indices) if subset >> bit & 1)


def broken_groups(host: Host, links: HostLinks) -> frozenset[frozenset[int]]:
    """The groups of more than two GPUs that the probe found broken, as indices."""
    position = {uuid: i for i, uuid in enumerate(links.uuids)}
    return frozenset(
        frozenset(position[uuid] for uuid in group.uuids)
        for group in host.groups
        if group.verdict is Verdict.BROKEN and position.keys() >= set(group.uuids)
    )


def _explain(links: HostLinks, able: tuple[int, ...], picked: tuple[int, ...]) -> Choice:
    uuids = tuple(links.uuids[i] for i in picked)
    if len(picked) == 1:
        return Choice(uuids, _single_reason(links, set(able), picked[0]), second_best=False)
    score, second_best = slowest_score(links, picked), is_second_best(links.costs, picked, links.far)
    verdict = "second best: the faster sets are taken" if second_best else "the best for these GPUs"
    reason = f"slowest link {score.level or 'unknown'}, {score.reason}; {verdict}"
    return Choice(uuids, reason, second_best, score.level, score.seconds, score.source)


def slowest_score(links: HostLinks, members: tuple[int, ...]) -> PairScore:
    """The slowest pair among two or more GPUs (indices)."""
    scores = [score for i, j in combinations(members, 2) if (score := links.scores[i][j]) is not None]
    return max(scores, key=lambda score: score.seconds or 0.0)


def _single_reason(links: HostLinks, able: set[int], index: int) -> str:
    domain = next(domain for domain in partition(links.costs, 2, links.far) if index in domain)
    if len(domain) == 1:
        return "has no partner on this host"
    if able.issuperset(domain):
        return "every free GPU is in a whole domain: opens the one whose loss costs the least"
    return "fills a half-used domain"


def is_second_best(costs: NanosecondMatrix, members: tuple[int, ...], far: FarMatrix = ()) -> bool:
    """True if the slowest link among these GPUs is slower than the one inside the domain of one of them.

    Domains are those of their number (the next larger size where that is no power of two).
    """
    size = next((size for size in (2, 4, 8, 16) if size >= len(members)), None)
    if size is None:
        return False
    own = slowest_link(costs, members)
    return any(
        own > slowest_link(costs, domain)
        for domain in partition(costs, size, far)
        if len(domain) >= len(members) and not set(domain).isdisjoint(members)
    )


def slowest_link(costs: NanosecondMatrix, members: tuple[int, ...]) -> int:
    """The slowest pair time in ns among these GPUs."""
    return max(cost for i, j in combinations(members, 2) if (cost := costs[i][j]) is not None)


def _too_few(host: Host, able: int, unable: int, tp: int) -> str:
    mig = f" ({unable} more are in MIG mode)" if unable else ""
    return f"{host.name}: {tp} GPUs wanted, {able} free{mig}"
