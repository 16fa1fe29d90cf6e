"""The placement part of `raylane plan`: what fits where, as data, a table and a small drawing."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.text import Text

from raylane.cli.tables import WholeTable
from raylane.cluster.domains import domains
from raylane.cluster.hosts import Host
from raylane.cluster.planner import Placement, PlacementPlan

DRAWN_HOSTS = 24


def placement_data(found: PlacementPlan) -> dict[str, Any]:
    """The plan as plain data for --json."""
    return {**asdict(found), "second_best": sum(replica.second_best for replica in found.placements)}


def placement_view(hosts: Sequence[Host], found: PlacementPlan) -> list[RenderableType]:
    """What to print, in this order: verdict, table of models, drawing, stranded GPUs."""
    stranded = [Text(f"stranded: {gpu.host} {gpu.uuid}: {gpu.reason}", style="yellow") for gpu in found.stranded]
    return [Text(verdict(found), style="bold"), model_table(found), drawing(hosts, found), *stranded]


def verdict(found: PlacementPlan) -> str:
    """One sentence: does it fit, and how good are the links."""
    groups = [replica for replica in found.placements if len(replica.uuids) > 1]
    slow = sum(replica.second_best for replica in groups)
    links = f"{slow} of {len(groups)} groups on a second-best link" if slow else "every group on its best link"
    used = sum(len(replica.uuids) for replica in found.placements)
    lacking = any(model.replicas < model.min_replicas for model in found.models)
    why = "minima are not met" if lacking else "no host can hold one of the models"
    fits = "fits" if found.fits else f"does not fit: {why}"
    return f"{fits}; {used} GPUs used, {len(found.free)} free" + (f"; {links}" if groups else "")


def model_table(found: PlacementPlan) -> WholeTable:
    """One row for each model: GPUs of one replica, replicas placed, hosts that could hold one at all."""
    table = WholeTable("", "model", "GPUs", "replicas", "min", "max", "hosts", "why no more", box=box.SIMPLE)
    for key, model in zip(letters(found), found.models, strict=True):
        counts = (model.tp, model.replicas, model.min_replicas, model.max_replicas, len(model.possible_hosts))
        table.add_row(key, model.model, *(str(count) for count in counts), model.reason)
    return table


def letters(found: PlacementPlan) -> list[str]:
    """A short key for each model: A, B, ... AA, AB, ..."""
    return [("" if i < 26 else chr(64 + i // 26)) + chr(65 + i % 26) for i in range(len(found.models))]


def drawing(hosts: Sequence[Host], found: PlacementPlan) -> Text:
    """A line a host, a bracket a domain: B2=B2 are two GPUs of model B's second replica; - is free, x stranded.

    ~ instead of = marks a replica on a second-best link.
    """
    marks = gpu_marks(found)
    lines = [f"  {host.name:<{name_width(hosts)}}  {host_line(host, marks)}" for host in hosts[:DRAWN_HOSTS]]
    if len(hosts) > DRAWN_HOSTS:
        lines.append(f"  and {len(hosts) - DRAWN_HOSTS} more hosts")
    return Text("\n".join(lines), no_wrap=True)


def name_width(hosts: Sequence[Host]) -> int:
    return max(len(host.name) for host in hosts[:DRAWN_HOSTS]) if hosts else 0


def gpu_marks(found: PlacementPlan) -> dict[str, str]:
    """For each GPU's uuid what stands for it in the drawing."""
    key_of = dict(zip((model.model for model in found.models), letters(found), strict=True))
    numbers: dict[str, int] = {}
    marks = {gpu.uuid: "x" if gpu.stranded else "-" for gpu in found.free}
    for replica in found.placements:
        numbers[replica.model] = numbers.get(replica.model, 0) + 1
        marks |= dict.fromkeys(replica.uuids, mark(key_of[replica.model], numbers[replica.model], replica))
    return marks


def mark(key: str, number: int, replica: Placement) -> str:
    return f"{key}{number}{'~' if replica.second_best else ''}"


def host_line(host: Host, marks: dict[str, str]) -> str:
    """The host's domains in brackets; GPUs of one replica are joined."""
    grouped = [uuid for domain in domains(host) for uuid in domain.uuids]
    alone = [f"[{marks[gpu.uuid]}]" for gpu in host.gpus if gpu.uuid not in grouped]
    return " ".join([*(f"[{joined([marks[uuid] for uuid in domain.uuids])}]" for domain in domains(host)), *alone])


def joined(marks: list[str]) -> str:
    """Marks with = between those of one replica."""
    text = marks[0]
    for before, after in pairwise(marks):
        text += ("=" if before == after and after not in ("-", "x") else " ") + after
    return text
