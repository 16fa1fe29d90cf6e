"""Where the replicas of a deployment can go, which mix fits, and what is left over. Pure.

The plan shows what is possible; at run time Ray picks the host and `choose` the GPUs on it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

from raylane.cluster.capacity import Capacity, ReplicaKind, can_hold, parts_of
from raylane.cluster.choose import broken_groups, is_second_best, pick, slowest_score
from raylane.cluster.hosts import Host, LinkLevel
from raylane.cluster.links import FarMatrix, NanosecondMatrix, host_links


@dataclass(frozen=True)
class Want:
    """Replicas of one model: `tp` GPUs each, at least `min_replicas`, at most `max_replicas`.

    `cards` are the names of the GPUs, as the driver says them, that it may stand on; None means any.
    """

    model: str
    tp: int
    min_replicas: int
    max_replicas: int
    cards: frozenset[str] | None = None


@dataclass(frozen=True)
class Placement:
    """One replica on GPUs of one host; `level` is that of its slowest link, None for one GPU."""

    model: str
    host: str
    uuids: tuple[str, ...]
    level: LinkLevel | None
    second_best: bool


@dataclass(frozen=True)
class ModelPlan:
    """How many replicas of a model stand in the plan, on which hosts one may go at all, and why no more.

    `fits`: it has its minimum, and unless its maximum is 0 there is a host for a replica.
    """

    model: str
    tp: int
    min_replicas: int
    max_replicas: int
    replicas: int
    possible_hosts: tuple[str, ...]
    reason: str

    @property
    def fits(self) -> bool:
        return self.replicas >= self.min_replicas and (self.max_replicas == 0 or bool(self.possible_hosts))


@dataclass(frozen=True)
class FreeGpu:
    """A GPU the plan does not use. `stranded`: no model of the plan could use it beside the others."""

    host: str
    uuid: str
    stranded: bool
    reason: str


@dataclass(frozen=True)
class PlacementPlan:
    """`fits`: every model fits at once; otherwise the placements show as much as does."""

    fits: bool
    models: tuple[ModelPlan, ...]
    placements: tuple[Placement, ...]
    free: tuple[FreeGpu, ...]

    @property
    def stranded(self) -> tuple[FreeGpu, ...]:
        return tuple(gpu for gpu in self.free if gpu.stranded)


def plan(hosts: Sequence[Host], wants: Sequence[Want]) -> PlacementPlan:
    """Place every model's minimum and then, all in proportion, as many more up to the maxima as fit.

    A mix that can stand is never refused. ValueError for a tensor parallel size below 1 or a maximum below the minimum.
    """
    check(wants)
    parts = [part for host in hosts for part in parts_of(host)]
    wants = without_idle_limits(parts, wants)
    kinds = list(dict.fromkeys(ReplicaKind(want.tp, want.cards) for want in wants))
    of_want = [kinds.index(ReplicaKind(want.tp, want.cards)) for want in wants]
    smallest, largest = [want.min_replicas for want in wants], [want.max_replicas for want in wants]

    def by_kind(counts: Sequence[int]) -> list[int]:
        return [sum(n for n, k in zip(counts, of_want, strict=True) if k == kind) for kind in range(len(kinds))]

    capacity = Capacity(parts, kinds, by_kind(largest))

    def fits(counts: Sequence[int]) -> bool:
        return capacity.fits(by_kind(counts))

    enough = fits(smallest)
    counts = grow(smallest, largest, fits) if enough else grow([0] * len(wants), smallest, fits)
    shares = capacity.share(by_kind(counts))
    placements = tuple(place(parts, kinds, shares, deal(wants, of_want, counts)))
    possible = {kind: tuple(dict.fromkeys(part.name for part in parts if can_hold(part, kind))) for kind in kinds}
    models = tuple(
        explain(want, n, possible[kinds[k]], enough, parts) for want, k, n in zip(wants, of_want, counts, strict=True)
    )
    fit = enough and all(model.fits for model in models)
    return PlacementPlan(fit, models, placements, tuple(left_over(parts, kinds, placements)))


def check(wants: Sequence[Want]) -> None:
    """ValueError for a want that means nothing."""
    for want in wants:
        if want.tp < 1 or not 0 <= want.min_replicas <= want.max_replicas:
            raise ValueError(f"{want.model}: tp {want.tp}, {want.min_replicas} to {want.max_replicas} replicas")


def without_idle_limits(parts: Sequence[Host], wants: Sequence[Want]) -> list[Want]:
    """The wants, those whose `cards` name every card there is as wants for any card, which is far quicker to plan."""
    every = {part.gpus[0].name for part in parts if host_links(part).uuids}
    return [replace(want, cards=None) if want.cards is not None and every <= want.cards else want for want in wants]


def grow(start: list[int], most: list[int], fits: Callable[[list[int]], bool]) -> list[int]:
    """Raise all counts from `start` towards `most` in equal shares while they fit, then each in turn.

    Bisects, since fewer replicas fit wherever more do. `start` itself is taken as fitting.
    """
    span = max((top - low for low, top in zip(start, most, strict=True)), default=0)

    def at(step: int) -> list[int]:
        return [low + (top - low) * step // max(span, 1) for low, top in zip(start, most, strict=True)]

    counts = at(highest(span, lambda step: fits(at(step))))
    for i in range(len(counts)):
        counts = raise_one(counts, i, most[i], fits)
    return counts


def raise_one(counts: list[int], i: int, top: int, fits: Callable[[list[int]], bool]) -> list[int]:
    """The counts with the i-th as high as fits, up to `top`."""

    def more(extra: int) -> list[int]:
        return [*counts[:i], counts[i] + extra, *counts[i + 1 :]]

    return more(highest(top - counts[i], lambda extra: fits(more(extra))))


def highest(top: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `top` for which `holds`; 0 is taken as holding."""
    low = 0
    while low < top:
        middle = (low + top + 1) // 2
        if holds(middle):
            low = middle
        else:
            top = middle - 1
    return low


