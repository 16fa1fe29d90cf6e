"""Which mixes of replicas a set of hosts can hold at the same time. Pure and exact.

Replicas are counted by kind (how many GPUs, of which cards). Each host holds certain maximal mixes. Where the sizes
divide one another, every link works and every kind may stand, counting slots is exact; the remaining hosts are combined
one by one, keeping every mix that is not beaten in all kinds. The cost of that grows with the number of such
hosts and of kinds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from raylane.cluster.choose import broken_groups
from raylane.cluster.domains import partition
from raylane.cluster.hosts import Host
from raylane.cluster.links import HostLinks, host_links

Mix = tuple[int, ...]
Mixes = NDArray[np.int64]


@dataclass(frozen=True)
class ReplicaKind:
    """Replicas that are alike to place: `tp` GPUs of one host, of one of `cards` (None: any)."""

    tp: int
    cards: frozenset[str] | None = None

    def suits(self, host: Host) -> bool:
        """False for a host, all of one card, whose card is not among those of this kind."""
        return self.cards is None or any(gpu.name in self.cards for gpu in host.gpus)


SINGLES = ReplicaKind(1)
"""One GPU anywhere: needs no search, for every GPU that is left over will do."""


def parts_of(host: Host) -> list[Host]:
    """The host, or one for each kind of card that it has: no replica takes GPUs of two."""
    cards = dict.fromkeys(gpu.name for gpu in host.gpus)
    if len(cards) < 2:
        return [host]
    return [replace(host, gpus=tuple(gpu for gpu in host.gpus if gpu.name == card)) for card in cards]


@dataclass(frozen=True)
class HostShape:
    """The usable links of a host with interchangeable GPUs put together.

    `counts[c]` GPUs of class c have the same usable links; `inner[c]` says whether to each other too; `joined[c]` are
    the classes they are linked to. `banned` are the groups the probe found broken, as a count for each class; GPUs of
    one class are in the same ones of them.
    """

    counts: Mix
    inner: tuple[bool, ...]
    joined: tuple[frozenset[int], ...]
    banned: frozenset[Mix] = frozenset()


def shape_of(host: Host) -> HostShape:
    """The host's shape; GPUs in MIG mode are left out."""
    links = host_links(host)
    linked = tuple(frozenset(j for j, cost in enumerate(row) if cost is not None) for row in links.costs)
    return _shape(linked, broken_groups(host, links))


@lru_cache(maxsize=1024)
def _shape(linked: tuple[frozenset[int], ...], banned: frozenset[frozenset[int]]) -> HostShape:
    classes = twins(linked, banned)
    first = [members[0] for members in classes]
    return HostShape(
        counts=tuple(len(members) for members in classes),
        inner=tuple(len(members) > 1 and members[1] in linked[members[0]] for members in classes),
        joined=tuple(
            frozenset(d for d, j in enumerate(first) if d != c and j in linked[i]) for c, i in enumerate(first)
        ),
        banned=frozenset(tuple(len(group.intersection(members)) for members in classes) for group in banned),
    )


def twins(linked: Sequence[frozenset[int]], banned: frozenset[frozenset[int]]) -> list[list[int]]:
    """GPUs with equal links and in the same banned groups: those linked to each other, and those that are not."""
    closed = Counter(links | {i} for i, links in enumerate(linked))
    classes: dict[tuple[bool, frozenset[int], frozenset[frozenset[int]]], list[int]] = {}
    for i, links in enumerate(linked):
        together = closed[links | {i}] > 1
        within = frozenset(group for group in banned if i in group)
        classes.setdefault((together, links | {i} if together else links, within), []).append(i)
    return list(classes.values())


@lru_cache(maxsize=65536)
def mixes(shape: HostShape, sizes: Mix) -> tuple[Mix, ...]:
    """The maximal mixes of a host: how many groups of sizes[0], sizes[1], ... it holds at once."""
    return tuple(sorted(_mixes(shape, shape.counts, sizes)))


@lru_cache(maxsize=65536)
def _mixes(shape: HostShape, left: Mix, sizes: Mix) -> frozenset[Mix]:
    if not sizes:
        return frozenset({()})
    found = {(0, *rest) for rest in _mixes(shape, left, sizes[1:])}
    for group in groups(shape, left, sizes[0]):
        smaller = tuple(count - taken for count, taken in zip(left, group, strict=True))
        found |= {(mix[0] + 1, *mix[1:]) for mix in _mixes(shape, smaller, sizes)}
    return frozenset(map(tuple, undominated(np.array(sorted(found), dtype=np.int64)).tolist()))


