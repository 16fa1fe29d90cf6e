"""What a policy sees: all models at one moment. Plain values, the same from a live cluster and from the replay lab.

Whatever is not known is None, never 0. Totals only grow (whoever builds the observation bridges restarts and replicas
that left), so the difference of two observations is what happened between them.
"""

from enum import StrEnum
from math import inf
from typing import Any, NamedTuple


class Phase(StrEnum):
    """The life of a replica as a policy sees it."""

    STARTING = "starting"  # asked for, waiting for GPUs, or loading
    READY = "ready"
    DRAINING = "draining"  # finishes its streams; holds its GPUs, carries no new load


class ReplicaObservation(NamedTuple):
    """One replica."""

    replica_id: str
    phase: Phase
    waiting: int | None = None
    running: int | None = None
    kv_use: float | None = None
    """Share of the KV cache in use, 0 to 1."""
    gpu_utilization: float | None = None
    """Share of the last period with a kernel on the GPU, 0 to 1 (NVML; the mean over its GPUs)."""
    gpus: tuple[str, ...] = ()
    """GPU uuids it holds; () while it waits for them."""
    host: str = ""
    sick: bool = False
    """Requests waiting and no progress: more replicas would not help it."""


class ModelObservation(NamedTuple):
    """One model: its replicas and its traffic."""

    name: str
    target: int
    """Replicas asked of Ray at present."""
    replicas: tuple[ReplicaObservation, ...] = ()
    arrivals_total: float | None = None
    """Requests that came for it, whatever became of them."""
    finished_total: float | None = None
    missed_total: float | None = None
    """Requests known to have missed their SLO: a late first token, or slow tokens."""
    rejected_total: float | None = None
    prompt_tokens_total: float | None = None
    output_tokens_total: float | None = None
    held: int = 0
    """Requests waiting at the gateways because no replica is ready."""
    queue_age_s: float | None = None
    """Age of the oldest request without a first token."""

    def count(self, phase: Phase) -> int:
        """Replicas in this phase."""
        return sum(1 for replica in self.replicas if replica.phase is phase)

    @property
    def ready(self) -> tuple[ReplicaObservation, ...]:
        return tuple(replica for replica in self.replicas if replica.phase is Phase.READY)


class Observation(NamedTuple):
    """All models at one moment."""

    at_s: float
    """On any clock that only moves forward."""
    models: tuple[ModelObservation, ...]
    gpus: int
    """GPUs of the fleet that may be used, free or not."""


def clean(seen: ModelObservation) -> ModelObservation:
    """The same with None for every reading that cannot be: not a number, infinite, or negative."""
    changes: dict[str, Any] = {name: None for name in _TOTALS if not _possible(getattr(seen, name))}
    if not _possible(seen.held):
        changes["held"] = 0
    if not all(map(_plausible, seen.replicas)):
        changes["replicas"] = tuple(map(_clean_replica, seen.replicas))
    return seen._replace(**changes) if changes else seen


_TOTALS = (
    "arrivals_total",
    "finished_total",
    "missed_total",
    "rejected_total",
    "prompt_tokens_total",
    "output_tokens_total",
    "queue_age_s",
)
_READINGS = ("waiting", "running", "kv_use", "gpu_utilization")


def _possible(value: float | None) -> bool:
    return value is None or 0 <= value < inf


def _plausible(seen: ReplicaObservation) -> bool:
    return (
        _possible(seen.waiting)
        and _possible(seen.running)
        and _possible(seen.kv_use)
        and _possible(seen.gpu_utilization)
    )


def _clean_replica(seen: ReplicaObservation) -> ReplicaObservation:
    changes: dict[str, Any] = {name: None for name in _READINGS if not _possible(getattr(seen, name))}
    return seen._replace(**changes)
