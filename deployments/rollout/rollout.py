"""`raylane deploy`, `status` and `delete`: check what is asked, put it, wait until it serves, undo what failed."""

import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylane.cluster.errors import FailedError, RaylaneError, UsageError
from raylane.cluster.leases import runtime_folder
from raylane.cluster.node import read_state, works
from raylane.cluster.ray_driver import join
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory.deployed import only, recall, remember
from raylane.deployments.directory.ray_actor import directory_actor, running_directory
from raylane.deployments.directory.reports import Snapshot
from raylane.deployments.rollout.applications import (
    GATEWAY,
    MODEL_PREFIX,
    Change,
    Json,
    change,
    first_replicas,
    is_ours,
    merge,
    required_replicas,
)
from raylane.deployments.rollout.serve_api import AppStatus, ServeApi

POLL_S = 0.5
Progress = Callable[[dict[str, AppStatus]], None]


@dataclass(frozen=True)
class Node:
    """A Ray node as far as deploying is concerned."""

    node_id: str
    address: str
    gpus: float


def alive_nodes() -> list[Node]:
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def check_fits(config: DeploymentConfig, nodes: Iterable[Node], origin: str) -> None:
    """Raises UsageError when a replica fits on no host or the first replicas need more GPUs than there are."""
    if config.scaling is not None and config.scaling.fleet_gpus is not None:
        return _check_fits_in(config, config.scaling.fleet_gpus, origin)
    gpus = [node.gpus for node in nodes]
    largest = max(gpus, default=0.0)
    for name, model in config.models.items():
        if model.gpus > largest:
            raise UsageError(
                f"{origin}: models.{name}.tensor_parallel: a replica needs {model.gpus} GPUs on one host "
                f"(tensor_parallel {model.tensor_parallel} x pipeline_parallel {model.pipeline_parallel}), "
                f"the largest host has {largest:.0f}"
            )
        most = sum(int(host // model.gpus) for host in gpus) if model.gpus else None
        if most is not None and model.replicas.min > most:
            raise UsageError(
                f"{origin}: models.{name}.replicas.min: {model.replicas.min} replicas of {model.gpus} GPUs each, "
                f"the hosts have room for {most}"
            )
    needed = first_gpus(config)
    if needed > sum(gpus):
        why = _why_first(config)
        raise UsageError(
            f"{origin}: models: the first replicas need {needed} GPUs, the cluster has {sum(gpus):.0f}{why}"
        )
    return None


def fleet_gpus(config: DeploymentConfig, nodes: Iterable[Node]) -> float:
    """GPUs that the replicas share: those that are there, or that are to come where the config says how many."""
    if config.scaling is not None and config.scaling.fleet_gpus is not None:
        return config.scaling.fleet_gpus
    return sum(node.gpus for node in nodes)


def first_gpus(config: DeploymentConfig) -> int:
    """GPUs of the replicas that a new deployment cannot do without."""
    return sum(config.models[name].gpus * count for name, count in required_replicas(config).items())


def _why_first(config: DeploymentConfig) -> str:
    """What explains that number to who set a minimum of 0; empty when nobody did."""
    started = [
        name
        for name, count in required_replicas(config).items()
        if config.models[name].gpus and count > config.models[name].replicas.min
    ]
    return (
        f"; without an autoscaler that acts each model starts with a replica, {', '.join(started)} too"
        if started
        else ""
    )


def _check_fits_in(config: DeploymentConfig, fleet_gpus: int, origin: str) -> None:
    """Hosts are still to come, so only the sum can be checked."""
    needed = first_gpus(config)
    if needed > fleet_gpus:
        raise UsageError(
            f"{origin}: scaling.fleet_gpus: {fleet_gpus}; the first replicas need {needed}{_why_first(config)}"
        )


def deploy(
    config: DeploymentConfig,
    api: ServeApi,
    origin: str,
    progress: Progress,
    timeout_s: float,
    announced: Callable[[DeploymentConfig | None], None] = lambda config: None,
) -> Change:
    """Put the config on the cluster this process is connected to and wait until every model answers.

    Models that may rest and for which no GPU is left rest until somebody asks for them.
    `announced` is called with what is deployed as soon as it is, and again when something was taken away.
    Raises UsageError for what cannot fit, FailedError with the engine's log when a model does not come up; what this
    call added and failed is taken away again.
    """
    nodes = alive_nodes()
    check_fits(config, nodes, origin)
    before = api.state()
    if GATEWAY not in before.statuses:
        check_port(config, nodes)
    replicas = first_replicas(config, before.model_targets(), fleet_gpus(config, nodes))
    resting = tuple(MODEL_PREFIX + name for name, count in replicas.items() if not count)
    wanted = merge(config, before.configs, replicas, len(nodes))
    done = replace(change(before.configs, wanted), resting=resting)
    api.put(wanted, before.options)
    announce(config)
    try:
        announced(config)
        wait_until_up(api, [app["name"] for app in wanted if is_ours(app["name"])], resting, progress, timeout_s)
    except Exception:  # not Ctrl-C: that ends the waiting, and the deployment goes on
        with suppress(RaylaneError):  # what went wrong first is what the user must read
            left = only(config, _take_back(api, done.added))
            announce(left)
            announced(left)
        raise
    return done


def announce(config: DeploymentConfig | None) -> None:
    """Tell the directory, and whoever recalls it later, what is deployed; None: nothing."""
    remember(config)
    names = () if config is None else tuple(config.models)
    ray.get(directory_actor().set_models.remote(names))


def _take_back(api: ServeApi, added: tuple[str, ...]) -> frozenset[str]:
    """Remove the applications that this deploy added and that do not run; the models that are left."""
    state = api.state()
    failed = {name for name in added if name not in state.statuses or state.statuses[name].status != "RUNNING"}
    left = [app for name, app in state.configs.items() if name not in failed]
    if not any(app["name"].startswith(MODEL_PREFIX) for app in left):  # a gateway with nothing behind it
        left = [app for app in left if app["name"] != GATEWAY or GATEWAY not in added]
    api.put(left, state.options)
    wait_until_gone(api, {name for name in added if name not in {app["name"] for app in left}})
    return _models(left)


def _models(applications: Iterable[Json]) -> frozenset[str]:
    return frozenset(app["args"]["name"] for app in applications if app["name"].startswith(MODEL_PREFIX))


def check_port(config: DeploymentConfig, nodes: Iterable[Node]) -> None:
    """Raises FailedError when a host's gateway port is somebody else's."""
    probe = ray.remote(port_problem)
    gateway = config.gateway
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        problem = ray.get(probe.options(num_cpus=0, scheduling_strategy=where).remote(gateway.host, gateway.port))
        if problem:
            raise FailedError(f"gateway.port: {gateway.host}:{gateway.port} on host {node.address}: {problem}")


def port_problem(host: str, port: int) -> str | None:
    """Why nothing can listen there; None when something can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            return str(error.strerror)
    return None


def wait_until_up(
    api: ServeApi, names: Iterable[str], resting: Iterable[str], progress: Progress, timeout_s: float
) -> None:
    """Wait until these applications run, having brought those in `resting` to zero replicas. Raises FailedError with
    Serve's message when one cannot or time is up."""
    names, to_rest = list(names), set(resting)
    deadline_s = time.monotonic() + timeout_s
    while True:
        statuses = api.state().statuses
        ours = {name: statuses[name] for name in names if name in statuses}
        progress(ours)
        for status in ours.values():
            if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise FailedError(f"{display_name(status.name)} did not come up:\n{tidy(status.message)}")
        to_rest -= rest(api, [ours[name] for name in to_rest & ours.keys()])
        if not to_rest and len(ours) == len(names) and all(status.status == "RUNNING" for status in ours.values()):
            return
        if time.monotonic() > deadline_s:
            late = ", ".join(f"{display_name(s.name)} ({s.status})" for s in ours.values() if s.status != "RUNNING")
            raise FailedError(f"not up after {timeout_s:.0f} s: {late}")
        time.sleep(POLL_S)


def rest(api: ServeApi, statuses: Iterable[AppStatus]) -> set[str]:
    """Scale these applications to zero as soon as they have taken on the replicas they were put with; who is there.

    Serve calls an application RUNNING only after that, so a target of zero is then not overwritten any more.
    """
    there = set()
    for status in statuses:
        if status.target_replicas:
            api.scale(display_name(status.name), 0)
        elif status.status == "RUNNING":
            there.add(status.name)
    return there


def wait_until_gone(api: ServeApi, names: set[str], timeout_s: float = 700.0) -> None:
    """Wait until Serve has deleted them. One that somebody deploys again meanwhile is not waited for."""
    deadline_s = time.monotonic() + timeout_s
    while left := {name for name, status in api.state().statuses.items() if status.status == "DELETING"} & names:
        if time.monotonic() > deadline_s:
            raise FailedError(f"still there after {timeout_s:.0f} s: {', '.join(sorted(left))}")
        time.sleep(POLL_S)


def delete(api: ServeApi, models: Iterable[str]) -> list[str]:
    """Take models off the cluster, all of them and the gateway when none is named; other applications stay.

    Raises UsageError for a model that is not deployed.
    """
    models = list(models)
    state = api.state()
    ours = {name for name in state.configs if is_ours(name)}
    unknown = [model for model in models if MODEL_PREFIX + model not in ours]
    if unknown:
        known = ", ".join(sorted(display_name(name) for name in ours)) or "nothing"
        raise UsageError(f"model {unknown[0]!r} is not deployed; deployed: {known}")
    gone = {MODEL_PREFIX + model for model in models} or ours
    left = [app for name, app in state.configs.items() if name not in gone]
    api.put(left, state.options)
    wait_until_gone(api, gone)
    _forget(_models(left))
    return sorted(display_name(name) for name in gone)


def _forget(left: frozenset[str]) -> None:
    """Keep in mind only the models that are left."""
    with suppress(UsageError):  # another version's config: its names are replaced by the next deploy
        known = recall()
        remember(None if known is None else only(known, left))
    directory = running_directory()
    if directory is not None:
        ray.get(directory.set_models.remote(tuple(sorted(left))))


def snapshot() -> Snapshot | None:
    """What the directory knows; None when raylane has not been deployed on this cluster."""
    directory = running_directory()
    if directory is None:
        return None
    known: Snapshot = ray.get(directory.snapshot.remote())
    return known


def display_name(application: str) -> str:
    """How users know an application: the model's name, or "gateway"."""
    return "gateway" if application == GATEWAY else application.removeprefix(MODEL_PREFIX)


def tidy(message: str) -> str:
    """Serve's message without the traceback of its own frames: from the last line that names our error on."""
    for mark in ("EngineFailed: ", "FailedError: ", "UsageError: "):
        if mark in message:
            return message[message.rindex(mark) + len(mark) :].strip()
    return message.strip()


def connect(address: str) -> Any:
    """Connect this process to a running cluster; "auto" is the one this host belongs to, by `raylane node up` or else
    by Ray's own rules. Raises UsageError for what is no address, FailedError when there is no cluster."""
    return join(own_cluster() if address == "auto" else address)


def own_cluster() -> str:
    """The head's address of the Ray that `raylane node up` runs on this host; without one, or with RAY_ADDRESS, "auto".

    Ray's own "auto" takes the newest session in its folder, which may be another Ray's.
    """
    if os.environ.get("RAY_ADDRESS"):
        return "auto"
    state = read_state(runtime_folder())
    return state.head_address if state is not None and works(state) else "auto"
