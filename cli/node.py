"""`raylane node`: this host's part of a Ray cluster. `raylane cluster`: all hosts of a launcher config."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.interrupts import ends_at_once
from raylane.cluster.launcher import deploy_there, forget, hosts_alive, read_launcher_config, stop_hosts
from raylane.cluster.leases import runtime_folder
from raylane.cluster.node import NodeState, check_ray_folder, expect_token, follow, head_ip_of, read_state
from raylane.cluster.node import down as stop_node
from raylane.cluster.node import up as start_node
from raylane.cluster.proxies import without_proxy
from raylane.cluster.ray_driver import import_ray
from raylane.cluster.ray_start import (
    DASHBOARD_PORT,
    GCS_PORT,
    NodeRequest,
    parse_head_address,
    parse_own_address,
    parse_redis,
)

node = typer.Typer(no_args_is_help=True, help="Start or stop this host's part of the Ray cluster.")
cluster = typer.Typer(no_args_is_help=True, help="Start, use or stop all hosts of a Ray cluster launcher config.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ClusterFile = Annotated[Path, typer.Argument(help="Ray cluster launcher config (ray-cluster.yaml).")]
POLL_S = 3.0


@node.command()
def up(
    head: Annotated[bool, typer.Option("--head", help="Make this host the head.")] = False,
    address: Annotated[
        str | None, typer.Option("--address", help="HOST[:PORT] of the head; with --head: this host's own address.")
    ] = None,
    node_ip: Annotated[
        str | None, typer.Option("--node-ip", help="Own address of a worker; default: that of the route to the head.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Port of the head.")] = GCS_PORT,
    redis: Annotated[
        str | None,
        typer.Option("--redis", help="redis[s]://[USER@]HOST:PORT that keeps the head's state; RAY_REDIS_PASSWORD."),
    ] = None,
    redis_cluster: Annotated[
        str, typer.Option("--redis-cluster", help="Keeps clusters on one Redis apart; a new name starts empty.")
    ] = "raylane",
    dashboard_host: Annotated[str, typer.Option("--dashboard-host", help="Address the dashboard binds.")] = "127.0.0.1",
    dashboard_port: Annotated[int, typer.Option("--dashboard-port")] = DASHBOARD_PORT,
    cpus: Annotated[int | None, typer.Option("--cpus", help="CPUs that Ray may hand out; default: all.")] = None,
    temp_dir: Annotated[Path | None, typer.Option("--temp-dir", help="Ray's folder; default /tmp/ray.")] = None,
    autoscaling_config: Annotated[
        Path | None, typer.Option("--autoscaling-config", help="The cluster launcher's file on its head.")
    ] = None,
    block: Annotated[bool, typer.Option("--block", help="Stay, and stop Ray when this ends; for systemd.")] = False,
    json_output: AsJson = False,
) -> None:
    """Start this host's raylet with labels, token, placement and head-loss settings, unless it runs already."""
    from raylane.cluster.nvml import read_host

    if not head and address is None:
        raise UsageError("give --head, or --address HOST:PORT of the head to join")
    own = node_ip
    if head:
        own = address or node_ip or (head_ip_of(autoscaling_config) if autoscaling_config else None)
    elif redis or autoscaling_config:
        raise UsageError("--redis and --autoscaling-config belong to the head: give them with --head")
    if own is not None:
        own = parse_own_address(own, "--address" if head and address else "--node-ip")
    request = NodeRequest(
        head_address=None if head or address is None else parse_head_address(address),
        own_address=own,
        port=port,
        dashboard_host=dashboard_host,
        dashboard_port=dashboard_port,
        redis=parse_redis(redis, os.environ.get("RAY_REDIS_PASSWORD"), redis_cluster) if redis else None,
        autoscaling_config=autoscaling_config,
        cpus=cpus,
        temp_dir=temp_dir,
    )
    check_ray_folder(request)
    folder = runtime_folder()
    state, started = start_node(request, read_host(), folder)
    typer.echo(json.dumps({"started": started, **asdict(state)}) if json_output else up_text(state, started))
    if block:
        follow(state, folder)


def up_text(state: NodeState, started: bool) -> str:
    """What runs, and on the head how the others join."""
    did = "started" if started else "runs already"
    if not state.head:
        return f"{state.own_address}: {did}, worker of {state.head_address}"
    return f"{state.own_address}: {did}, head\nother hosts: raylane node up --address {state.head_address}"


