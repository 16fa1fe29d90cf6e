"""What `raylane plan` finds and prints: sizes, placement, the most each model can do, the quantization guide."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import typer
from rich.console import Console

from raylane.cli.plan_placement import placement_data, placement_view
from raylane.cli.plan_sizes import (
    ModelSizing,
    config_of,
    kinds,
    measured_link,
    most_gpus,
    names_of,
    nvlinks,
    size_model,
    size_on,
    sizing_data,
)
from raylane.cli.sizing import guide_json, print_ceilings, print_fit, print_guide, print_parallelism
from raylane.cli.tables import table_console
from raylane.cli.topology import known_hosts
from raylane.cluster import planner
from raylane.cluster.catalog import find_accelerator, need_accelerator
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Host
from raylane.cluster.planner import ModelPlan, PlacementPlan, Want
from raylane.deployments.config.deployment import DeploymentConfig, ModelConfig
from raylane.deployments.engines.simulator.config import SimulatorConfig
from raylane.deployments.sizing.checkpoint import read_model_facts
from raylane.deployments.sizing.fit import Refusal
from raylane.deployments.sizing.roofline import assumed_link
from raylane.deployments.sizing.suggest import DEFAULT_CONTEXT, LARGEST_GPU_COUNT, suggest


def hosts_of(from_files: Sequence[Path] | None) -> list[Host]:
    """The hosts of all recordings together, or this one. UsageError for a host or GPU that is in two of them."""
    if not from_files:
        return known_hosts(None)
    hosts = [host for file in from_files for host in known_hosts(file)]
    names, uuids = (host.name for host in hosts), (gpu.uuid for host in hosts for gpu in host.gpus)
    for what, values in (("host", names), ("GPU", uuids)):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise UsageError(f"--from {', '.join(map(str, from_files))}: {what} {twice[0]} is there more than once")
    return hosts


def print_suggestion(
    model: str, gpu: str | None, hosts: Sequence[Host] | None, max_model_len: int | None, json_output: bool
) -> None:
    """The quantization guide of one model on one kind of GPU, on as many as a host has and over its links."""
    name = gpu or the_card(model, hosts)
    card = need_accelerator(name)
    if hosts is not None and not names_of(hosts, card):
        raise UsageError(f"--gpu {name}: is on none of the hosts of --from ({kinds(hosts)})")
    facts = read_model_facts(model)
    positions = facts.max_position_embeddings
    if max_model_len is not None and max_model_len > positions:
        raise UsageError(f"--max-model-len {max_model_len}: {model} has {positions:,} positions")
    most = most_gpus(hosts, card) if hosts else LARGEST_GPU_COUNT
    link = measured_link(hosts or (), card) or assumed_link(card, nvlinks(hosts or (), card, most))
    try:
        guide = suggest(facts, card, link=link, largest=most, max_model_len=max_model_len or DEFAULT_CONTEXT)
    except UsageError as error:
        raise UsageError(f"--suggest {model}: {error}") from error
    if json_output:
        data = {"model": model, "gpu": card.name, "link": link.source, **guide_json(guide)}
        typer.echo(json.dumps({**data, "notes": list(facts.notes)}, indent=2))
    else:
        print_guide(table_console(), model, card.name, guide, link, facts.notes)


def the_card(model: str, hosts: Sequence[Host] | None) -> str:
    """The only kind of GPU of the hosts. UsageError when it has to be named."""
    names = {gpu.name for host in hosts or () for gpu in host.gpus}
    if len(names) != 1:
        among = "" if hosts is None else f" (the hosts have {kinds(hosts)})"
        raise UsageError(f"--suggest {model}: name the card with --gpu, for example --gpu L40S{among}")
    return names.pop()


def print_plan(config_file: Path, config: DeploymentConfig, hosts: Sequence[Host], json_output: bool) -> None:
    """Sizes, then the placement. UsageError, after what is known was printed, when something does not fit."""
    on_gpus = {name: model for name, model in config.models.items() if model.gpus}
    try:
        sizes = {name: size_model(name, model, hosts) for name, model in on_gpus.items()}
    except UsageError as error:
        raise UsageError(f"{config_file}: {error}") from error
    refused = refusals(sizes)
    found = None if refused else planner.plan(hosts, wants(on_gpus, sizes))
    if json_output:
        data = {"models": {name: sizing_data(size) for name, size in sizes.items()}}
        typer.echo(json.dumps({**data, "placement": None if found is None else placement_data(found)}, indent=2))
    else:
        show(table_console(), config, sizes, hosts, found)
    lines = refused if found is None else [misplaced(config, item) for item in found.models if not item.fits]
    if lines:
        raise UsageError("\n".join(f"{config_file}: {line}" for line in lines))


def show(
    console: Console,
    config: DeploymentConfig,
    sizes: Mapping[str, ModelSizing],
    hosts: Sequence[Host],
    found: PlacementPlan | None,
) -> None:
    """Everything for a terminal: model by model, then where the replicas go."""
    for name in config.models.keys() - sizes.keys():
        console.print(f"{name}: on device cpu, takes no GPU", highlight=False)
    for name, size in sizes.items():
        for reason in size.unknown:
            console.print(f"{name}: {reason}", style="yellow", highlight=False, markup=False)
        for item in size.on.values():
            print_fit(console, name, item.facts, item.fit, item.notes)
            if item.ceilings:
                print_ceilings(console, name, item.ceilings, item.caveats)
            if item.splits is not None:
                print_parallelism(console, name, item.splits)
    for part in placement_view(hosts, found) if found is not None else ():
        console.print(part)


def refusals(sizes: Mapping[str, ModelSizing]) -> list[str]:
    """One line for each model that fits on no host: why, and the nearest settings that do."""
    lines = []
    for name, size in sizes.items():
        if size.cards is not None and not size.cards and size.on:
            for card, item in size.on.items():
                if isinstance(item.fit, Refusal):
                    lines.append(refusal_line(name, card, item.fit, item.notes))
    return lines


def misplaced(config: DeploymentConfig, item: ModelPlan) -> str:
    """Why a model has not its minimum: what of its config asks for too much, and of what."""
    if item.possible_hosts:
        return f"models.{item.model}.replicas: {item.reason}"
    model = config.models[item.model]
    pipeline = f" x pipeline_parallel {model.pipeline_parallel}" if model.pipeline_parallel > 1 else ""
    return f"models.{item.model}: tensor_parallel {model.tensor_parallel}{pipeline}: {item.reason}"


def refusal_line(name: str, card: str, refusal: Refusal, notes: Sequence[str]) -> str:
    """Why a model does not fit, the nearest settings that do, and what makes that doubtful."""
    nearest = "; ".join(near.change for near in refusal.nearest) or "none"
    doubtful = f". Note: {'; '.join(notes)}" if notes else ""
    return f"models.{name} does not fit on {card}: {refusal.reason}. Nearest: {nearest}{doubtful}"


def misfits(config: DeploymentConfig, gpu_name: str | None) -> list[str]:
    """One line for each model that has too little memory on a fleet of this card, as far as that can be computed."""
    card = find_accelerator(gpu_name) if gpu_name else None
    lines = []
    for name, model in config.models.items():
        if card is None or not model.gpus or isinstance(model.engine, SimulatorConfig):
            continue
        with suppress(UsageError):  # a hub id or an unknown architecture: its size is not known
            facts = read_model_facts(config_of(model.source))
            found = size_on(facts, card, model, ())
            if isinstance(found.fit, Refusal):
                lines.append(refusal_line(name, card.name, found.fit, found.notes))
    return lines


def wants(models: Mapping[str, ModelConfig], sizes: Mapping[str, ModelSizing]) -> list[Want]:
    """What the planner is asked for."""
    return [
        Want(name, model.gpus, model.replicas.min, model.replicas.max, sizes[name].cards)
        for name, model in models.items()
    ]
