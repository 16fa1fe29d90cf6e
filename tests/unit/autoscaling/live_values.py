"""Snapshots and configs for the tests of the live autoscaler."""

from typing import Any

from raylane.cluster.gpu_readings import GpuReading
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory.reports import ModelTraffic, ReplicaReport, ReplicaState, Snapshot
from raylane.deployments.engines.load import EngineLoad

READY, STARTING, DRAINING = ReplicaState.READY, ReplicaState.STARTING, ReplicaState.DRAINING
SLO = {"ttft_ms": 1000, "tpot_ms": 60}
NAN = float("nan")


def config(scaling: dict[str, Any] | None = None, **models: dict[str, Any]) -> DeploymentConfig:
    """Simulated 8B models on L40S; each entry may override keys of its model."""
    usual = {
        "source": "builtin:llama-3-8b-shape",
        "engine": {"kind": "simulator", "max_model_len": 8192},
        "slo": SLO,
        "replicas": {"min": 1, "max": 4},
    }
    blocks = {name: {**usual, **block} for name, block in models.items()}
    return DeploymentConfig.from_data({"models": blocks, "scaling": scaling or {}}, "test")


def report(
    replica: str,
    model: str = "m",
    state: ReplicaState = READY,
    load: EngineLoad | None = None,
    gpus: tuple[str, ...] = ("g0",),
    used_percent: float | None = None,
    **more: Any,
) -> ReplicaReport:
    readings = tuple(GpuReading(gpu, None, None, used_percent, None, None) for gpu in gpus)
    return ReplicaReport(
        replica,
        model,
        state,
        "http://e",
        "key",
        "10.0.0.1",
        load or EngineLoad(0, 0, 0.0, 0.0, 0.0),
        gpus,
        readings,
        **more,
    )


def snapshot(
    *reports: ReplicaReport,
    gateways: dict[str, dict[str, ModelTraffic]] | None = None,
    age_s: float = 0.5,
    gateway_age_s: float = 0.2,
    epoch: str = "e1",
) -> Snapshot:
    gateways = {"gw": {}} if gateways is None else gateways
    return Snapshot(
        epoch=epoch,
        models=tuple({one.model for one in reports}),
        replicas=reports,
        report_age_s={one.replica_id: age_s for one in reports},
        gateways=gateways,
        gateway_age_s=dict.fromkeys(gateways, gateway_age_s),
    )
