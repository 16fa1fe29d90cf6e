"""What replicas, gateways and the directory tell each other. Plain values, the same in every process."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from raylane.cluster.gpu_readings import GpuReading
from raylane.cluster.held_gpus import HeldGpu
from raylane.deployments.engines.load import EngineLoad


class ReplicaState(StrEnum):
    """The life of a replica as gateways see it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # finishes its streams, gets no new ones


@dataclass(frozen=True)
class MoveOrder:
    """A replica is asked to move: to these GPUs of its host, or to better ones where None."""

    order_id: str
    gpu_uuids: tuple[str, ...] | None = None


class MoveState(StrEnum):
    """How far a replica is with an order to move."""

    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"  # nothing was disturbed
    FAILED = "failed"  # it serves where it was, or is being replaced


@dataclass(frozen=True)
class MoveResult:
    """What became of an order to move; `message` is for the user."""

    order_id: str
    state: MoveState
    message: str = ""


@dataclass(frozen=True)
class Receipt:
    """The directory's answer to a report: the version of the table that has it, and what the replica is asked to do."""

    version: int
    order: MoveOrder | None = None


@dataclass(frozen=True)
class ReplicaReport:
    """What a replica tells the directory every second."""

    replica_id: str
    model: str
    state: ReplicaState
    url: str | None  # None until the engine has a port
    api_key: str | None
    node_ip: str
    load: EngineLoad = field(default_factory=EngineLoad)
    gpu_uuids: tuple[str, ...] = ()
    gpus: tuple[GpuReading, ...] = ()
    placement: str = ""  # why these GPUs
    second_best: bool = False  # a better-linked set exists on the host, but was taken
    engine_kind: str = ""
    engine_pid: int | None = None
    log_path: str = ""
    started_s: float | None = None  # from the replica's start (or move) to its first token, in seconds
    held_gpus: tuple[HeldGpu, ...] | None = None  # what the engine's processes are on by NVML; None: not known
    gpu_problem: str | None = None  # how that differs from the lease
    engine_cpus: str | None = None  # the CPUs that the engine may run on, as 0-3,8
    move: MoveResult | None = None  # the newest order
    sick: str | None = None  # requests wait and nothing moves: what is wrong, for people and the autoscaler


@dataclass(frozen=True)
class Endpoint:
    """One engine that a gateway may send requests to."""

    replica_id: str
    model: str
    url: str
    api_key: str
    reported_load: int  # requests the engine said it had, up to a second ago


@dataclass(frozen=True)
class Table:
    """The endpoints of all ready replicas, and the models that exist.

    `epoch` changes when the directory restarts; until it is `settled` again (replicas had time to report) a gateway
    adds what it learns and takes nothing away.
    """

    epoch: str
    version: int
    settled: bool
    models: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]
    draining: tuple[str, ...] = ()  # replica ids that take no new requests

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        endpoints = tuple(Endpoint(**endpoint) for endpoint in data["endpoints"])
        return cls(
            epoch=data["epoch"],
            version=data["version"],
            settled=data["settled"],
            models=tuple(data["models"]),
            endpoints=endpoints,
            draining=tuple(data["draining"]),
        )


@dataclass(frozen=True)
class ModelTraffic:
    """One model at one gateway: counters since that gateway started, and gauges of the last moment it spoke.

    received = completed + failed + rejected + cancelled + open.
    """

    received: int = 0
    completed: int = 0  # answered with 200, to the end
    failed: int = 0  # any other status of the engine's, cut in the reply, or lost with a worker process
    open: int = 0
    admitted: int = 0  # sent to an engine, retries not counted again
    rejected: int = 0  # refused with 503 for want of a replica
    cancelled: int = 0  # the client left
    held: int = 0  # open ones that wait for a replica
    oldest_held_age_s: float | None = None
    first_byte_wait_s: Mapping[str, float] = field(default_factory=dict)
    """Replica id -> age of its oldest streamed request without a first byte: its queue age, prefill included.

    Replies that are not streamed have their first byte at their end and say nothing of the queue, so they are left out.
    """

    @property
    def oldest_first_byte_wait_s(self) -> float | None:
        """The largest of first_byte_wait_s; None when no streamed request waits."""
        return max(self.first_byte_wait_s.values(), default=None)

    def __add__(self, other: "ModelTraffic") -> "ModelTraffic":
        """Both together: counters and gauges added up, of ages the larger."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in COUNTERS + GAUGES}
        ages = (self.oldest_held_age_s, other.oldest_held_age_s)
        waits = dict(self.first_byte_wait_s)
        for replica, wait_s in other.first_byte_wait_s.items():
            waits[replica] = max(wait_s, waits.get(replica, 0.0))
        return ModelTraffic(
            **sums,
            oldest_held_age_s=max((age for age in ages if age is not None), default=None),
            first_byte_wait_s=waits,
        )

    def counters(self) -> "ModelTraffic":
        """The counters alone: what is left to say of a gateway that does not speak."""
        return ModelTraffic(**{name: getattr(self, name) for name in COUNTERS})


COUNTERS = ("received", "completed", "failed", "admitted", "rejected", "cancelled")
GAUGES = ("open", "held")


def add_traffic(parts: Iterable[Mapping[str, ModelTraffic]]) -> dict[str, ModelTraffic]:
    """The traffic of each model over several gateways or processes."""
    total: dict[str, ModelTraffic] = {}
    for part in parts:
        for model, more in part.items():
            total[model] = total[model] + more if model in total else more
    return total


def traffic_growth(before: "Snapshot", after: "Snapshot") -> dict[str, ModelTraffic]:
    """Counters that grew between two snapshots, gauges left out; what a gateway new to `before` counts is left out.

    Gateway by gateway, so that one that stops does not make the sum fall, and a restarted directory that hears of
    all of them anew does not take their whole past for the last second.
    """
    grown = [
        {model: _growth(before.gateways[gateway].get(model, ModelTraffic()), now) for model, now in traffic.items()}
        for gateway, traffic in after.gateways.items()
        if gateway in before.gateways
    ]
    return add_traffic(grown)


def _growth(before: ModelTraffic, after: ModelTraffic) -> ModelTraffic:
    return ModelTraffic(**{name: max(0, getattr(after, name) - getattr(before, name)) for name in COUNTERS})


@dataclass(frozen=True)
class Snapshot:
    """Everything the directory knows, for status pages and the autoscaler."""

    epoch: str
    models: tuple[str, ...]
    replicas: tuple[ReplicaReport, ...]
    report_age_s: dict[str, float]
    gateways: dict[str, dict[str, ModelTraffic]]
    gateway_age_s: dict[str, float] = field(default_factory=dict)  # since each gateway last spoke

    def traffic(self) -> dict[str, ModelTraffic]:
        """Each model over all gateways; of one silent for GATEWAY_STALE_S its counters alone."""
        stale = {gateway for gateway, age_s in self.gateway_age_s.items() if age_s > GATEWAY_STALE_S}
        return add_traffic(
            {model: one.counters() if gateway in stale else one for model, one in traffic.items()}
            for gateway, traffic in self.gateways.items()
        )


GATEWAY_STALE_S = 5.0  # gateways speak twice a second
