"""The nearest settings that fit, for a deployment that does not. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from raylane.cluster.catalog import Accelerator
from raylane.deployments.sizing.memory import Alternative, EngineSettings, Fits, check
from raylane.deployments.sizing.model_facts import ModelFacts

HOW_MANY = 3
SMALLEST_CONTEXT = 1024
MOST_MEMORY = 0.95


@dataclass(frozen=True)
class _Change:
    """One setting moved."""

    distance: float
    """How far this is from what was asked for; smaller is tried first."""
    words: str
    values: Mapping[str, Any]
    implies: frozenset[str] = frozenset()
    """Words of smaller changes of the same kind: useless when one of those already suffices."""


_NOTHING = _Change(0, "", {})


def nearest_that_fit(
    facts: ModelFacts, gpu: Accelerator, settings: EngineSettings, largest_tensor_parallel: int
) -> tuple[Alternative, ...]:
    """Up to three changes that make `settings` fit, the least drastic first.

    More of the card's memory is nearer than a shorter context, that nearer than an 8-bit KV cache, smaller weights,
    or more GPUs (tensor parallel before pipeline). A change is left out when a part of it already suffices.
    """
    combinations = product(
        _memory(settings),
        _kv_types(gpu, settings),
        _formats(gpu, settings),
        _more_gpus(settings, largest_tensor_parallel),
    )
    found: list[tuple[frozenset[str], Alternative]] = []
    for changes in sorted(combinations, key=lambda changes: sum(change.distance for change in changes)):
        made = frozenset(change.words for change in changes if change.words)
        covered = made.union(*(change.implies for change in changes))
        if any(earlier <= covered for earlier, _ in found):
            continue
        result = check(facts, gpu, _apply(settings, changes))
        if isinstance(result, Fits):
            words = ", ".join(change.words for change in changes if change.words)
            found.append((made, Alternative(words, result)))
    shorter = _shorter(facts, gpu, settings)
    ranked = ([shorter] if shorter else []) + [alternative for _, alternative in found]
    return tuple(ranked[:HOW_MANY])


def _apply(settings: EngineSettings, changes: Iterable[_Change]) -> EngineSettings:
    values: dict[str, Any] = {}
    for change in changes:
        values |= change.values
    return replace(settings, **values)


def _shorter(facts: ModelFacts, gpu: Accelerator, settings: EngineSettings) -> Alternative | None:
    """The same settings with the longest context that fits, when that is worth serving."""
    probe = check(facts, gpu, replace(settings, max_model_len=SMALLEST_CONTEXT))
    if not isinstance(probe, Fits):
        return None
    longest = probe.longest_request(settings.max_model_len or facts.max_position_embeddings)
    length = longest // SMALLEST_CONTEXT * SMALLEST_CONTEXT
    result = check(facts, gpu, replace(settings, max_model_len=length))
    return Alternative(f"max_model_len {length}", result) if isinstance(result, Fits) else None


def _memory(settings: EngineSettings) -> Iterator[_Change]:
    yield _NOTHING
    if settings.gpu_memory_utilization < MOST_MEMORY:
        yield _set(1, "gpu_memory_utilization", MOST_MEMORY)


def _kv_types(gpu: Accelerator, settings: EngineSettings) -> Iterator[_Change]:
    """An 8-bit cache on cards that have FP8."""
    yield _NOTHING
    if gpu.fp8_flops and not settings.kv_cache_dtype.startswith("fp8"):
        yield _set(2, "kv_cache_dtype", "fp8")


def _formats(gpu: Accelerator, settings: EngineSettings) -> Iterator[_Change]:
    """Smaller weights, unless the user or the checkpoint has chosen a format already."""
    yield _NOTHING
    if settings.quantization is None:
        yield _set(3, "quantization", "fp8" if gpu.fp8_flops else "int8")
        yield _set(4, "quantization", "awq")


def _more_gpus(settings: EngineSettings, largest: int) -> Iterator[_Change]:
    """Other powers of two of GPUs; twice as many is about as far as quantizing the weights."""
    yield _NOTHING
    if 2 * settings.gpus <= largest:
        yield _set(5, "pipeline_parallel", 2 * settings.pipeline_parallel)
    smaller: frozenset[str] = frozenset()
    for tp in (1, 2, 4, 8):
        if tp != settings.tensor_parallel and tp * settings.pipeline_parallel <= largest:
            distance = 4.5 * max(tp / settings.tensor_parallel, settings.tensor_parallel / tp) / 2
            change = _set(distance, "tensor_parallel", tp)
            yield replace(change, implies=smaller)
            smaller |= {change.words}


def _set(distance: float, key: str, value: object) -> _Change:
    return _Change(distance, f"{key} {value}", {key: value})
