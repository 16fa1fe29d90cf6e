"""`raylane profiles`: named engine settings, the command line they become, and what fits."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from raylane.cli.sizing import fit_json, print_fit
from raylane.cli.tables import WholeTable, table_console
from raylane.cluster.allreduce import AllReduceSettings
from raylane.cluster.catalog import need_accelerator
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.config.profiles import Profile, need_profile, profiles
from raylane.deployments.engines.base import Seat
from raylane.deployments.engines.vllm.engine import VllmEngine
from raylane.deployments.engines.words import in_words_of
from raylane.deployments.sizing.engine_settings import engine_settings
from raylane.deployments.sizing.fit import Fits, Refusal, fit
from raylane.deployments.sizing.profile_facts import profile_facts

SOURCE, SERVED = "MODEL", "NAME"


def profiles_command(
    name: Annotated[str | None, typer.Argument(help="Print everything about this one.")] = None,
    json_output: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List the named engine settings, or print one: its settings, its vllm command line and what fits."""
    if json_output:
        chosen = profiles() if name is None else {name: need_profile(name)}
        typer.echo(json.dumps({key: profile_data(key, profile) for key, profile in chosen.items()}, indent=2))
    elif name is None:
        table_console().print(listing(profiles()))
    else:
        show(table_console(), name, need_profile(name))


def listing(every: Mapping[str, Profile]) -> WholeTable:
    """All profiles in a table, a line for each card."""
    table = WholeTable(box=None, pad_edge=False)
    for heading in ("profile", "model", "GPU", "KV tokens"):
        lines = heading in ("GPU", "KV tokens")  # of one card each, side by side
        table.add_column(heading, justify="right" if heading == "KV tokens" else "left", no_wrap=lines)
    table.add_column("purpose")
    for name, profile in every.items():
        size = f"{profile_facts(profile).parameters / 1e9:.0f}B {profile.weights}"
        found = fits(name, profile)
        cards = "\n".join(f"{profile.tensor_parallel}x {card}" for card in found)
        room = "\n".join(f"{item.kv_tokens:,}" if isinstance(item, Fits) else "no" for item in found.values())
        table.add_row(name, size, cards, room, profile.purpose)
    return table


def show(console: Console, name: str, profile: Profile) -> None:
    """One profile for a terminal."""
    for heading in ("purpose", "trades", "source"):
        console.print(f"{heading}: {getattr(profile, heading)}", highlight=False, soft_wrap=True)
    console.print(f"checkpoint: {checkpoint(profile)}", highlight=False, soft_wrap=True)
    settings = {"tensor_parallel": profile.tensor_parallel, "engine": profile.engine}
    console.print("\n" + yaml.safe_dump(settings, sort_keys=False), highlight=False, soft_wrap=True)
    console.print(command_line(name) + "\n", highlight=False, soft_wrap=True)
    for found in fits(name, profile).values():
        print_fit(console, name, profile_facts(profile), found)
    for card, refusal in refused(name, profile).items():
        asked = ", ".join(f"{key} {value}" for key, value in profile.refused.items())
        console.print(f"\nwith {asked} on {card}:", highlight=False)
        print_fit(console, name, profile_facts(profile), refusal)


def checkpoint(profile: Profile) -> str:
    """What the model's files must be."""
    facts = profile_facts(profile)
    return (
        f"{facts.parameters / 1e9:.0f}B, {profile.weights} weights, checked with builtin:{profile.shape} and "
        f"{facts.max_position_embeddings:,} positions"
    )


def model_of(name: str, **own: Any) -> ModelConfig:
    """A model served with the profile, as a deployment config would have it."""
    return ModelConfig.from_data({"source": SOURCE, "engine": {"profile": name, **own}}, f"profile {name}")


def arguments(name: str) -> tuple[str, ...]:
    """What the engine gives vLLM's server; MODEL, NAME, host and port stand for the deployment's own."""
    links = AllReduceSettings((), custom_all_reduce=True, reason="links are those of the host it runs on")
    seat = Seat("127.0.0.1", 8000, range(0), (), "", Path(), links)
    return VllmEngine(SERVED, model_of(name), SOURCE).arguments(seat)


def command_line(name: str) -> str:
    """The same for a shell; `vllm serve` takes the model by position."""
    _, source, *others = arguments(name)
    return shlex.join(("vllm", "serve", source, *others))


def fits(name: str, profile: Profile, **own: Any) -> dict[str, Fits | Refusal]:
    """Room on each of the profile's cards; `own` keys stand in place of the profile's."""
    model, facts = model_of(name, **own), profile_facts(profile)
    settings = engine_settings(model, facts)
    settings = replace(settings, quantization=settings.quantization or profile.quantization)
    found = {card: fit(facts, need_accelerator(card), settings) for card in profile.gpus}
    return {card: in_words_of(model.engine.kind, item) for card, item in found.items()}


def refused(name: str, profile: Profile) -> dict[str, Fits | Refusal]:
    """What becomes of the published recipe's keys; nothing where the profile names none."""
    return fits(name, profile, **profile.refused) if profile.refused else {}


def profile_data(name: str, profile: Profile) -> dict[str, Any]:
    """One profile as plain data."""
    return {
        **profile.model_dump(mode="json"),
        "command": command_line(name),
        "fit": {card: dict(fit_json(found)) for card, found in fits(name, profile).items()},
        "refused_fit": {card: dict(fit_json(found)) for card, found in refused(name, profile).items()},
    }
