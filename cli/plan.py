"""`raylane plan`: does a deployment fit on its hosts, where do its replicas go, and how fast can they be at most."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from raylane.cli.plan_placement import placement, placement_data, placement_view
from raylane.cli.sizing import fit_json, guide_json, print_ceilings, print_fit, print_guide, print_parallelism
from raylane.cli.topology import known_hosts
from raylane.cluster.catalog import Accelerator, find_accelerator, need_accelerator, unknown_accelerator_message
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Host
from raylane.cluster.planner import PlacementPlan, Want
from raylane.deployments.builtin import PREFIX
from raylane.deployments.config import DeploymentConfig, ModelConfig, SimulatorConfig, VllmConfig, load_config
from raylane.deployments.drafts import with_draft
from raylane.deployments.engine_settings import engine_settings
from raylane.deployments.fit import Fits, Refusal, fit
from raylane.deployments.model_facts import ModelFacts, model_facts
from raylane.deployments.parallelism import Comparison, compare_parallelism
from raylane.deployments.roofline import Ceiling, Link, assumed_link, ceiling
from raylane.deployments.simulator.build import read_model_config
from raylane.deployments.suggest import suggest

INPUT_TOKENS, OUTPUT_TOKENS = 512, 256  # the request that ceilings are given for
BATCHES = (1, 8, 32, 128)


@dataclass(frozen=True)
class Sizing:
    """One model on one kind of GPU: memory, ceilings and, for several GPUs, the ways to split it."""

    facts: ModelFacts
    fit: Fits | Refusal
    ceilings: tuple[Ceiling, ...] = ()
    splits: Comparison | None = None


@dataclass(frozen=True)
class ModelSizing:
    """A model on every kind of GPU the hosts have. `unknown` says why a size could not be computed."""

    on: Mapping[str, Sizing]
    unknown: tuple[str, ...]
    hosts: frozenset[str] | None
    """Hosts whose GPUs are large enough; None when no size is known, so any may be."""


def plan(
    config_file: Annotated[Path | None, typer.Argument(help="Deployment config (YAML).")] = None,
    from_file: Annotated[Path | None, typer.Option("--from", help="Plan on a recording instead of this host.")] = None,
    suggest_for: Annotated[
        str | None, typer.Option("--suggest", help="Quantization guide for builtin:..., a folder or a config.json.")
    ] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="With --suggest: name in the accelerator catalogue.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show whether a config fits: memory, context, placement by links, and the most each model can do."""
    if (config_file is None) == (suggest_for is None):
        raise UsageError("give a deployment config, or --suggest MODEL --gpu NAME")
    if suggest_for is not None:
        print_suggestion(suggest_for, gpu, json_output)
    elif config_file is not None:
        if gpu is not None:
            raise UsageError(f"--gpu {gpu} goes with --suggest; a config is planned on the GPUs of its hosts")
        print_plan(config_file, load_config(config_file), known_hosts(from_file), json_output)


def print_suggestion(model: str, gpu: str | None, json_output: bool) -> None:
    """The quantization guide of one model on one kind of GPU."""
    if gpu is None:
        raise UsageError(f"--suggest {model}: name the card with --gpu, for example --gpu L40S")
    card = need_accelerator(gpu)
    guide = suggest(model_facts(read_model_config(model), model), card, link=assumed_link(card))
    if json_output:
        typer.echo(json.dumps({"model": model, "gpu": card.name, **guide_json(guide)}, indent=2))
    else:
        print_guide(Console(), model, card.name, guide)