def groups(shape: HostShape, left: Mix, size: int) -> list[Mix]:
    """Every way to take `size` mutually linked GPUs, as a count for each class."""
    found: list[Mix] = []

    def extend(taken: list[int], missing: int) -> None:
        c = len(taken)
        if missing == 0:
            found.append((*taken, *[0] * (len(left) - c)))
        elif c < len(left):
            fits_others = all(d in shape.joined[c] for d, count in enumerate(taken) if count)
            most = min(left[c], missing, left[c] if shape.inner[c] else 1) if fits_others else 0
            for count in range(most + 1):
                extend([*taken, count], missing - count)

    extend([], size)
    return [group for group in found if group not in shape.banned]


def undominated(rows: Mixes) -> Mixes:
    """The rows that no other row equals or exceeds in every column, without repeats."""
    rows = np.asarray(np.unique(rows, axis=0)[::-1], dtype=np.int64)
    if rows.shape[1] <= 1:
        return rows[:1]
    if rows.shape[1] == 2:  # sorted by the first column downwards: keep what raises the second
        best_before = np.concatenate([[-1], np.maximum.accumulate(rows[:, 1])[:-1]])
        return rows[rows[:, 1] > best_before]
    kept: list[int] = []
    left = np.arange(len(rows))  # sorted downwards: no row is beaten by a later one
    while left.size:
        kept.append(int(left[0]))
        left = left[(rows[left] > rows[left[0]]).any(axis=1)]
    return rows[kept]


def can_hold(host: Host, kind: ReplicaKind) -> bool:
    """True if the empty host, all of one card, has room for one replica of this kind."""
    shape = shape_of(host)
    enough = kind.suits(host) and sum(shape.counts) >= kind.tp
    return enough and (kind.tp == 1 or bool(groups(shape, shape.counts, kind.tp)))


