"""Checkpoints of compressed-tensors (llm-compressor): groups of targets, each with a format, and a list to leave. Pure.

As vllm/model_executor/layers/quantization/compressed_tensors does it (utils.py find_matched_target and
should_ignore_layer, compressed_tensors.py _get_scheme_from_parts).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from raylane.deployments.sizing.quantization.formats import (
    FP8,
    INT8,
    MXFP4,
    MXFP8,
    NO_GROUPS,
    NVFP4,
    WeightFormat,
    grouped,
)
from raylane.deployments.sizing.quantization.linears import Kind, Linear
from raylane.deployments.sizing.quantization.reading import Resolver, an_object, block_of, strings
from raylane.deployments.sizing.quantization.skips import UnsizedError, begins, exact_or_regex, skipped

PACKED = "pack-quantized"


def compressed_tensors(declared: Mapping[str, Any]) -> Resolver:
    """The format of each matrix, by the first of: whole names or patterns, names of all its parts, its class."""
    ignored = strings(declared, "ignore")
    targets = dict(_targets(declared))
    if not targets:
        raise UnsizedError("no weights named")

    def resolve(linear: Linear) -> WeightFormat | None:
        if linear.kind is Kind.EXPERTS:
            return _same(_of_name(part, linear.kind, ignored, targets) for part in _of_first_expert(linear))
        if skipped(linear, ignored, exact_or_regex):
            return None
        target = _matched(linear, targets)
        return targets[target] if target is not None else None

    return resolve


def _targets(declared: Mapping[str, Any]) -> Iterable[tuple[str, WeightFormat]]:
    groups = an_object(declared, "config_groups")
    for name in groups:
        group = an_object(groups, name)
        weights = an_object(group, "weights")
        found = strings(group, "targets") or (("Linear",) if len(groups) == 1 else ())
        if not found:
            raise UnsizedError(f"config_groups.{name} has no targets")
        if len(found) == 1 and found[0].endswith("Attention"):  # the KV cache's, not of weights
            continue
        stored = _stored(weights, str(group.get("format") or declared.get("format")))
        yield from ((target, stored) for target in found)


def _stored(weights: Mapping[str, Any], packing: str) -> WeightFormat:
    bits, kind, strategy = weights.get("num_bits"), str(weights.get("type", "int")), weights.get("strategy")
    size = weights.get("group_size")
    if not isinstance(bits, int) or not isinstance(size, int | None) or not isinstance(strategy, str | None):
        raise UnsizedError(f"{bits}-bit {kind} weights by {strategy}")
    if kind == "float":
        special: Mapping[Any, WeightFormat] = {
            (4, "tensor_group", 16): NVFP4,
            (4, "group", 32): MXFP4,
            (8, "group", 32): MXFP8,
        }
        if (bits, strategy, size) in special:
            return special[bits, strategy, size]
        if bits == 8 and strategy == "block":
            return replace(FP8, block=block_of(weights.get("block_structure")), strict_columns=True)
        if bits == 8 and strategy in {None, "tensor", "channel"}:
            return FP8
    elif bits in {4, 8}:
        if bits == 8 and (packing != PACKED or size in {None, NO_GROUPS}):
            return INT8
        symmetric = weights.get("symmetric", True)
        return grouped("int4" if bits == 4 else "int8", bits, size or NO_GROUPS, zero_points=not symmetric)
    raise UnsizedError(f"{bits}-bit {kind} weights by {strategy}")


def _matched(linear: Linear, targets: Mapping[str, WeightFormat]) -> str | None:
    by_name = _by_name(linear.name, targets)
    if by_name is None and linear.shards:
        parts = [_by_name(name, targets) for name in linear.names()]
        by_name = parts[0] if all(parts) else None
    return by_name or _by_class(linear.kind, targets)


def _by_name(name: str, targets: Iterable[str]) -> str | None:
    return _first(targets, lambda target: exact_or_regex(name, (target,)))


def _by_class(kind: Kind, targets: Iterable[str]) -> str | None:
    """A target that is a part of the class's name, as "Linear" is of QKVParallelLinear; of experts "Linear" as well."""
    name = "Linear" if kind is Kind.EXPERTS else kind.value
    return _first(
        targets,
        lambda target: (
            begins(target[3:], name.split()[0]) if target.startswith("re:") else target.casefold() in name.casefold()
        ),
    )


def _of_first_expert(linear: Linear) -> tuple[str, ...]:
    """vLLM judges all experts of a layer by the first."""
    return tuple(f"{linear.name}.0.{part}" for part in ("gate_proj", "up_proj", "down_proj"))


def _of_name(name: str, kind: Kind, ignored: Iterable[str], targets: Mapping[str, WeightFormat]) -> WeightFormat | None:
    if exact_or_regex(name, tuple(ignored)):
        return None
    target = _by_name(name, targets) or _by_class(kind, targets)
    return targets[target] if target is not None else None


def _same(found: Iterable[WeightFormat | None]) -> WeightFormat | None:
    formats = set(found)
    if len(formats) > 1:
        raise UnsizedError("the matrices of an expert have several formats")
    return formats.pop()


def _first(targets: Iterable[str], suits: Callable[[str], bool]) -> str | None:
    return next((target for target in targets if suits(target)), None)