def print_plan(config_file: Path, config: DeploymentConfig, hosts: Sequence[Host], json_output: bool) -> None:
    """Sizes, then the placement. UsageError, after what is known was printed, when something does not fit."""
    on_gpus = {name: model for name, model in config.models.items() if model.gpus}
    sizes = {name: size_model(name, model, hosts) for name, model in on_gpus.items()}
    refused = refusals(sizes)
    found = None if refused else placement(hosts, wants(on_gpus, sizes))
    if json_output:
        data = {"models": {name: sizing_data(size) for name, size in sizes.items()}}
        typer.echo(json.dumps({**data, "placement": None if found is None else placement_data(found)}, indent=2))
    else:
        show(Console(), config, sizes, hosts, found)
    if refused:
        raise UsageError("\n".join(f"{config_file}: {line}" for line in refused))
    if found is not None and not found.fits:
        lines = [f"models.{item.model}.replicas: {item.reason}" for item in found.models if not item.fits]
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
            console.print(f"{name}: {reason}", style="yellow", highlight=False)
        for item in size.on.values():
            print_fit(console, name, item.facts, item.fit)
            if item.ceilings:
                print_ceilings(console, name, list(item.ceilings))
            if item.splits is not None:
                print_parallelism(console, name, item.splits)
    for part in placement_view(hosts, found) if found is not None else ():
        console.print(part)


def size_model(name: str, model: ModelConfig, hosts: Sequence[Host]) -> ModelSizing:
    """The model's size on every kind of GPU among the hosts."""
    try:
        facts = model_facts(read_model_config(config_of(model.source)), name)
    except UsageError as error:
        return ModelSizing({}, (f"size unknown, only placed: {error}",), hosts_for(model, hosts))
    largest = max((len(host.gpus) for host in hosts), default=1)
    on: dict[str, Sizing] = {}
    unknown: dict[str, str] = {}
    able: set[str] = set()
    for host in hosts:
        for card_name in dict.fromkeys(gpu.name for gpu in host.gpus):
            card = find_accelerator(card_name)
            if card is None:
                unknown[card_name] = unknown_accelerator_message(card_name)
                able.add(host.name)
            elif plays(model, card):
                if card.name not in on:
                    on[card.name] = size_on(facts, card, model, measured_link(host), largest)
                if isinstance(on[card.name].fit, Fits):
                    able.add(host.name)
    if not on and not unknown and isinstance(model.engine, SimulatorConfig):
        raise UsageError(f"models.{name}.engine.gpu: {model.engine.gpu!r} is on none of the hosts ({kinds(hosts)})")
    return ModelSizing(on, tuple(unknown.values()), frozenset(able))


def hosts_for(model: ModelConfig, hosts: Sequence[Host]) -> frozenset[str] | None:
    """Hosts of a simulated model's card where its size is unknown; None: any."""
    if not isinstance(model.engine, SimulatorConfig):
        return None
    cards = {host.name: [find_accelerator(gpu.name) for gpu in host.gpus] for host in hosts}
    return frozenset(name for name, found in cards.items() if any(card and plays(model, card) for card in found))


def plays(model: ModelConfig, card: Accelerator) -> bool:
    """False for a simulated engine that behaves like another card than this one."""
    return not isinstance(model.engine, SimulatorConfig) or need_accelerator(model.engine.gpu).name == card.name


def kinds(hosts: Sequence[Host]) -> str:
    return ", ".join(sorted({gpu.name for host in hosts for gpu in host.gpus})) or "no GPU"


def config_of(source: str) -> str:
    """Where a model's config.json is: a builtin or folder as it is. UsageError for a hub id, which is not looked up."""
    if source.startswith(PREFIX) or Path(source).exists():
        return source
    raise UsageError(f"{source}: no such folder, and hub ids are not looked up; plan with a folder or a builtin shape")


