"""`raylane scaling`: what the autoscaler decides and why, what a shadow would have saved, what is idle."""

import json
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console

from raylane.cli.deploy import Address, AsJson, connected
from raylane.cli.tables import WholeTable, table_console
from raylane.cluster.errors import FailedError


def scaling(address: Address = "auto", json_output: AsJson = False) -> None:
    """What the autoscaler decides and why, what a shadow would have saved, and which replicas and hosts are idle."""
    with connected(address):
        from raylane.autoscaling.live.ray_scaler import scaler_status

        status = scaler_status()
    if status is None:
        raise FailedError("no autoscaler runs; `raylane deploy` starts it for a config with `scaling:` and a range")
    if json_output:
        typer.echo(json.dumps(status, indent=2))
    else:
        show(table_console(), status)


def show(console: Console, status: Mapping[str, Any]) -> None:
    """The status for people."""
    if status["problem"]:
        console.print(f"[bold red]not deciding[/]: {status['problem']}", highlight=False, soft_wrap=True)
    if status["policy"] is None:
        return
    shadow = status["mode"] == "shadow"
    console.print(f"policy {status['policy']}{', shadow' if shadow else ''}; last decision {status['decided']}")
    console.print(model_table(status["models"], shadow))
    if shadow and status["saved_gpu_hours"] is not None:
        usd = "" if status["saved_usd"] is None else f" (${status['saved_usd']:,.2f})"
        since = status["shadow_since"]
        console.print(
            f"would have saved {status['saved_gpu_hours']:.2f} GPU hours{usd} since {since}",
            highlight=False,
            soft_wrap=True,
        )
    for one in status["idle"]:
        console.print(
            f"[bold]idle[/]: {one['model']} {one['replica_id']}: {one['problem']}", highlight=False, soft_wrap=True
        )
    for host in status.get("idle_hosts", ()):  # an actor of an older version tells none
        console.print(f"[bold]idle[/]: host {host['host']}: {host['problem']}", highlight=False, soft_wrap=True)
    for change in status["changes"][-10:]:
        done = "" if change["applied"] else " (not applied)"
        line = f"{change['time']} {change['model']} {change['from']} -> {change['to']}{done}: {change['reason']}"
        console.print(f"{line}; {change['detail']}" if change["detail"] else line, highlight=False, soft_wrap=True)
    console.print(f"log: {status['log']}", highlight=False, soft_wrap=True)


def model_table(models: list[Mapping[str, Any]], shadow: bool) -> WholeTable:
    """One row for each scaled model."""
    table = WholeTable(title="recommended" if shadow else "decided", title_justify="left")
    for head in ("model", "replicas", "wanted", "ready", "starting", "draining", "held", "reason"):
        table.add_column(head)
    for model in models:
        counts = (str(model[key]) for key in ("target", "wanted", "ready", "starting", "draining", "held"))
        table.add_row(model["name"], *counts, model["reason"])
    return table
