"""What the autoscaler tells logs and people: changes, the state of each model, savings, idle replicas. Plain values."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from raylane.autoscaling.live.decider import Decided
from raylane.autoscaling.live.idle import IdleHost, IdleReplica
from raylane.autoscaling.observation import Phase


class Trouble(StrEnum):
    """Why nothing is decided, where it is not an error of something that was read. The values are the words."""

    NOT_YET = "nothing has been decided yet"
    RESTS = "the deployed config wants no scaling"
    DIRECTORY_RESTARTED = "the directory has just restarted; replicas are reporting again"


class ReplicaChange(NamedTuple):
    """One decision about one model that differs from the one before."""

    time: str
    model: str
    before: int
    after: int
    reason: str
    detail: str
    applied: bool
    """False in shadow mode, and when Serve did not take it."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in scaling.jsonl."""
        names = {"before": "from", "after": "to"}
        return {names.get(key, key): value for key, value in self._asdict().items()}


@dataclass(frozen=True)
class ModelStatus:
    """One model as it was seen last, and what is wanted for it."""

    name: str
    target: int
    wanted: int
    ready: int
    starting: int
    draining: int
    held: int
    reason: str
    detail: str


@dataclass(frozen=True)
class ScalerStatus:
    """What the autoscaler does and has done. Times are ISO 8601 in UTC."""

    policy: str | None = None
    mode: str | None = None
    decided: str | None = None
    problem: Trouble | str | None = None
    """Why nothing is decided now, an error in its own words; None when all is well."""
    models: tuple[ModelStatus, ...] = ()
    changes: tuple[ReplicaChange, ...] = ()
    """The last ones, the newest last."""
    idle: tuple[IdleReplica, ...] = ()
    idle_hosts: tuple[IdleHost, ...] = ()
    shadow_since: str | None = None
    saved_gpu_hours: float | None = None
    saved_usd: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "changes": [change.to_json() for change in self.changes],
            "idle": [one.to_json() for one in self.idle],
            "idle_hosts": [one.to_json() for one in self.idle_hosts],
        }

    @property
    def blind(self) -> bool:
        """Whether it should decide and cannot."""
        return self.problem is not None and self.problem is not Trouble.RESTS

    def wanted(self, before: Iterable[str]) -> dict[str, int]:
        """Replicas wanted of each model, and 0 of those of `before` that are scaled no more."""
        return dict.fromkeys(before, 0) | {model.name: model.wanted for model in self.models}


def model_statuses(decided: Decided, targets: dict[str, int]) -> tuple[ModelStatus, ...]:
    """One for each scaled model. `targets` are Serve's own, whatever a shadow goes by."""
    return tuple(
        ModelStatus(
            name=model.name,
            target=targets.get(model.name, model.target),
            wanted=decided.targets[model.name].replicas,
            ready=model.count(Phase.READY),
            starting=model.count(Phase.STARTING),
            draining=model.count(Phase.DRAINING),
            held=model.held,
            reason=str(decided.targets[model.name].reason),
            detail=decided.targets[model.name].words(),
        )
        for model in decided.seen.models
        if model.name in decided.targets
    )


def newest(changes: Iterable[ReplicaChange], most: int = 50) -> tuple[ReplicaChange, ...]:
    return tuple(changes)[-most:]