def deal(wants: Sequence[Want], of_want: Sequence[int], counts: Sequence[int]) -> dict[int, list[str]]:
    """For each kind the model names of its replicas, models of one kind taking turns."""
    queues: dict[int, list[str]] = {kind: [] for kind in of_want}
    for turn in range(max(counts, default=0)):
        for want, kind, count in zip(wants, of_want, counts, strict=True):
            if turn < count:
                queues[kind].append(want.model)
    return queues


def place(
    hosts: Sequence[Host], kinds: Sequence[ReplicaKind], shares: list[list[int]], queues: dict[int, list[str]]
) -> Iterator[Placement]:
    """Turn each host's numbers into GPUs, the largest groups first."""
    waiting = {kind: iter(queue) for kind, queue in queues.items()}
    for host, share in zip(hosts, shares, strict=True):
        replicas = sorted((k for k, count in enumerate(share) for _ in range(count)), key=lambda k: -kinds[k].tp)
        links = host_links(host)
        groups = assign(links.costs, tuple(kinds[k].tp for k in replicas), broken_groups(host, links), links.far)
        for k, group in zip(replicas, groups, strict=True):
            yield Placement(
                model=next(waiting[k]),
                host=host.name,
                uuids=tuple(links.uuids[i] for i in group),
                level=slowest_score(links, group).level if len(group) > 1 else None,
                second_best=len(group) > 1 and is_second_best(links.costs, group, links.far),
            )


@lru_cache(maxsize=4096)
def assign(
    costs: NanosecondMatrix, sizes: tuple[int, ...], broken: frozenset[frozenset[int]], far: FarMatrix = ()
) -> tuple[tuple[int, ...], ...]:
    """GPUs for groups of these sizes (largest first) on one host: by `choose`'s rule, or by search where that fails.

    ValueError if the host cannot hold them.
    """
    free = tuple(range(len(costs)))
    groups: list[tuple[int, ...]] = []
    for size in sizes:
        group = pick(costs, free, size, broken, far)
        if group is None:
            return search(costs, sizes, broken, tuple(range(len(costs))), far)
        groups.append(group)
        free = tuple(i for i in free if i not in group)
    return tuple(groups)


