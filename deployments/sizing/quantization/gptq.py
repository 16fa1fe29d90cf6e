"""Checkpoints of GPTQ, AWQ and auto-round: integers in groups, with exceptions by name. Pure.

As auto_gptq.py, utils/gptq_utils.py, auto_awq.py and inc/config_parser.py of vLLM do it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raylane.deployments.sizing.quantization.formats import (
    DEFAULT_GROUP_SIZE,
    FP8,
    MXFP4,
    MXFP8,
    WeightFormat,
    grouped,
)
from raylane.deployments.sizing.quantization.linears import Kind, Linear
from raylane.deployments.sizing.quantization.reading import Resolver, an_object, block_of, strings, whole
from raylane.deployments.sizing.quantization.skips import UnsizedError, begins, contains, skipped, substring

_PATTERN = frozenset("*+?^$()[]{}|\\")


def gptq(declared: Mapping[str, Any]) -> Resolver:
    """The base format, changed by the first rule of `dynamic` that describes the name (`-:` leaves it in 16 bits).

    `modules_in_block_to_quantize` names all that is quantized; without it that stands in the weights' files alone,
    and all matrices count as quantized.
    """
    inside = strings(declared, "modules_in_block_to_quantize")
    left = strings(declared, "modules_to_not_convert")
    rules = an_object(declared, "dynamic")

    def resolve(linear: Linear) -> WeightFormat | None:
        if linear.kind is Kind.TABLE or (linear.kind is Kind.HEAD and not declared.get("lm_head")):
            return None
        if skipped(linear, left, substring) or (inside and not _inside(linear, inside)):
            return None
        change = _rule_of_parts(linear, rules)
        return None if change is None else _integers("gptq", {**declared, **change})

    return resolve


def awq(declared: Mapping[str, Any]) -> Resolver:
    """The base format but for what has an entry of the list in its name."""
    left = strings(declared, "modules_to_not_convert")
    stored = _integers("awq", {**declared, "bits": declared.get("w_bit", declared.get("bits", 4))})

    def resolve(linear: Linear) -> WeightFormat | None:
        if linear.kind is Kind.TABLE or (linear.kind is Kind.HEAD and not declared.get("lm_head")):
            return None
        return None if skipped(linear, left, substring) else stored

    return resolve


def auto_round(declared: Mapping[str, Any]) -> Resolver:
    """The base format within the blocks to quantize, changed by `extra_config` for names and patterns."""
    blocks = strings(declared, "block_name_to_quantize", "to_quant_block_names")
    blocks = tuple(name.strip() for entry in blocks for name in entry.split(","))
    extra = an_object(declared, "extra_config")

    def resolve(linear: Linear) -> WeightFormat | None:
        if linear.kind is Kind.TABLE:
            return None
        own = [_own(name, extra) for name in (linear.name, *_parts(linear, extra))]
        found = {str(sorted(item.items())): item for item in own[1:] if item is not None}
        if own[0] is None and (len(found) > 1 or (found and any(item is None for item in own[1:]))):
            raise UnsizedError(f"several formats within {linear.name}")
        change = own[0] if own[0] is not None else next(iter(found.values()), None)
        inside = any(linear.name.startswith(name) for name in blocks) if blocks else linear.kind is not Kind.HEAD
        if change is None and not inside:
            return None
        return _rounded({**declared, "bits": declared.get("bits") if inside else 16, **(change or {})})

    return resolve


def _inside(linear: Linear, names: tuple[str, ...]) -> bool:
    """Of experts vLLM does not ask; `skipped` finds what is in a list as a whole, which is here what is quantized."""
    return linear.kind is Kind.EXPERTS or skipped(linear, names, substring)


def _rule(name: str, rules: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the first rule changes; None where it leaves the matrix in 16 bits."""
    for pattern in rules:
        if pattern.startswith("-:"):
            if begins(pattern[2:], name):
                return None
        elif begins(pattern.removeprefix("+:"), name):
            return {key: value for key, value in an_object(rules, pattern).items() if value is not None}
    return {}


def _rule_of_parts(linear: Linear, rules: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same for what vLLM holds as one: rules for the parts may leave all of them in 16 bits, but change no bits."""
    change = _rule(linear.name, rules)
    parts = [_rule(name, rules) for name in linear.names()]
    if change is None or all(part is None for part in parts):
        return None
    if any(part != change for part in parts):
        raise UnsizedError(f"rules of dynamic for parts of {linear.name}, which vLLM holds as one")
    return change


def _own(name: str, extra: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What `extra_config` says of a name, of its end, or by a pattern."""
    for key in extra:
        if key in {name, f"model.{name}"} or name.endswith(f".{key}"):
            return an_object(extra, key)
    for key in extra:
        if set(key) & _PATTERN and contains(key, name):
            return an_object(extra, key)
    return None


def _parts(linear: Linear, extra: Mapping[str, Any]) -> tuple[str, ...]:
    """The checkpoint's matrices that are held as this one; of experts those that are named."""
    if linear.kind is Kind.EXPERTS:
        return tuple(name for name in extra if name.startswith(linear.name))
    return linear.names() if linear.shards else ()


def _rounded(declared: Mapping[str, Any]) -> WeightFormat | None:
    bits, kind = whole(declared, "bits", 4), str(declared.get("data_type") or "int").replace("fp8", "fp")
    if bits >= 16:
        return None
    if "mx_fp" in kind and bits in {4, 8}:
        return MXFP4 if bits == 4 else MXFP8
    if kind == "fp" and bits == 8 and isinstance(declared.get("group_size"), list | tuple):
        return replace(FP8, block=block_of(declared.get("group_size")), strict_columns=True)
    if kind != "int":
        raise UnsizedError(f"{bits}-bit {kind} of auto-round")
    packing = f"{declared.get('packing_format')} {declared.get('backend')}"
    return _integers("awq" if "awq" in packing else "gptq", declared)


def _integers(name: str, declared: Mapping[str, Any]) -> WeightFormat:
    bits = whole(declared, "bits", 4)
    key = "q_group_size" if "q_group_size" in declared else "group_size"
    size = whole(declared, key, DEFAULT_GROUP_SIZE)
    if bits not in {4, 8}:
        raise UnsizedError(f"{bits}-bit {name}")
    return grouped(name if bits == 4 else "int8", bits, size, finer=True)
