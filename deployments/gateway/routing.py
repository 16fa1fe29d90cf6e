"""Which replica gets a request. Pure: the caller counts open requests."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum

from raylane.deployments.directory.reports import Endpoint


class NoPick(StrEnum):
    """Why no replica could be picked."""

    UNKNOWN_MODEL = "unknown model"
    NO_REPLICA = "no replica is ready"


@dataclass(frozen=True)
class Pick:
    """The replica for one request."""

    endpoint: Endpoint
    open_requests: int  # what this gateway process had open there before


def pick(
    model: str,
    models: Sequence[str],
    endpoints: Sequence[Endpoint],
    open_requests: Mapping[str, int],
    tried: frozenset[str],
    turn: int,
    avoid: Set[str] = frozenset(),
) -> Pick | NoPick:
    """Least outstanding requests: fewest open from here, then fewest reported by the engine, then in turn.

    `open_requests` maps replica ids to this process's open requests; `tried` are replicas that already failed this
    request; `turn` is any growing number and only breaks ties; those in `avoid` are taken only when there is no other.
    """
    if model not in models:
        return NoPick.UNKNOWN_MODEL
    able = [e for e in endpoints if e.model == model and e.replica_id not in tried]
    if not able:
        return NoPick.NO_REPLICA
    if avoid:
        able = [e for e in able if e.replica_id not in avoid] or able
    first = turn % len(able)
    in_turn = able[first:] + able[:first]
    best = min(in_turn, key=lambda e: (open_requests.get(e.replica_id, 0), e.reported_load))
    return Pick(best, open_requests.get(best.replica_id, 0))