def search(
    costs: NanosecondMatrix,
    sizes: tuple[int, ...],
    broken: frozenset[frozenset[int]],
    free: tuple[int, ...],
    far: FarMatrix = (),
) -> tuple[tuple[int, ...], ...]:
    """A way to form all groups, by trying every one, the best linked first. ValueError if there is none."""
    if not sizes:
        return ()
    groups = [
        group for group in combinations(free, sizes[0]) if usable(costs, group) and frozenset(group) not in broken
    ]
    for group in sorted(groups, key=lambda group: standing(costs, far, group)):
        try:
            rest = tuple(i for i in free if i not in group)
            return (group, *search(costs, sizes[1:], broken, rest, far))
        except ValueError:
            continue
    raise ValueError(f"no groups of {sizes} GPUs among {len(free)}")


def usable(costs: NanosecondMatrix, group: tuple[int, ...]) -> bool:
    """True if every link within the group may be used."""
    return all(costs[i][j] is not None for i, j in combinations(group, 2))


def standing(costs: NanosecondMatrix, far: FarMatrix, group: tuple[int, ...]) -> tuple[int, int, int]:
    """How good a group of usable links is, smaller is better: slowest link, sum, how far apart its GPUs are."""
    times = [cost for i, j in combinations(group, 2) if (cost := costs[i][j]) is not None]
    return max(times, default=0), sum(times), sum(far[i][j] for i, j in combinations(group, 2)) if far else 0


def nowhere(parts: Sequence[Host], kind: ReplicaKind) -> str:
    """What a replica of this kind asks of a host, and how many GPUs for it one has at most."""
    able = [part for part in parts if kind.suits(part)]
    most = max((len(host_links(part).uuids) for part in able), default=0)
    mig = sum(bool(gpu.mig) for part in able for gpu in part.gpus)
    gpus = "one GPU" if kind.tp == 1 else f"{kind.tp} GPUs with usable links to each other"
    where = "no host has" if kind.cards is None else "of the cards that the model may stand on no host has"
    return f"{where} {gpus} (at most {most} on one{f', {mig} in MIG mode in all' if mig else ''})"


def explain(want: Want, placed: int, possible: tuple[str, ...], enough: bool, parts: Sequence[Host]) -> ModelPlan:
    """Why a model has as many replicas as it has."""
    if placed == want.max_replicas:
        reason = "all of its maximum"
    elif not possible:
        reason = nowhere(parts, ReplicaKind(want.tp, want.cards))
    elif placed < want.min_replicas:
        reason = f"only {placed} of the minimum of {want.min_replicas} fit beside the other models"
    elif enough:
        reason = "no room for one more beside the other models"
    else:
        reason = "its minimum fits, another model's does not"
    return ModelPlan(want.model, want.tp, want.min_replicas, want.max_replicas, placed, possible, reason)


def left_over(
    hosts: Sequence[Host], kinds: Sequence[ReplicaKind], placements: Sequence[Placement]
) -> Iterator[FreeGpu]:
    """Every GPU that no placement uses."""
    used = {uuid for placement in placements for uuid in placement.uuids}
    for host in hosts:
        links = host_links(host)
        free = tuple(i for i, uuid in enumerate(links.uuids) if uuid not in used)
        sizes = {kind.tp for kind in kinds if kind.suits(host)}
        for gpu in host.gpus:
            if gpu.mig:
                yield FreeGpu(host.name, gpu.uuid, True, "in MIG mode")
            elif gpu.uuid not in used:
                yield free_gpu(
                    host.name, gpu.uuid, stranded_reason(links.costs, links.uuids.index(gpu.uuid), free, sizes)
                )


def free_gpu(host: str, uuid: str, stranded: str | None) -> FreeGpu:
    """A GPU left over, stranded if there is a reason why no model can take it."""
    if stranded is None:
        return FreeGpu(host, uuid, False, "room for more replicas than the maxima allow")
    return FreeGpu(host, uuid, True, stranded)


def stranded_reason(costs: NanosecondMatrix, index: int, free: tuple[int, ...], sizes: set[int]) -> str | None:
    """Why no model of these sizes can use this free GPU; None if one can."""
    if not sizes:
        return "no model of the plan may use this card"
    smallest = min(sizes)
    if smallest == 1:
        return None
    partners = tuple(i for i in free if i != index and costs[index][i] is not None)
    if len(partners) + 1 < smallest:
        return f"{len(partners)} free GPUs beside it have a usable link to it; the smallest model takes {smallest}"
    for size in sizes:
        if any(usable(costs, group) for group in combinations(partners, size - 1)):
            return None
    return "the free GPUs it is linked to are not all linked to each other"
