"""`raylane move`: a running replica onto better GPUs of its host."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from raylane.cli.deploy import Address, AsJson, connected
from raylane.cluster.errors import UsageError


def move(
    replica: Annotated[str, typer.Argument(help="The replica's id, or how it begins (see `raylane status`).")],
    to: Annotated[str | None, typer.Option("--to", help="GPU uuids, with commas; default: the best free ones.")] = None,
    address: Address = "auto",
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait until it serves again.")] = 1800.0,
    json_output: AsJson = False,
) -> None:
    """Move a replica to better GPUs of its host: its streams finish, its engine starts again there."""
    wanted = None if to is None else parse_uuids(to)
    console = Console(stderr=True)
    with connected(address):
        from raylane.deployments.rollout.moving import move as put

        done = put(replica, wanted, timeout_s, lambda line: console.print(line, highlight=False, soft_wrap=True))
    typer.echo(json.dumps(asdict(done)) if json_output else done.message)


def parse_uuids(text: str) -> tuple[str, ...]:
    """GPU uuids from a list with commas. Raises UsageError when one is empty."""
    uuids = tuple(part.strip() for part in text.split(","))
    if not all(uuids):
        raise UsageError(f"--to: GPU uuids with commas between them are needed (got {text!r})")
    return uuids
