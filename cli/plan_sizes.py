"""The sizes that `raylane plan` shows: each model on each kind of GPU the hosts have, and over which links."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from raylane.cli.sizing import fit_json
from raylane.cluster.catalog import Accelerator, find_accelerator, need_accelerator, unknown_accelerator_message
from raylane.cluster.choose import DOMAIN_SIZES
from raylane.cluster.domains import domains
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Host, LinkMeasurement, Verdict
from raylane.deployments.config.builtin import PREFIX
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.engines.simulator.config import SimulatorConfig
from raylane.deployments.engines.words import in_words_of
from raylane.deployments.sizing.checkpoint import read_model_facts
from raylane.deployments.sizing.engine_settings import engine_settings
from raylane.deployments.sizing.fit import Fits, Refusal, fit
from raylane.deployments.sizing.memory import doubts
from raylane.deployments.sizing.model_facts import ModelFacts
from raylane.deployments.sizing.parallelism import ParallelismComparison, compare_parallelism
from raylane.deployments.sizing.roofline import Ceiling, Link, assumed_link, ceiling

INPUT_TOKENS, OUTPUT_TOKENS = 512, 256  # the request that ceilings are given for
BATCHES = (1, 8, 32, 128)


@dataclass(frozen=True)
class Sizing:
    """One model on one kind of GPU: memory, ceilings and, for several GPUs, the ways to split it."""

    facts: ModelFacts
    fit: Fits | Refusal
    ceilings: tuple[Ceiling, ...] = ()
    caveats: tuple[str, ...] = ()
    """What the ceilings leave out or assume: a real engine may be faster for these reasons."""
    splits: ParallelismComparison | None = None
    notes: tuple[str, ...] = ()
    """What makes the answer doubtful, whichever it is."""


@dataclass(frozen=True)
class ModelSizing:
    """A model on every kind of GPU the hosts have. `unknown` says why a size could not be computed."""

    on: Mapping[str, Sizing]
    unknown: tuple[str, ...]
    cards: frozenset[str] | None
    """Names of the hosts' GPUs that are large enough; None when no size is known, so any may be."""


def size_model(name: str, model: ModelConfig, hosts: Sequence[Host]) -> ModelSizing:
    """The model's size on every kind of GPU among the hosts, or why nothing can be said about it."""
    cards = {gpu.name: find_accelerator(gpu.name) for host in hosts for gpu in host.gpus}
    missing = [gpu_name for gpu_name, card in cards.items() if card is None]
    played = played_card(name, model)
    known = {gpu_name: card for gpu_name, card in cards.items() if card and played in (None, card.name)}
    if played is not None and not known and not missing:
        raise UsageError(f"models.{name}.engine.gpu: {played!r} is on none of the hosts ({kinds(hosts)})")
    try:
        facts = read_model_facts(config_of(model.source))
        on = {card.name: size_on(facts, card, model, hosts) for card in dict.fromkeys(known.values())}
    except UsageError as error:
        anywhere = None if played is None else frozenset({*known, *missing})
        return ModelSizing({}, (f"size unknown, only placed: {error}",), anywhere)
    large = {gpu_name for gpu_name, card in known.items() if isinstance(on[card.name].fit, Fits)}
    unknown = tuple(unknown_accelerator_message(gpu_name) for gpu_name in missing)
    return ModelSizing(on, unknown, frozenset({*large, *missing}))


def played_card(name: str, model: ModelConfig) -> str | None:
    """The card that a simulated engine behaves like, by its name in the catalogue; None for a real engine."""
    if not isinstance(model.engine, SimulatorConfig):
        return None
    try:
        return need_accelerator(model.engine.gpu).name
    except UsageError as error:
        raise UsageError(f"models.{name}.engine.gpu: {error}") from error


def kinds(hosts: Sequence[Host]) -> str:
    return ", ".join(sorted({gpu.name for host in hosts for gpu in host.gpus})) or "no GPU"


def config_of(source: str) -> str:
    """Where a model's config.json is: a builtin or folder as it is. UsageError for a hub id, which is not looked up."""
    if source.startswith(PREFIX) or Path(source).exists():
        return source
    raise UsageError(f"{source}: no such folder, and hub ids are not looked up; plan with a folder or a builtin shape")


