"""Checkpoints of AMD's Quark: a global format, others for names and wildcards, and a list to leave. Pure.

As vllm/model_executor/layers/quantization/quark does it (quark.py _find_matched_config, utils.py should_ignore_layer).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raylane.deployments.sizing.quantization.formats import FP8, INT8, MXFP4, MXFP8, NVFP4, WeightFormat
from raylane.deployments.sizing.quantization.linears import Kind, Linear
from raylane.deployments.sizing.quantization.reading import Resolver, an_object, block_of, strings
from raylane.deployments.sizing.quantization.skips import UnsizedError, exact_or_regex, skipped, wildcard


def quark(declared: Mapping[str, Any]) -> Resolver:
    """The format of each matrix; of experts one that is left leaves all of the layer."""
    left = strings(declared, "exclude")
    of_layers, otherwise = an_object(declared, "layer_quant_config"), an_object(declared, "global_quant_config")

    def resolve(linear: Linear) -> WeightFormat | None:
        if linear.kind in {Kind.TABLE, Kind.HEAD}:
            return None
        inside = [entry for entry in left if entry == linear.name or entry.startswith(f"{linear.name}.")]
        if skipped(linear, left, exact_or_regex) or (linear.kind is Kind.EXPERTS and inside):
            return None
        found = [_stored(_own(name, of_layers) or otherwise) for name in linear.names()]
        if len(set(found)) > 1:
            raise UnsizedError(f"several formats within {linear.name}")
        return found[0]

    return resolve


def _own(name: str, of_layers: Mapping[str, Any]) -> Mapping[str, Any]:
    suits = (key for key in of_layers if (wildcard(name, (key,)) if "*" in key else name in key))
    key = next(suits, None)
    return {} if key is None else an_object(of_layers, key)


def _stored(config: Mapping[str, Any]) -> WeightFormat:
    weight = config.get("weight")
    if isinstance(weight, list) and len(weight) == 1:
        weight = weight[0]
    if not isinstance(weight, Mapping):
        raise UnsizedError("quark without one format of weights")
    kind, scheme, size = weight.get("dtype"), weight.get("qscheme"), weight.get("group_size")
    if kind == "fp8_e4m3" and scheme == "per_block":
        return replace(FP8, block=block_of(weight.get("block_size")), strict_columns=True)
    if scheme in {"per_tensor", "per_channel"} and kind in {"fp8_e4m3", "int8"}:
        return FP8 if kind == "fp8_e4m3" else INT8
    of_groups: Mapping[Any, WeightFormat] = {("fp4", 16): NVFP4, ("fp4", 32): MXFP4, ("fp8_e4m3", 32): MXFP8}
    if scheme == "per_group" and (kind, size) in of_groups:
        return of_groups[kind, size]
    raise UnsizedError(f"quark {kind} {scheme}")
