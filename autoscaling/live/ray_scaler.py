"""The autoscaler as a detached Ray actor on the head, and what it asks of Ray, Serve and the directory.

Ray restarts it when it dies; it finds what is deployed through deployments/directory/deployed.py. Run on Ray 2.60.0.
"""

import asyncio
import json
import logging
import os
import threading
import time
from collections import Counter as Counting
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.util.metrics import Counter, Gauge

from raylane.autoscaling.decision import ReplicaMove
from raylane.autoscaling.live.decider import FleetGpus
from raylane.autoscaling.live.scaler import Scaler
from raylane.autoscaling.live.status import ReplicaChange, ScalerStatus
from raylane.cluster.errors import FailedError
from raylane.cluster.hosts import Host
from raylane.cluster.leases import runtime_folder
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory.deployed import NAMESPACE as KV_NAMESPACE
from raylane.deployments.directory.deployed import recall
from raylane.deployments.directory.ray_actor import NAMESPACE, RayDirectory, directory_actor
from raylane.deployments.directory.reports import Snapshot
from raylane.deployments.rollout.rollout import alive_nodes
from raylane.deployments.rollout.serve_api import ServeApi
from raylane.deployments.rollout.sight import look_everywhere

log = logging.getLogger("raylane.autoscaler")

NAME = "autoscaler-1"  # a detached actor keeps the code it was started with: count up when its interface changes
KEPT = b"autoscaler"
ON_HEAD = {"node:__internal_head__": 0.001}  # the dashboard listens on the head's loopback address
LOG_NAME = "scaling.jsonl"
MOST_LOG_BYTES = 32 << 20
STARTS_WITHIN_S = 120.0
SERVE_WITHIN_S = 4.0  # two calls end within READ_TIMEOUT_S, so that none is under way when the next decision is made
HOSTS_EVERY_S = 600.0
HOSTS_WITHIN_S = 4.0  # a node that has to start a worker first is seen the next time


class RayCluster:
    """The cluster this process is connected to. Blocking calls run in threads."""

    def __init__(self) -> None:
        self._directory = RayDirectory()
        self._hosts: tuple[Host, ...] = ()
        self._looked_s: float | None = None

    async def config(self) -> DeploymentConfig | None:
        return await asyncio.to_thread(recall)

    async def snapshot(self) -> Snapshot:
        return await self._directory.snapshot()

    async def targets(self) -> Mapping[str, int]:
        return await asyncio.to_thread(lambda: serve_api().state().model_targets())

    async def fleet(self) -> FleetGpus:
        return await asyncio.to_thread(read_fleet)

    async def hosts(self) -> tuple[Host, ...]:
        """The hosts that say what they have, looked at every ten minutes."""
        if self._looked_s is None or time.monotonic() - self._looked_s > HOSTS_EVERY_S:
            sights = await asyncio.to_thread(lambda: look_everywhere(alive_nodes(), HOSTS_WITHIN_S))
            self._hosts = tuple(sight.seen.host for sight in sights if sight.seen is not None)
            self._looked_s = time.monotonic()
        return self._hosts

    async def scale(self, model: str, replicas: int) -> None:
        await asyncio.to_thread(lambda: serve_api().scale(model, replicas))

    async def move(self, move: ReplicaMove) -> None:
        await directory_actor().order_move.remote(move.replica_id, move.to_gpus)

    async def wait_for_wake(self, known: int, wait_s: float) -> tuple[int, tuple[str, ...]]:
        return await self._directory.wait_for_wake(known, wait_s)

    async def keep(self, text: str) -> None:
        await asyncio.to_thread(_internal_kv_put, KEPT, text.encode(), namespace=KV_NAMESPACE)

    async def kept(self) -> str | None:
        found = await asyncio.to_thread(_internal_kv_get, KEPT, namespace=KV_NAMESPACE)
        return None if found is None else found.decode()


def serve_api() -> ServeApi:
    """Serve's REST interface of this cluster."""
    return ServeApi(dashboard_address(), SERVE_WITHIN_S)


def dashboard_address() -> str:
    """Where Serve's REST interface is: $RAY_API_SERVER_ADDRESS, or what the dashboard itself told Ray."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        found = _internal_kv_get("dashboard", namespace="dashboard")
        if not found:
            raise FailedError("the Ray cluster has no dashboard; the autoscaler scales through it")
        address = found.decode()
    return address if address.startswith("http") else f"http://{address}"


def read_fleet() -> FleetGpus:
    """GPUs of the nodes that are alive, and their card if all have the same."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    gpus_of: Counting[str] = Counting()
    for node in alive:
        gpus_of[node["NodeManagerAddress"]] += int(node["Resources"].get("GPU", 0))
    cards = {card_of(node) for node in alive if node["Resources"].get("GPU")}
    return FleetGpus(gpus_of.total(), cards.pop() if len(cards) == 1 else None, gpus_of=gpus_of)


