"""What a policy answers: how many replicas of each model, which to move, and why."""

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why a model gets the replicas it gets. The values are the words for logs and people; no code goes by them."""

    STEADY = "what is there fits the load"
    DEMAND = "the load needs more"
    QUEUE = "requests wait too long"
    MEMORY = "the KV caches are full"
    WAKE = "a request waits and no replica runs"
    FLOOR = "fewer than the configured minimum"
    CEILING = "more than the configured maximum"
    HOLD = "the load fell, not yet for long enough"
    WAIT = "the rule waits before its next change"
    WARM_UP = "the autoscaler has not watched for long enough"
    BUSY = "the load is unknown and the GPUs are busy"
    SHRINK = "the load fits on one replica less, and has for long enough"
    IDLE = "no request for long enough"
    BLIND = "no readings"
    SHARE = "the fleet has no more GPUs, and others lose more by giving one up"
    YIELD = "another model loses more without these GPUs"
    PENDING = "the fleet has no GPU for it now"
    DOMAIN = "its start waits until a single has moved and a whole domain is free"
    STATIC = "a fixed number of replicas"


class Proposal(NamedTuple):
    """What one model would have if the fleet were its own."""

    replicas: int
    reason: Reason
    need: float | None = None
    """Replicas its load fills, as a fraction: what sharing weighs. None: as many as proposed."""
    detail: str = ""
    """The figures behind the reason, for logs."""


class Target(NamedTuple):
    """The replicas one model is to have."""

    replicas: int
    reason: Reason
    detail: str = ""
    """The figures behind what the rule proposed, for logs."""
    proposed: int | None = None
    """What the rule proposed; None where no rule was asked."""
    need: float | None = None
    """As the proposal has it."""

    def words(self) -> str:
        """The figures for logs and people, with what was proposed where something else came of it."""
        if self.proposed in (None, self.replicas):
            return self.detail
        return f"wants {self.proposed}; {self.detail}" if self.detail else f"wants {self.proposed}"


class ReplicaMove(NamedTuple):
    """A replica that is to drain and restart its engine on other GPUs of its host, so that a whole domain gets free."""

    replica_id: str
    to_gpus: tuple[str, ...]
    reason: str


class Decision(NamedTuple):
    """One answer for all models, by name. A model that is not named stays as it is."""

    targets: dict[str, Target]
    moves: tuple[ReplicaMove, ...] = ()
