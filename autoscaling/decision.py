"""What a policy answers: how many replicas of each model, which to move, and why."""

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why a model gets the replicas it gets."""

    STEADY = "what is there fits the load"
    DEMAND = "the load needs more"
    QUEUE = "requests wait too long"
    MEMORY = "the KV caches are full"
    WAKE = "a request waits and no replica runs"
    FLOOR = "fewer than the configured minimum"
    CEILING = "more than the configured maximum"
    HOLD = "the load fell, not yet for long enough"
    WAIT = "the rule waits before its next change"
    BUSY = "the load is unknown and the GPUs are busy"
    SHRINK = "the load fits on one replica less, and has for long enough"
    IDLE = "no request for long enough"
    BLIND = "no readings"
    SHARE = "the fleet has no more GPUs, and others lose more by giving one up"
    YIELD = "another model loses more without these GPUs"
    PENDING = "the fleet has no GPU for it now"
    DOMAIN = "its start waits until a single has moved and a whole domain is free"
    STATIC = "a fixed number of replicas"


class Target(NamedTuple):
    """The replicas one model is to have."""

    replicas: int
    reason: Reason
    detail: str = ""
    """The figures behind the reason, for logs."""


class Move(NamedTuple):
    """A replica that is to drain and restart its engine on other GPUs of its host, so that a whole domain gets free."""

    replica_id: str
    to_gpus: tuple[str, ...]
    reason: str


class Decision(NamedTuple):
    """One answer for all models, by name. A model that is not named stays as it is."""

    targets: dict[str, Target]
    moves: tuple[Move, ...] = ()