@node.command()
def down() -> None:
    """Stop what `raylane node up` started on this host, engines included. Other Rays on the host go on."""
    state = stop_node(runtime_folder())
    typer.echo("nothing was running" if state is None else down_text(state))


def down_text(state: NodeState) -> str:
    """What was stopped."""
    role = "head" if state.head else "worker"
    if state.starting:
        return f"stopped a {role} whose start was cut short"
    return f"{state.own_address}: stopped, {role} of {state.head_address}"


@node.command()
def hosts(
    address: Annotated[str | None, typer.Option("--address", help="Ray cluster; default: this host's.")] = None,
    json_output: AsJson = False,
) -> None:
    """List the cluster's living hosts with their GPUs and labels."""
    running = read_state(runtime_folder())
    expect_token()
    with ends_at_once():
        import_ray()
        import ray

        from raylane.deployments.rollout.rollout import connect

    connect(address or (running.head_address if running and not running.starting else "auto"))
    try:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [described(data) for data in nodes if data["Alive"]]
    finally:
        ray.shutdown()
    if json_output:
        typer.echo(json.dumps(alive))
        return
    for host in alive:
        labels = ", ".join(f"{key}={value}" for key, value in host["labels"].items())
        typer.echo(f"{host['address']}  {host['gpus']:g} GPUs  {labels}")


def described(data: dict[str, Any]) -> dict[str, Any]:
    """One node as Ray lists it, in raylane's words."""
    return {
        "address": data["NodeManagerAddress"],
        "gpus": data["Resources"].get("GPU", 0.0),
        "cpus": data["Resources"].get("CPU", 0.0),
        "labels": {key: value for key, value in data["Labels"].items() if key.startswith("raylane/")},
    }


@cluster.command("up")
def cluster_up(
    cluster_file: ClusterFile,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait for all hosts.")] = 600.0,
) -> None:
    """`ray up`, then wait until every host has joined: `ray up` itself returns before the workers exist."""
    config = read_launcher_config(cluster_file)
    ray_up = [sys.executable, "-m", "ray.scripts.scripts", "up", "-y", "--no-config-cache", str(cluster_file)]
    direct = {**os.environ, **without_proxy(os.environ, (config.head, *config.workers))}
    done = subprocess.run(ray_up, stdout=sys.stderr.fileno(), check=False, env=direct)
    if done.returncode != 0:
        raise FailedError(f"ray up {cluster_file} ended with status {done.returncode}; its output is above")
    wanted, deadline_s = 1 + len(config.workers), time.monotonic() + timeout_s
    console, shown = Console(stderr=True), None
    while (alive := hosts_alive(config)) is None or alive < wanted:
        if time.monotonic() > deadline_s:
            raise FailedError(
                f"{alive or 0} of {wanted} hosts joined within {timeout_s:.0f} s; "
                f"why is in the head's /tmp/ray/session_latest/logs/monitor.*"
            )
        if alive != shown:
            console.print(f"{alive or 0} of {wanted} hosts", highlight=False)
            shown = alive
        time.sleep(POLL_S)
    typer.echo(f"{alive} of {wanted} hosts joined {config.head}")


@cluster.command()
def submit(
    cluster_file: ClusterFile,
    config_file: Annotated[Path, typer.Argument(help="Deployment config on this machine, as it is now.")],
) -> None:
    """Send a deployment config to the head and deploy it there."""
    from raylane.deployments.config.deployment import DeploymentConfig

    config = read_launcher_config(cluster_file)
    DeploymentConfig.from_yaml(config_file)
    status = deploy_there(config, config_file.read_bytes())
    if status != 0:
        raise typer.Exit(2 if status == 2 else 1)


@cluster.command("down")
def cluster_down(cluster_file: ClusterFile) -> None:
    """Stop Ray on every host, workers first; `ray down` would leave the workers running."""
    config = read_launcher_config(cluster_file)
    stopped = stop_hosts(config)
    for host in stopped:
        typer.echo(f"{host.address}: {host.message}" if host.ok else f"{host.address}: NOT STOPPED: {host.message}")
    failed = [host.address for host in stopped if not host.ok]
    if failed:
        raise FailedError(f"not stopped: {', '.join(failed)}; run `raylane node down` there")
    forget(config)
