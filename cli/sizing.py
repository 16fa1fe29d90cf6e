"""Printing of sizing: does it fit, how fast can it be, TP against PP, and the quantization guide."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from raylane.cli.tables import WholeTable
from raylane.deployments.sizing.fit import Fits, Refusal
from raylane.deployments.sizing.memory import doubts
from raylane.deployments.sizing.model_facts import ModelFacts
from raylane.deployments.sizing.parallelism import ParallelismComparison
from raylane.deployments.sizing.roofline import Ceiling, Link
from raylane.deployments.sizing.suggest import Guide

NOT_MADE_WHILE_LOADING = frozenset({"awq", "int8"})
COMPUTED = "computed from data sheets, not measured"


def print_fit(
    console: Console, model: str, facts: ModelFacts, found: Fits | Refusal, notes: Sequence[str] | None = None
) -> None:
    """One model's memory, or why it cannot start and what would; what is doubtful (`notes`) is said of both."""
    if notes is None:
        notes = doubts(facts, found.settings) if isinstance(found, Fits) else facts.notes
    for note in notes:
        say(console, f"  note: {note}")
    size = escape(f"{model}: {facts.parameters / 1e9:.2f} B parameters")
    if isinstance(found, Refusal):
        console.print(f"[bold red]{size} does not fit[/]: {escape(found.reason)}", highlight=False)
        for item in found.nearest:
            say(console, f"  fits with {item.change}: {item.fits.kv_tokens:,} KV tokens")
        return
    card = escape(found.gpu.name)
    console.print(
        f"{size} on {found.settings.gpus}x {card}: weights {found.weight_bytes / 1e9:.1f} GB, workspace "
        f"{found.workspace_bytes / 1e9:.1f} GB, KV cache {found.kv_bytes / 1e9:.1f} GB per GPU; "
        f"[bold]{found.kv_tokens:,}[/] tokens of context",
        highlight=False,
    )


def print_ceilings(console: Console, model: str, ceilings: Sequence[Ceiling], caveats: Sequence[str] = ()) -> None:
    """The most a replica can do at several batch sizes, and for which reasons a real engine may do more."""
    table = WholeTable(title=escape(f"{model}: ceilings of one replica ({COMPUTED})"), title_justify="left")
    for name in ("batch", "in / out", "ms per token", "prompt ms", "output tok/s", "requests/s", "tok/J at TDP"):
        table.add_column(name, justify="right")
    for item in ceilings:
        per_joule = item.output_tokens_per_joule
        table.add_row(
            str(item.batch),
            f"{item.input_tokens} / {item.output_tokens}",
            f"{item.decode_step_s * 1e3:.1f}",
            f"{item.prefill_s * 1e3:.1f}",
            f"{item.output_tokens_per_s:,.0f}",
            f"{item.requests_per_s:.2f}",
            "" if per_joule is None else f"{per_joule:.2f}",
        )
    console.print(table)
    for caveat in caveats:
        say(console, f"  note: {caveat}")


def print_parallelism(console: Console, model: str, found: ParallelismComparison) -> None:
    """Tensor against pipeline parallelism over the same GPUs."""
    table = WholeTable(title=escape(f"{model}: ways to split ({COMPUTED})"), title_justify="left")
    for name in ("split", "KV tokens", "batch", "ms per token", "prompt ms", "output tok/s"):
        table.add_column(name, justify="right")
    for split in found.splits:
        top = split.ceiling
        if top is None or isinstance(split.fit, Refusal):
            reason = split.fit.reason if isinstance(split.fit, Refusal) else ""
            table.add_row(split.name, escape(reason), "", "", "", "")
            continue
        cells = (f"{top.decode_step_s * 1e3:.1f}", f"{top.prefill_s * 1e3:.0f}", f"{top.output_tokens_per_s:,.0f}")
        table.add_row(split.name, f"{split.fit.kv_tokens:,}", str(top.batch), *cells)
    console.print(table)
    say(console, found.reason)


def print_guide(console: Console, model: str, gpu: str, guide: Guide, link: Link, notes: Sequence[str] = ()) -> None:
    """The quantization guide as a table; below it the suggestion, what it assumes of links, and of the checkpoint."""
    title = f"{model} on {gpu}, context {guide.max_model_len:,} ({COMPUTED})"
    table = WholeTable(title=escape(title), title_justify="left")
    for name in ("weights", "GPUs", "GB per GPU", "KV tokens", "full contexts", "tok/s at most", "note"):
        table.add_column(name, justify="left" if name in {"weights", "note"} else "right")
    for option in guide.options:
        name = "16-bit" if option.format == "none" else escape(option.format)
        if isinstance(option.fit, Refusal) or option.ceiling is None:
            table.add_row(name, str(option.gpus), "", "", "", "", f"no: {getattr(option.fit, 'limit', '')}")
            continue
        size, tokens = f"{option.fit.weight_bytes / 1e9:.1f}", f"{option.fit.kv_tokens:,}"
        note = "suggested" if option is guide.best else ""
        rate = f"{option.ceiling.output_tokens_per_s:,.0f} (batch {option.ceiling.batch})"
        table.add_row(name, str(option.gpus), size, tokens, str(option.sequences), rate, note)
    console.print(table)
    say(console, guide.reason)
    for note in notes:
        say(console, f"note: {note}")
    if any(option.gpus > 1 for option in guide.options):
        say(console, f"links: {link.bytes_per_s / 1e9:.0f} GB/s ({link.source})")
    formats = {option.format for option in guide.options}
    for name in sorted(formats & NOT_MADE_WHILE_LOADING) if "none" in formats else ():
        say(console, f"{name} needs a checkpoint in that format")


def say(console: Console, line: str) -> None:
    """One line as it is: what came from outside may look like markup."""
    console.print(line, highlight=False, markup=False)


def fit_json(found: Fits | Refusal) -> Mapping[str, Any]:
    """The same as plain data for --json."""
    if isinstance(found, Refusal):
        nearest = [{"change": item.change, "kv_tokens": item.fits.kv_tokens} for item in found.nearest]
        return {"fits": False, "reason": found.reason, "limit": found.limit.value, "nearest": nearest}
    return {
        "fits": True,
        "gpu": found.gpu.name,
        "gpus": found.settings.gpus,
        "weight_bytes_per_gpu": round(found.weight_bytes),
        "workspace_bytes_per_gpu": round(found.workspace_bytes),
        "kv_bytes_per_gpu": round(found.kv_bytes),
        "kv_tokens": found.kv_tokens,
    }


def guide_json(guide: Guide) -> Mapping[str, Any]:
    """The quantization guide as plain data."""
    options = [
        {
            "format": option.format,
            "gpus": option.gpus,
            "full_contexts": option.sequences,
            "output_tokens_per_s_ceiling": None if option.ceiling is None else option.ceiling.output_tokens_per_s,
            **fit_json(option.fit),
        }
        for option in guide.options
    ]
    best = None if guide.best is None else {"format": guide.best.format, "gpus": guide.best.gpus}
    return {"max_model_len": guide.max_model_len, "options": options, "best": best, "reason": guide.reason}