def size_on(facts: ModelFacts, card: Accelerator, model: ModelConfig, hosts: Sequence[Host]) -> Sizing:
    """Memory and ceilings of one replica on this card, as these hosts have it."""
    settings, measured = engine_settings(model, facts), measured_link(hosts, card)
    link = measured or assumed_link(card, nvlinks(hosts, card, model.gpus))
    largest = most_gpus(hosts, card) if hosts else model.gpus
    found = in_words_of(model.engine.kind, fit(facts, card, settings, largest_tensor_parallel=largest))
    notes = doubts(facts, settings)
    if isinstance(found, Refusal):
        return Sizing(facts, found, notes=notes)
    most = found.largest_batch(INPUT_TOKENS + OUTPUT_TOKENS)
    tops = tuple(
        ceiling(facts, card, settings, batch=batch, input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, link=link)
        for batch in (*(size for size in BATCHES if size < most), *((most,) if most else ()))
    )
    splits = compare_parallelism(facts, card, settings, link, gpus=model.gpus) if model.gpus > 1 else None
    speculates = bool(model.engine.sizes().speculative)
    return Sizing(facts, found, tops, caveats(speculates, model.gpus, measured, link), splits, notes)


def caveats(speculates: bool, gpus: int, measured: Link | None, link: Link) -> tuple[str, ...]:
    """Why a real engine may pass these ceilings."""
    found = []
    if speculates:
        found.append("ceilings leave speculation out: guessed tokens that are right come on top")
    if gpus > 1 and measured is None:
        found.append(f"links are not measured ({link.source}): faster ones raise the ceilings, slower ones lower them")
    return tuple(found)


def most_gpus(hosts: Sequence[Host], card: Accelerator) -> int:
    """GPUs of this kind on the host that has most of them."""
    names = names_of(hosts, card)
    return max((sum(gpu.name in names for gpu in host.gpus) for host in hosts), default=1)


def names_of(hosts: Sequence[Host], card: Accelerator) -> frozenset[str]:
    """What the drivers of these hosts call this card; empty where none has it."""
    found = {name: find_accelerator(name) for name in {gpu.name for host in hosts for gpu in host.gpus}}
    return frozenset(name for name, known in found.items() if known is not None and known.name == card.name)


def measured_link(hosts: Sequence[Host], card: Accelerator) -> Link | None:
    """What the probe measured on the fastest pair of this card, whichever host it is on; None: nothing was measured."""
    names, rates = names_of(hosts, card), []
    for host in hosts:
        uuids = {gpu.uuid for gpu in host.gpus if gpu.name in names}
        pairs = [link.measured for link in host.links if link.measured and {link.a, link.b} <= uuids]
        rates += [(*rate, host.name) for seen in pairs if (rate := pair_rate(seen))]
    if not rates:
        return None
    speed, latency_s, host_name = max(rates, key=lambda rate: (rate[0], -rate[1]))
    return Link(speed, latency_s, f"measured on the best pair of {host_name}")


def nvlinks(hosts: Sequence[Host], card: Accelerator, gpus: int) -> int | None:
    """The fewest NVLink links of a pair in the domains for a replica on `gpus` of this card; None: a pair has none."""
    if not any(link.nvlink_count for host in hosts for link in host.links):
        return None
    names = names_of(hosts, card)
    size = next((size for size in DOMAIN_SIZES if size >= gpus), DOMAIN_SIZES[-1])
    counts = []
    for host in hosts:
        of_card = {gpu.uuid for gpu in host.gpus if gpu.name in names}
        links = {frozenset((link.a, link.b)): link.nvlink_count or 0 for link in host.links}
        for domain in domains(host, size):
            if len(domain.uuids) >= gpus and of_card.issuperset(domain.uuids):
                counts += [links.get(frozenset(pair), 0) for pair in combinations(domain.uuids, 2)]
    return min(counts, default=0) or None


def pair_rate(seen: LinkMeasurement) -> tuple[float, float] | None:
    """Bytes per second in the slower direction and latency; None for a broken pair or one that was not timed."""
    there, back = seen.a_to_b_bytes_per_s, seen.b_to_a_bytes_per_s
    if seen.verdict is Verdict.BROKEN or there is None or back is None or seen.latency_s is None:
        return None
    return min(there, back), seen.latency_s


def sizing_data(size: ModelSizing) -> dict[str, Any]:
    """A model's sizes as plain data."""
    return {"unknown": list(size.unknown), "on": {card: one_sizing(item) for card, item in size.on.items()}}


def one_sizing(item: Sizing) -> dict[str, Any]:
    best = None if item.splits is None else {"split": item.splits.better, "reason": item.splits.reason}
    return {
        "parameters": item.facts.parameters,
        **fit_json(item.fit),
        "notes": list(item.notes),
        "ceilings": [ceiling_data(top) for top in item.ceilings],
        "caveats": list(item.caveats),
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