def card_of(node: Mapping[str, Any]) -> str | None:
    """The node's GPU model, by raylane's label or Ray's own resource."""
    label = (node.get("Labels") or {}).get("raylane/gpu")
    if label and label != "mixed":
        return str(label).removeprefix("NVIDIA-")
    kinds = [name for name in node["Resources"] if name.startswith("accelerator_type:")]
    return kinds[0].removeprefix("accelerator_type:") if len(kinds) == 1 else None


def log_writer(path: Path) -> Callable[[Mapping[str, Any]], None]:
    """Appends JSON lines, and keeps the file before the last when it has grown large. A full disk must not stop the
    autoscaler."""

    def write(entry: Mapping[str, Any]) -> None:
        try:
            if path.exists() and path.stat().st_size > MOST_LOG_BYTES:
                path.replace(path.with_name(f"{path.name}.1"))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            log.error("%s: cannot be written: %s", path, error)

    return write


def metrics() -> Callable[[ScalerStatus, Iterable[ReplicaChange]], None]:
    """Sets gauges and counters on the metrics page of the head's Ray."""
    wanted = Gauge("raylane_scaler_wanted_replicas", "Replicas that the autoscaler wants", tag_keys=("model",))
    changes = Counter("raylane_scaler_changes", "Changes of replica counts", tag_keys=("model", "reason", "applied"))
    blind = Gauge("raylane_scaler_blind", "1 while the autoscaler cannot decide, else 0")
    idle = Gauge("raylane_scaler_idle_replicas", "Replicas that hold GPUs and do nothing, or that nobody checks")
    hosts = Gauge("raylane_scaler_idle_hosts", "Hosts with GPUs that no replica has used for long")
    named: set[str] = set()
    saved = Gauge("raylane_scaler_shadow_saved_gpu_hours", "GPU-hours that the shadow's counts would have saved")

    def measure(status: ScalerStatus, made: Iterable[ReplicaChange]) -> None:
        blind.set(float(status.blind))
        idle.set(float(len(status.idle)))
        hosts.set(float(len(status.idle_hosts)))
        if status.saved_gpu_hours is not None:
            saved.set(status.saved_gpu_hours)
        for model, replicas in status.wanted(named).items():
            named.add(model)
            wanted.set(float(replicas), tags={"model": model})
        for change in made:
            if change.before != change.after:
                tags = {"model": change.model, "reason": change.reason, "applied": str(change.applied).lower()}
                changes.inc(tags=tags)

    return measure


class ScalerActor:
    """The loop runs on a thread of its own; when it ends, so does the process, and Ray starts another."""

    def __init__(self) -> None:
        self._scaler = Scaler(RayCluster(), log_writer(runtime_folder() / LOG_NAME), metrics())
        threading.Thread(target=self._run, name="autoscaler", daemon=True).start()

    def _run(self) -> None:
        try:
            asyncio.run(self._scaler.run())
        except Exception:  # the thread's edge
            log.exception("the autoscaler's loop ended")
        finally:
            os._exit(1)

    def status(self) -> dict[str, Any]:
        return {**self._scaler.status.to_json(), "log": str(runtime_folder() / LOG_NAME)}


def running_scaler() -> Any | None:
    """The cluster's autoscaler, or None when none was started."""
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return None


def follow(config: DeploymentConfig | None) -> None:
    """Start the autoscaler where the deployed config wants one, end it where not. Replica counts stay as they are."""
    if config is not None and config.wants_scaling:
        options = ray.remote(ScalerActor).options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            resources=ON_HEAD,
            max_restarts=-1,
            max_concurrency=4,
        )
        scaler: Any = options.remote()
        try:
            ray.get(scaler.status.remote(), timeout=STARTS_WITHIN_S)
        except GetTimeoutError as error:
            raise FailedError(f"the autoscaler did not start on the head within {STARTS_WITHIN_S:.0f} s") from error
        return
    scaler = running_scaler()
    if scaler is not None:
        ray.kill(scaler)


def scaler_status() -> dict[str, Any] | None:
    """What the autoscaler does and has done, see ScalerStatus; None when none runs."""
    scaler = running_scaler()
    if scaler is None:
        return None
    found: dict[str, Any] = ray.get(scaler.status.remote(), timeout=30.0)
    return found