def size_on(facts: ModelFacts, card: Accelerator, model: ModelConfig, measured: Link | None, largest: int) -> Sizing:
    """Memory and ceilings of one replica on this card."""
    settings, link = engine_settings(model), measured or assumed_link(card)
    if isinstance(model.engine, VllmConfig):
        settings = with_draft(settings, model.engine.speculative, facts)
    found = fit(facts, card, settings, largest_tensor_parallel=largest)
    if isinstance(found, Refusal):
        return Sizing(facts, found)
    most = found.largest_batch(INPUT_TOKENS + OUTPUT_TOKENS)
    tops = tuple(
        ceiling(facts, card, settings, batch=batch, input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, link=link)
        for batch in (*(size for size in BATCHES if size < most), *((most,) if most else ()))
    )
    splits = compare_parallelism(facts, card, settings, link, gpus=model.gpus) if model.gpus > 1 else None
    return Sizing(facts, found, tops, splits)


def measured_link(host: Host) -> Link | None:
    """What the probe measured on the host's fastest pair; None where nothing was measured."""
    rates = []
    for a, b in combinations([gpu.uuid for gpu in host.gpus], 2):
        seen = host.link(a, b).measured
        if seen and seen.a_to_b_bytes_per_s and seen.b_to_a_bytes_per_s and seen.latency_s:
            rates.append((min(seen.a_to_b_bytes_per_s, seen.b_to_a_bytes_per_s), seen.latency_s))
    if not rates:
        return None
    speed, latency_s = max(rates)
    return Link(speed, latency_s, f"measured on the best pair of {host.name}")


def refusals(sizes: Mapping[str, ModelSizing]) -> list[str]:
    """One line for each model that fits on no host: why, and the nearest settings that do."""
    lines = []
    for name, size in sizes.items():
        if size.hosts is not None and not size.hosts and size.on:
            for card, item in size.on.items():
                if isinstance(item.fit, Refusal):
                    lines.append(refusal_line(name, card, item.fit))
    return lines


def refusal_line(name: str, card: str, refusal: Refusal) -> str:
    nearest = "; ".join(near.change for near in refusal.nearest) or "none"
    return f"models.{name} does not fit on {card}: {refusal.reason}. Nearest: {nearest}"


def misfits(config: DeploymentConfig, gpu_name: str | None) -> list[str]:
    """One line for each model that has too little memory on a fleet of this card, as far as that can be computed."""
    card = find_accelerator(gpu_name) if gpu_name else None
    lines = []
    for name, model in config.models.items():
        if card is None or not model.gpus or isinstance(model.engine, SimulatorConfig):
            continue
        with suppress(UsageError):  # a hub id or an unknown architecture: its size is not known
            facts = model_facts(read_model_config(config_of(model.source)), name)
            found = size_on(facts, card, model, None, model.gpus).fit
            if isinstance(found, Refusal):
                lines.append(refusal_line(name, card.name, found))
    return lines


def wants(models: Mapping[str, ModelConfig], sizes: Mapping[str, ModelSizing]) -> list[Want]:
    """What the planner is asked for."""
    return [
        Want(name, model.gpus, model.replicas.min, model.replicas.max, sizes[name].hosts)
        for name, model in models.items()
    ]


def sizing_data(size: ModelSizing) -> dict[str, Any]:
    """A model's sizes as plain data."""
    return {"unknown": list(size.unknown), "on": {card: one_sizing(item) for card, item in size.on.items()}}


def one_sizing(item: Sizing) -> dict[str, Any]:
    best = None if item.splits is None else {"split": item.splits.better, "reason": item.splits.reason}
    return {
        "parameters": item.facts.parameters,
        **fit_json(item.fit),
        "ceilings": [ceiling_data(top) for top in item.ceilings],
        "better_split": best,
    }


def ceiling_data(top: Ceiling) -> dict[str, Any]:
    return {
        "batch": top.batch,
        "input_tokens": top.input_tokens,
        "output_tokens": top.output_tokens,
        "ms_per_token": top.decode_step_s * 1e3,
        "prompt_ms": top.prefill_s * 1e3,
        "output_tokens_per_s": top.output_tokens_per_s,
        "requests_per_s": top.requests_per_s,
        "output_tokens_per_joule": top.output_tokens_per_joule,
    }
