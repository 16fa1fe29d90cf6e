"""What a quantized checkpoint declares in its config.json: the format of its weights and the size of groups. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylane.deployments.sizing.config_json import ConfigJson
from raylane.deployments.sizing.quantization.formats import DEFAULT_GROUP_SIZE, NO_GROUPS, named
from raylane.deployments.sizing.quantization.kv_cache import checkpoint_kv_cache_dtype
from raylane.deployments.sizing.quantization.linears import Linear
from raylane.deployments.sizing.quantization.skips import UnsizedError
from raylane.deployments.sizing.quantization.stored import Stored, stored_matrices


@dataclass(frozen=True)
class Checkpoint:
    """How a checkpoint is stored. Where that has no size, `stored` is empty and `quantization` no known format."""

    quantization: str | None
    group_size: int
    stored: tuple[Stored, ...]
    kv_cache_dtype: str


def read_checkpoint(config: ConfigJson, linears: Sequence[Linear]) -> Checkpoint:
    """What the config.json says of these matrices and of the KV cache. UsageError for a group size that is none."""
    group_size, declared = checkpoint_group_size(config), _declared(config.values)
    kv_cache_dtype = checkpoint_kv_cache_dtype(config.values, declared)
    name = checkpoint_quantization(config.values)
    if declared is None or name is None:
        return Checkpoint(None, group_size, (), kv_cache_dtype)
    try:
        return Checkpoint(name, group_size, stored_matrices(declared, linears), kv_cache_dtype)
    except UnsizedError as reason:
        says_why = named(name) is None and (str(reason).startswith(name) or name.endswith(")") or "-bit" in name)
        unknown = name if says_why and " and " not in name else f"{name}: {reason}"
        return Checkpoint(unknown, group_size, (), kv_cache_dtype)


def checkpoint_quantization(config: Mapping[str, Any]) -> str | None:
    """The weight format a quantized checkpoint declares in its config.json; None for plain weights.

    Where the bits are others than a known format's, the answer is a name that says so ("3-bit gptq").
    """
    declared = _declared(config)
    if declared is None:
        return None
    method = str(declared.get("quant_method") or "").lower().replace("compressed_tensors", "compressed-tensors")
    if method in {"gptq", "awq"}:
        bits = declared.get("bits", declared.get("w_bit", 4))
        return {"4": method, "8": "int8"}.get(str(bits), f"{bits}-bit {method}")
    if method == "bitsandbytes":
        return "int8" if declared.get("load_in_8bit") else method
    if method.startswith("modelopt"):
        algorithm = str(_object(declared, "quantization", declared).get("quant_algo") or "without quant_algo")
        return _MODELOPT.get(algorithm.upper(), f"modelopt {algorithm}")
    return _compressed(declared) if method == "compressed-tensors" else method or None


def _declared(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the checkpoint says of its weights, by the keys and in the places where vLLM 0.29 looks for it."""
    text = config.get("text_config")
    places = (config, text) if isinstance(text, Mapping) else (config,)
    found = (place.get(key) for place in places for key in ("quantization_config", "compression_config"))
    return next((each for each in found if isinstance(each, Mapping)), None)


def _object(of: object, key: str, otherwise: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """The object at a key; `otherwise`, or an empty one, where there is none."""
    found = of.get(key) if isinstance(of, Mapping) else None
    return found if isinstance(found, Mapping) else otherwise or {}


def _compressed(declared: Mapping[str, Any]) -> str | None:
    """The one format of all groups of a compressed-tensors checkpoint; None where only the KV cache has one."""
    groups = [
        _object(group, "weights")
        for group in _object(declared, "config_groups").values()
        if not _of_attention(_object({"group": group}, "group").get("targets"))
    ]
    found = {(str(weights.get("num_bits")), str(weights.get("type", "int"))) for weights in groups if weights}
    if len(found) == 1 and (only := next(iter(found))) in _COMPRESSED:
        return _COMPRESSED[only]
    if not found and _object(declared, "kv_cache_scheme") and not groups:
        return None
    stored = " and ".join(sorted(f"{bits}-bit {kind}" for bits, kind in found)) or "no weights named"
    return f"compressed-tensors ({stored})"


def _of_attention(targets: object) -> bool:
    """Whether a group is of the KV cache and not of weights."""
    return isinstance(targets, list) and len(targets) == 1 and str(targets[0]).endswith("Attention")


_COMPRESSED = {("4", "int"): "int4", ("8", "int"): "int8", ("8", "float"): "fp8"}
# Names of vLLM 0.29 (quantization/modelopt.py) and of TensorRT-LLM's QuantAlgo.
_MODELOPT = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8",
    "FP8_BLOCK_SCALES": "fp8",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "MXFP8": "mxfp8",
    "W4A16_AWQ": "awq",
    "W8A8_SQ_PER_CHANNEL": "int8",
}


def checkpoint_group_size(config: ConfigJson) -> int:
    """Weights that share a scale in the checkpoint's 4-bit formats; -1 where a whole column shares one.

    Where layers differ it is the smallest. UsageError for what is neither.
    """
    config.inner("quantization_config")  # an object, or an error
    declared = _declared(config.values)
    if declared is None or checkpoint_quantization(config.values) not in {"awq", "gptq", "int4"}:
        return DEFAULT_GROUP_SIZE
    declared = _object(declared, "quantization", declared)
    if groups := _object(declared, "config_groups"):
        sizes = [_group_size(_object(group, "weights"), NO_GROUPS, config) for group in groups.values()]
        return min((size for size in sizes if size != NO_GROUPS), default=NO_GROUPS)
    return _group_size(declared, DEFAULT_GROUP_SIZE, config)


def _group_size(declared: Mapping[str, Any], otherwise: int, config: ConfigJson) -> int:
    key = "q_group_size" if "q_group_size" in declared else "group_size"
    found = declared.get(key)
    if found is None:
        return otherwise
    return NO_GROUPS if found == NO_GROUPS else config.positive_whole(f"quantization_config.{key}", found)
