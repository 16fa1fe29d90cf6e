"""The Ray Serve applications: one for each model, one for the gateway. Serve imports the two builders by name."""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.util.metrics import Gauge

from raylane.deployments.config.deployment import GatewayConfig, ModelConfig
from raylane.deployments.directory.deployed import DeployedLimits
from raylane.deployments.directory.ray_actor import RayDirectory
from raylane.deployments.engines.build import build_engine
from raylane.deployments.gateway.gateway import FINISH_WITHIN_S, Gateway
from raylane.deployments.replicas.host import CpuHost, GpuHost
from raylane.deployments.replicas.replica import Replica

log = logging.getLogger("raylane")

# Serve's defaults that would hurt here (reference: Ray 2.60's serve/config.py), set on purpose:
SERVE_OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 100,  # requests never come through Serve's handles
    "graceful_shutdown_wait_loop_s": 0.1,  # Serve sees no requests to wait for; the replica's own drain waits
    "health_check_period_s": 2.0,
    "health_check_timeout_s": 30.0,  # answered by the replica's event loop at once, however busy the engine is
    "max_constructor_retry_count": 2,  # an engine that cannot load fails twice in the same way
}
EXTRA_SHUTDOWN_S = 30.0  # beyond the drain: acknowledgements, ending the engine


def node_address() -> str:
    """Where engines listen, and nowhere else: $RAYLANE_ADDRESS, or the address by which Ray knows this node."""
    if "RAYLANE_ADDRESS" in os.environ:
        return os.environ["RAYLANE_ADDRESS"]
    here = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, str]] = ray.nodes()  # type: ignore[no-untyped-call]
    return next(node["NodeManagerAddress"] for node in nodes if node["NodeID"] == here)


def gpu_gauge(model: str, replica_id: str) -> Callable[[bool | None], None]:
    """Sets a gauge of this replica on the metrics page of its node's Ray, once it is known."""
    gauge = Gauge(
        "raylane_replica_wrong_gpus",
        description="1 while an engine's processes are on other GPUs than its replica leased, else 0",
        tag_keys=("model", "replica"),
    )
    gauge.set_default_tags({"model": model, "replica": replica_id})

    def told(wrong: bool | None) -> None:
        if wrong is not None:
            gauge.set(float(wrong))

    return told


class EngineReplica:
    """One replica of a model as Serve runs it."""

    async def __init__(self, name: str, block: dict[str, Any]) -> None:  # type: ignore[misc] # Serve awaits it
        model = ModelConfig.from_data(block, f"model {name}")
        replica_id = serve.get_replica_context().replica_id.unique_id
        address = node_address()
        owner = f"{name} {replica_id}"
        host = GpuHost(owner, address, model.gpus) if model.gpus else CpuHost(owner, address)
        engine = await asyncio.to_thread(build_engine, name, model)
        self._replica = Replica(
            replica_id, name, model, engine, host, RayDirectory(), gpu_gauge(name, replica_id), DeployedLimits(name)
        )
        await self._replica.start()
        self._end = asyncio.create_task(self._end_with_engine())

    async def _end_with_engine(self) -> None:
        """A replica whose engine died is thrown away; Serve starts another at once."""
        await self._replica.closed_after_death()
        os._exit(1)  # Serve notices a lost actor sooner than three failed health checks

    async def check_health(self) -> None:
        if self._replica.cause is not None:
            raise RuntimeError(self._replica.cause)

    async def __call__(self) -> str:
        """Requests go to engines over HTTP, never through Serve."""
        return "raylane: send requests to the gateway"

    async def __del__(self) -> None:
        replica = getattr(self, "_replica", None)
        if replica is not None:
            await replica.drain()


class GatewayReplica:
    """The gateway of one host as Serve runs it."""

    async def __init__(self, block: dict[str, Any]) -> None:  # type: ignore[misc] # Serve awaits it
        self._gateway = Gateway(
            GatewayConfig.from_data(block, "gateway"),
            RayDirectory(),
            cluster=ray.get_runtime_context().gcs_address,
            host_pid=os.getppid(),  # the raylet
        )
        await self._gateway.start()

    async def check_health(self) -> None:
        self._gateway.check()

    async def __call__(self) -> str:
        """Requests reach the worker processes over HTTP, never through Serve."""
        return "raylane: send requests to the gateway's port"

    async def __del__(self) -> None:
        gateway = getattr(self, "_gateway", None)
        if gateway is not None:
            await gateway.stop(FINISH_WITHIN_S)


def build_model(args: dict[str, Any]) -> Application:
    """The application of one model. args: {"name", "block": its config without replica bounds, "version"}."""
    model = ModelConfig.from_data(args["block"], f"model {args['name']}")
    bundle = {"CPU": model.reserved_cpus} | ({"GPU": float(model.gpus)} if model.gpus else {})
    deployment = serve.deployment(
        name="replica",
        placement_group_bundles=[bundle],
        placement_group_strategy="STRICT_PACK",  # any other strategy turns Serve's pack scheduling off for everyone
        ray_actor_options={"num_cpus": bundle["CPU"], "num_gpus": model.gpus},  # a bundle alone isolates no GPU
        graceful_shutdown_timeout_s=model.drain_timeout_s + EXTRA_SHUTDOWN_S,
        **SERVE_OPTIONS,
    )(EngineReplica)
    return deployment.bind(args["name"], args["block"])


def build_gateway(args: dict[str, Any]) -> Application:
    """The application of the gateway: one replica on each host. args: {"block": GatewayConfig as data, "version"}."""
    deployment = serve.deployment(
        name="gateway",
        max_replicas_per_node=1,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=FINISH_WITHIN_S + EXTRA_SHUTDOWN_S,
        **SERVE_OPTIONS,
    )(GatewayReplica)
    return deployment.bind(args["block"])