class Capacity:
    """The mixes that a cluster holds, found once and then asked many times."""

    def __init__(self, hosts: Sequence[Host], kinds: Sequence[ReplicaKind], most: Sequence[int]) -> None:
        """`hosts` are of one card each; `most[k]` is the largest number of kind k that will ever be asked for."""
        self._kinds = tuple(kinds)
        self._searched = [k for k, kind in enumerate(kinds) if kind != SINGLES]
        self._sizes = tuple(kinds[k].tp for k in self._searched)
        self._cap = np.array([most[k] for k in self._searched], dtype=np.int64)
        self._gpus = sum(len(host_links(host).uuids) for host in hosts)
        self._easy: list[int] = []
        self._hard: list[tuple[int, Mixes]] = []
        self._hosts = tuple(hosts)
        for i, host in enumerate(hosts):
            self._sort(i, host)
        self._frontiers = self._combine()
        self._slots = {
            size: sum(len(host_links(self._hosts[i]).uuids) // size for i in self._easy) for size in set(self._sizes)
        }

    def _sort(self, i: int, host: Host) -> None:
        """Put host i among the easy ones, where counting slots is exact, or among the hard ones with its mixes."""
        shape, count = shape_of(host), len(host_links(host).uuids)
        allowed = [self._kinds[k].suits(host) for k in self._searched]
        sizes = tuple(size if ok else count + 1 for size, ok in zip(self._sizes, allowed, strict=True))
        whole = HostShape((count,), (count > 1,), (frozenset(),))
        if all(allowed) and divides(self._sizes) and mixes(shape, sizes) == mixes(whole, sizes):
            self._easy.append(i)
        else:
            self._hard.append((i, np.array(mixes(shape, sizes), dtype=np.int64)))

    def _combine(self) -> list[Mixes]:
        """After each hard host, the mixes that it and those before it hold; counts above the cap are cut."""
        frontiers = [np.zeros((1, len(self._sizes)), dtype=np.int64)]
        for _, own in self._hard:
            sums = np.minimum(frontiers[-1][:, None, :] + own[None, :, :], self._cap)
            frontiers.append(undominated(sums.reshape(-1, len(self._sizes))) if len(self._sizes) else frontiers[-1])
        return frontiers

    def fits(self, demand: Sequence[int]) -> bool:
        """True if these numbers of replicas (one per kind) can stand at once."""
        return self._rows_that_fit(demand).size > 0

    def _rows_that_fit(self, demand: Sequence[int]) -> NDArray[np.int64]:
        """Which rows of the last frontier leave no more than the easy hosts can take."""
        wanted = np.array([demand[k] for k in self._searched], dtype=np.int64)
        if sum(kind.tp * count for kind, count in zip(self._kinds, demand, strict=True)) > self._gpus:
            return np.empty(0, dtype=np.int64)
        need = np.maximum(wanted - self._frontiers[-1], 0)
        ok = np.ones(len(need), dtype=bool)
        for size, slots in self._slots.items():
            taken = sum(
                (need[:, k] * (tp // size) for k, tp in enumerate(self._sizes) if tp >= size), np.zeros(len(need))
            )
            ok &= taken <= slots
        return np.flatnonzero(ok)

    def share(self, demand: Sequence[int]) -> list[list[int]]:
        """For each host how many replicas of each kind it takes. ValueError if the demand does not fit."""
        rows = self._rows_that_fit(demand)
        if not rows.size:
            raise ValueError(f"{tuple(demand)} replicas of {self._kinds} do not fit")
        counts = [[0] * len(self._kinds) for _ in self._hosts]
        wanted = np.array([demand[k] for k in self._searched], dtype=np.int64)
        frontier = self._frontiers[-1]
        row = min(rows, key=lambda r: int(np.minimum(frontier[r], wanted).sum()))
        self._share_hard(np.minimum(frontier[row], wanted), counts)
        self._share_easy([int(n) for n in np.maximum(wanted - frontier[row], 0)], counts)
        if SINGLES in self._kinds:
            k = self._kinds.index(SINGLES)
            self._share_singles(k, demand[k], counts)
        return counts

    def _share_hard(self, target: Mixes, counts: list[list[int]]) -> None:
        """Walk back through the frontiers: which mix of each hard host led to the target."""
        for (i, own), before in zip(reversed(self._hard), reversed(self._frontiers[:-1]), strict=True):
            reached = (before[:, None, :] + own[None, :, :] >= target).all(axis=2)
            previous, mix = np.argwhere(reached)[0]
            taken = np.minimum(own[mix], target)
            for column, k in enumerate(self._searched):
                counts[i][k] = int(taken[column])
            target = np.minimum(target - taken, before[previous])

    def _share_easy(self, need: list[int], counts: list[list[int]]) -> None:
        """Largest size first, each on the hosts with the fastest links of that size."""
        left = {i: len(host_links(self._hosts[i]).uuids) for i in self._easy}
        for column in sorted(range(len(need)), key=lambda column: -self._sizes[column]):
            size, k = self._sizes[column], self._searched[column]
            for i in sorted(self._easy, key=lambda i: domain_time_ns(host_links(self._hosts[i]), size)):
                taken = min(need[column], left[i] // size)
                counts[i][k] += taken
                left[i] -= taken * size
                need[column] -= taken

    def _share_singles(self, k: int, need: int, counts: list[list[int]]) -> None:
        """Into what the groups left over: the fullest hosts first, so that whole domains stay elsewhere."""
        left = [
            len(host_links(host).uuids) - sum(kind.tp * n for kind, n in zip(self._kinds, row, strict=True))
            for host, row in zip(self._hosts, counts, strict=True)
        ]
        for i in sorted(range(len(left)), key=lambda i: left[i]):
            counts[i][k] = min(need, left[i])
            need -= counts[i][k]


def divides(sizes: Sequence[int]) -> bool:
    """True if each size divides the next larger one, as 1, 2, 4, 8 do: then any order of filling is as good."""
    ordered = sorted(set(sizes))
    return all(large % small == 0 for small, large in pairwise(ordered))


def domain_time_ns(links: HostLinks, size: int) -> int:
    """The slowest link inside the host's domains of this size, for ordering hosts; 0 if it has none."""
    whole = next((whole for whole in (2, 4, 8, 16) if whole >= size), 16)
    return max(
        (
            cost
            for domain in partition(links.costs, whole, links.far)
            if len(domain) >= size
            for i, j in combinations(domain, 2)
            if (cost := links.costs[i][j]) is not None
        ),
        default=0,
    )
