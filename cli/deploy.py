"""`raylane deploy`, `status`, `delete` and `schema`."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from raylane.deployments.config import json_schema, load_config

if TYPE_CHECKING:
    from raylane.deployments.applications import Change
    from raylane.deployments.reports import Snapshot
    from raylane.deployments.serve_api import AppStatus, ServeApi

Address = Annotated[str, typer.Option("--address", help="Ray cluster; auto finds the one this host belongs to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def connected(address: str) -> Iterator["ServeApi"]:
    """This process joined to a running cluster, and its Serve interface."""
    from raylane.cluster.node import expect_token

    expect_token()  # Ray reads it when it is imported
    import ray

    from raylane.deployments.rollout import connect
    from raylane.deployments.serve_api import ServeApi, dashboard_url

    context = connect(address)
    try:
        yield ServeApi(dashboard_url(context))
    finally:
        ray.shutdown()


def deploy(
    config_file: Annotated[Path, typer.Argument(help="Deployment config (YAML).")],
    address: Address = "auto",
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait until every model answers.")] = 1800.0,
    json_output: AsJson = False,
) -> None:
    """Put models on the running cluster; an edit restarts only the models whose own block changed."""
    config = load_config(config_file)
    with connected(address) as api:
        from raylane.deployments.rollout import deploy as put

        try:
            change = put(config, api, str(config_file), progress_lines(), timeout_s)
        except KeyboardInterrupt:
            Console(stderr=True).print("the deployment goes on: see `raylane status`, undo with `raylane delete`")
            raise
    typer.echo(json.dumps(asdict(change)) if json_output else change_text(change))


def progress_lines() -> Callable[[dict[str, "AppStatus"]], None]:
    """A line on stderr whenever a model's state changes."""
    from raylane.deployments.rollout import display_name

    console = Console(stderr=True)
    seen: dict[str, tuple[str, int]] = {}

    def show(statuses: dict[str, "AppStatus"]) -> None:
        for status in statuses.values():
            state = (status.status, status.running_replicas)
            if seen.get(status.name) != state:
                seen[status.name] = state
                name, replicas = display_name(status.name), f"{status.running_replicas}/{status.target_replicas or 0}"
                console.print(f"{name}: {status.status.lower()}, {replicas} replicas", highlight=False)

    return show


def change_text(change: "Change") -> str:
    """What a deploy did, one line a kind."""
    from raylane.deployments.rollout import display_name

    kinds = {k: [display_name(n) for n in names] for k, names in asdict(change).items()}
    return "\n".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def status(address: Address = "auto", json_output: AsJson = False) -> None:
    """What is deployed: models, replicas, their hosts, GPUs and load."""
    with connected(address) as api:
        from raylane.deployments.rollout import display_name, snapshot

        applications = [s for name, s in api.state().statuses.items() if name.startswith("raylane-")]
        known = snapshot()
    if json_output:
        typer.echo(
            json.dumps({"applications": [asdict(a) for a in applications], "directory": public(known)}, indent=2)
        )
        return
    console = Console()
    for application in applications:
        console.print(
            f"{display_name(application.name)}: {application.status.lower()}, "
            f"{application.running_replicas}/{application.target_replicas or 0} replicas",
            highlight=False,
        )
    if known is not None:
        console.print(replica_table(known))


def public(known: "Snapshot | None") -> dict[str, object] | None:
    """The snapshot without the engines' keys."""
    if known is None:
        return None
    data = asdict(known)
    for replica in data["replicas"]:
        del replica["api_key"]
    return data


def replica_table(known: "Snapshot") -> Table:
    """One row for each replica."""
    table = Table(title="replicas", title_justify="left")
    for head in ("model", "replica", "state", "host", "GPUs", "running", "waiting", "KV use", "started in"):
        table.add_column(head)
    for r in known.replicas:
        gpus = ", ".join(r.gpu_uuids) + (" (second best)" if r.second_best else "") if r.gpu_uuids else "none"
        table.add_row(
            *(r.model, r.replica_id, r.state.value, r.node_ip, gpus),
            *(shown(r.load.running), shown(r.load.waiting)),
            "-" if r.load.kv_use is None else f"{r.load.kv_use:.0%}",
            "-" if r.started_s is None else f"{r.started_s:.0f} s",
        )
    return table


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def delete(
    models: Annotated[list[str] | None, typer.Argument(help="Models; none named: all, and the gateway.")] = None,
    address: Address = "auto",
) -> None:
    """Take models off the cluster; running streams finish first. Other applications stay."""
    with connected(address) as api:
        from raylane.deployments.rollout import delete as take_off

        gone = take_off(api, models or [])
    typer.echo("deleted: " + (", ".join(gone) or "nothing was deployed"))


def schema() -> None:
    """Print the JSON schema of deployment configs, for editors."""
    typer.echo(json.dumps(json_schema(), indent=2))
