"""Where a running replica would be better off on its host, and which single to move to free a domain. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from raylane.cluster.choose import Choice, Refusal, broken_groups, choose
from raylane.cluster.domains import partition
from raylane.cluster.hosts import Host
from raylane.cluster.links import HostLinks, host_links
from raylane.cluster.subsets import UNUSABLE

DOMAIN_SIZES = (2, 4, 8, 16)


@dataclass(frozen=True)
class Move:
    """The next replica to move so that the domain `frees` gets free, after `moves` moves with this one.

    The others are found by asking again once this move is done.
    """

    replica: str
    gpu: str
    to_gpu: str
    frees: tuple[str, ...]
    moves: int
    reason: str


def better_choice(free: frozenset[str], held: tuple[str, ...], host: Host) -> Choice | Refusal:
    """Better GPUs for a replica that holds `held`, out of those and the `free` ones; Refusal when there are none.

    Better is a faster slowest link; with an equal one, more free GPUs that pair up afterwards; then fewer pairs across
    NUMA nodes.
    """
    choice = choose(free | set(held), host, len(held))
    if isinstance(choice, Refusal):
        return choice
    links, everything = host_links(host), free | set(held)
    if _standing(links, choice.uuids, everything) < _standing(links, held, everything):
        return choice
    return Refusal(f"{host.name}: no better GPUs than {', '.join(held)} are free ({len(free)} others are free)")


def exact_choice(free: frozenset[str], held: tuple[str, ...], wanted: tuple[str, ...], host: Host) -> Choice | Refusal:
    """The GPUs that were asked for, if a replica that holds `held` can have them."""
    known = {gpu.uuid for gpu in host.gpus}
    if unknown := [uuid for uuid in wanted if uuid not in known]:
        return Refusal(f"{host.name} has no GPU {', '.join(unknown)}")
    if len(set(wanted)) != len(held):
        return Refusal(f"the replica needs {len(held)} GPUs, {len(set(wanted))} were named")
    if set(wanted) == set(held):
        return Refusal(f"the replica is on {', '.join(held)} already")
    if taken := [uuid for uuid in wanted if uuid not in free and uuid not in held]:
        return Refusal(f"{host.name}: not free: {', '.join(taken)}")
    choice = choose(frozenset(wanted), host, len(held))
    return choice if isinstance(choice, Refusal) else replace(choice, reason=_asked_for(choice))


def free_a_domain(host: Host, held: Mapping[frozenset[str], str], tp: int) -> Move | None:
    """Which single-GPU replica to move where so that a whole domain for `tp` GPUs gets free: the fewest moves, then the
    fastest domain.

    `held` maps the GPUs of each replica of the host to its id; all others count as free. None when a whole domain is
    free already, and when moving singles frees none.
    """
    links = host_links(host)
    free = frozenset(links.uuids).difference(*held)
    singles = {next(iter(uuids)): replica for uuids, replica in held.items() if len(uuids) == 1}
    domains = _whole_domains(host, links, tp)
    if any(free.issuperset(domain) for domain in domains):
        return None
    able = [domain for domain in domains if all(uuid in free or uuid in singles for uuid in domain)]
    for domain in sorted(able, key=lambda domain: (_taken(domain, free), _slowest(links, domain), _far(links, domain))):
        moved = next(uuid for uuid in domain if uuid not in free)
        elsewhere = free.difference(domain)
        if len(elsewhere) < _taken(domain, free):
            continue
        to = choose(elsewhere, host, 1)
        if isinstance(to, Choice):
            reason = f"{', '.join(domain)} get free for {tp} GPUs; the single goes where it {_goes(to)}"
            return Move(singles[moved], moved, to.uuids[0], domain, _taken(domain, free), reason)
    return None


def _standing(links: HostLinks, uuids: tuple[str, ...], everything: frozenset[str]) -> tuple[int, int, int]:
    """How good these GPUs are, smaller is better: their slowest link, how few whole domains they leave free, how far
    apart they are."""
    rest = everything.difference(uuids)
    whole = sum(
        len(domain) == 2 and rest.issuperset(links.uuids[i] for i in domain)
        for domain in partition(links.costs, 2, links.far)
    )
    return (_slowest(links, uuids), -whole, _far(links, uuids))


def _far(links: HostLinks, uuids: tuple[str, ...]) -> int:
    """How far apart these GPUs are in all, those that are still there."""
    members = [links.uuids.index(uuid) for uuid in uuids if uuid in links.uuids]
    return sum(links.far[i][j] for i, j in combinations(members, 2))


def _slowest(links: HostLinks, uuids: tuple[str, ...]) -> int:
    """The slowest link's time class in ns, 0 for one GPU; UNUSABLE when a link has turned out broken."""
    members = [links.uuids.index(uuid) for uuid in uuids if uuid in links.uuids]
    costs = [links.costs[i][j] for i, j in combinations(members, 2)]
    if len(members) < len(uuids) or None in costs:
        return UNUSABLE
    return max((cost for cost in costs if cost is not None), default=0)


def _whole_domains(host: Host, links: HostLinks, tp: int) -> list[tuple[str, ...]]:
    """The domains that hold one replica of `tp` GPUs; ValueError for more than 16."""
    size = next((size for size in DOMAIN_SIZES if size >= tp), None)
    if size is None or tp < 2:
        raise ValueError(f"domains have 2 to 16 GPUs, not {tp}")
    broken = broken_groups(host, links)
    parts = partition(links.costs, size, links.far)
    groups = [group for group in parts if len(group) == size and frozenset(group) not in broken]
    return [tuple(links.uuids[i] for i in group) for group in groups]


def _taken(domain: tuple[str, ...], free: frozenset[str]) -> int:
    return sum(uuid not in free for uuid in domain)


def _goes(to: Choice) -> str:
    return to.reason.removeprefix("every free GPU is in a whole domain: ")


def _asked_for(choice: Choice) -> str:
    return "asked for" if choice.level is None else f"asked for; {choice.reason}"
