"""Checkpoints of NVIDIA's ModelOpt: one algorithm or one for each layer, and wildcards of what is left. Pure.

As vllm/model_executor/layers/quantization/modelopt.py does it (is_layer_excluded, _resolve_quant_algo).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raylane.deployments.sizing.quantization.formats import (
    FP8,
    INT8,
    MXFP8,
    NVFP4,
    WeightFormat,
    grouped,
)
from raylane.deployments.sizing.quantization.linears import Kind, Linear
from raylane.deployments.sizing.quantization.reading import Resolver, an_object, strings, whole
from raylane.deployments.sizing.quantization.skips import UnsizedError, skipped_exactly, substring, wildcard

_BLOCKS = replace(FP8, block=(128, 128), finer_experts=True)
MIXED = "MIXED_PRECISION"
# Names of vLLM (QUANT_ALGOS) and, from FP8_BLOCK_SCALES on, of TensorRT-LLM's QuantAlgo.
_ALGORITHMS: Mapping[str, WeightFormat] = {
    "FP8": FP8,
    "FP8_PER_CHANNEL_PER_TOKEN": FP8,
    "FP8_PB_WO": _BLOCKS,
    "NVFP4": NVFP4,
    "W4A16_NVFP4": NVFP4,
    "MXFP8": MXFP8,
    "FP8_BLOCK_SCALES": _BLOCKS,
    "W8A8_SQ_PER_CHANNEL": INT8,
}
_GROUPED = {"W4A16_AWQ": "awq", "W4A8_AWQ": "awq", "W4A16": "int4", "W4A16_GPTQ": "gptq"}


def modelopt(declared: Mapping[str, Any]) -> Resolver:
    """The format of each matrix. The head counts as well: vLLM quantizes it unless the list leaves it out."""
    legacy = an_object(declared, "quantization")  # as hf_quant_config.json has it
    own = legacy or declared
    left = strings(legacy, "exclude_modules") if legacy else strings(declared, "ignore")
    algorithm = str(own.get("quant_algo") or "").upper()
    layers = an_object(own, "quantized_layers")
    if algorithm == MIXED and not layers:
        raise UnsizedError(f"{MIXED} without quantized_layers")

    def resolve(linear: Linear) -> WeightFormat | None:
        if linear.kind is Kind.TABLE or _left(linear, left):
            return None
        found = _own_layer(linear, layers) if algorithm == MIXED else own
        return None if found is None else _stored(found, own)

    return resolve


def _left(linear: Linear, left: tuple[str, ...]) -> bool:
    """Named as a whole, an entry being a part of the name, or a wildcard for it."""
    parts = [entry for entry in left if entry != linear.name]
    inner = linear.name.removeprefix("language_model.")
    return bool(left) and (
        skipped_exactly(linear, left)
        or substring(linear.name, parts)
        or substring(inner, parts)
        or wildcard(linear.name, left)
    )


def _own_layer(linear: Linear, layers: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What `quantized_layers` says of a matrix: by its name, by those of its parts, or by anything below it."""
    if linear.name in layers:
        return an_object(layers, linear.name)
    found = [an_object(layers, name) for name in linear.names() if name in layers]
    if len({str(item.get("quant_algo")).upper() for item in found}) > 1:
        raise UnsizedError(f"several algorithms within {linear.name}")
    if found:
        return found[0]
    trees = [f"{linear.name}."]
    if linear.kind is Kind.EXPERTS:
        trees.append(linear.name.removesuffix("experts"))
    below = (name for tree in trees for name in layers if name.startswith(tree))
    return next((an_object(layers, name) for name in below), None)


def _stored(own: Mapping[str, Any], whole_file: Mapping[str, Any]) -> WeightFormat:
    algorithm = str(own.get("quant_algo") or "").upper()
    if algorithm in _GROUPED:
        groups = an_object(whole_file, "config_groups")
        sizes = [whole(an_object(an_object(groups, name), "weights"), "group_size", 128) for name in groups]
        size = whole(own, "group_size", min(sizes, default=128))
        return grouped(_GROUPED[algorithm], 4, size)
    if algorithm not in _ALGORITHMS:
        raise UnsizedError(f"modelopt {algorithm or 'without quant_algo'}")
    return _ALGORITHMS[algorithm]
