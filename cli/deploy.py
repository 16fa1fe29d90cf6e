"""`raylane deploy`, `delete` and `schema`, and the connection to a cluster that other commands use too."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from raylane.cluster.interrupts import ends_at_once

if TYPE_CHECKING:
    from raylane.deployments.rollout.applications import Change
    from raylane.deployments.rollout.serve_api import AppStatus, ServeApi

Address = Annotated[str, typer.Option("--address", help="Ray cluster; auto finds the one this host belongs to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def connected(address: str) -> Iterator["ServeApi"]:
    """This process joined to a running cluster, and its Serve interface."""
    with ends_at_once():
        from raylane.cluster.node import expect_token
        from raylane.cluster.ray_driver import import_ray

        expect_token()  # Ray reads it when it is imported
        import_ray()
        import ray

        from raylane.deployments.rollout.rollout import connect
        from raylane.deployments.rollout.serve_api import ServeApi, dashboard_url

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
    with ends_at_once():
        from raylane.autoscaling.live.specs import check_policy, check_scaling
        from raylane.cli.planning import misfits
        from raylane.deployments.config.deployment import load_config

    config = load_config(config_file)
    check_policy(config, str(config_file))
    with connected(address) as api:
        from raylane.autoscaling.live.ray_scaler import follow, read_fleet
        from raylane.deployments.rollout.rollout import deploy as put

        card = read_fleet().card
        check_scaling(config, card, str(config_file))
        for line in misfits(config, card):  # no refusal: memory is computed, the engine has the last word
            Console(stderr=True).print(
                f"warning: {config_file}: {line}", style="yellow", highlight=False, soft_wrap=True
            )
        try:
            change = put(config, api, str(config_file), progress_lines(), timeout_s, follow)
        except KeyboardInterrupt:
            Console(stderr=True).print("the deployment goes on: see `raylane status`, undo with `raylane delete`")
            raise
    typer.echo(json.dumps(asdict(change)) if json_output else change_text(change))


def progress_lines() -> Callable[[dict[str, "AppStatus"]], None]:
    """A line on stderr whenever a model's state changes."""
    from raylane.deployments.rollout.rollout import display_name

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
    from raylane.deployments.rollout.rollout import display_name

    kinds = {k: [display_name(n) for n in names] for k, names in asdict(change).items()}
    return "\n".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def delete(
    models: Annotated[list[str] | None, typer.Argument(help="Models; none named: all, and the gateway.")] = None,
    address: Address = "auto",
) -> None:
    """Take models off the cluster; running streams finish first. Other applications stay."""
    with connected(address) as api:
        from raylane.autoscaling.live.ray_scaler import follow
        from raylane.deployments.directory.deployed import recall
        from raylane.deployments.rollout.rollout import delete as take_off

        gone = take_off(api, models or [])
        follow(recall())
    typer.echo("deleted: " + (", ".join(gone) or "nothing was deployed"))


def schema() -> None:
    """Print the JSON schema of deployment configs, for editors."""
    from raylane.autoscaling.rules.registry import deployable_policies
    from raylane.deployments.config.deployment import json_schema

    found = json_schema()
    found["$defs"]["ScalingConfig"]["properties"]["policy"]["enum"] = list(deployable_policies())
    typer.echo(json.dumps(found, indent=2))
