"""What replicas, gateways and the directory tell each other. Plain values, the same in every process."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from raylane.cluster.gpu_readings import GpuReading
from raylane.deployments.engines.base import EngineLoad


class ReplicaState(StrEnum):
    """The life of a replica as gateways see it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # finishes its streams, gets no new ones


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
    started_s: float | None = None  # from the replica's start to its first token, in seconds


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
    """One gateway's counters of one model since that gateway started, and its open requests now."""

    received: int = 0
    completed: int = 0
    failed: int = 0
    open: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Everything the directory knows, for status pages and the autoscaler."""

    epoch: str
    models: tuple[str, ...]
    replicas: tuple[ReplicaReport, ...]
    report_age_s: dict[str, float]
    gateways: dict[str, dict[str, ModelTraffic]]
