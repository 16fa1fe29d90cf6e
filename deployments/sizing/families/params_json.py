"""A checkpoint in Mistral's own format: its params.json in the keys of a config.json. Pure.

The names and defaults are those of vLLM 0.29 (vllm/transformers_utils/configs/mistral.py).
"""

from collections.abc import Mapping
from typing import Any

from raylane.cluster.errors import UsageError
from raylane.deployments.sizing.config_json import ConfigJson

LONGEST_UNSAID = 128_000
_NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "tied_embeddings": "tie_word_embeddings",
}
_REQUIRED = ("dim", "n_layers", "n_heads", "hidden_dim", "vocab_size")
_EXPERT_NAMES = {
    "num_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "expert_hidden_dim": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
    "first_k_dense_replace": "first_k_dense_replace",
    "route_every_n": "moe_layer_freq",
}
_ONE_EXPERT = {"num_experts": 1, "num_experts_per_tok": 1, "num_shared_experts": 1}


def config_of_params(params: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What the params.json says, as a config.json says it. UsageError for what vLLM does not read either."""
    found = ConfigJson(params, origin)
    for key in _REQUIRED:
        found.whole(key)
    config: dict[str, Any] = {"num_key_value_heads": None} | {
        _NAMES.get(key, key): value for key, value in params.items()
    }
    kind = str(params.get("model_type", "transformer"))
    config |= {
        "model_type": "mistral" if kind == "transformer" else kind,
        "tie_word_embeddings": bool(params.get("tied_embeddings", False)),
        "max_position_embeddings": found.whole_or_none("max_position_embeddings") or LONGEST_UNSAID,
        "sliding_window": None,
        **_windows(found),
        **_experts(found),
    }
    if (yarn := found.inner("yarn")) is not None:
        config["rope_parameters"] = {"rope_type": "yarn", **yarn.values}
    if (towers := found.inner("multimodal")) is not None:
        config["vision_config"] = towers.values.get("vision_encoder_args")
        config["audio_config"] = towers.values.get("whisper_model_args")
    if (quantization := found.inner("quantization")) is not None:
        config["quantization_config"] = _format(quantization)
    return config


def _windows(params: ConfigJson) -> dict[str, Any]:
    """A list repeats over the layers: a window, or null for a layer that sees everything."""
    said = params.values.get("sliding_window")
    if not isinstance(said, list) or not said:
        return {"sliding_window": said or None}
    for size in said:
        if size is not None:
            params.positive_whole("sliding_window", size)
    sizes = {size for size in said if size is not None}
    if len(sizes) > 1:
        raise UsageError(f"{params.origin}: sliding_window: windows of several sizes cannot be sized (got {said!r})")
    layers = params.whole("n_layers")
    types = ["full_attention" if size is None else "sliding_attention" for size in said] * (layers // len(said))
    return {"sliding_window": next(iter(sizes), None), "layer_types": types}


def _experts(params: ConfigJson) -> dict[str, Any]:
    """A mixture is a Mixtral, one with shared experts or a latent cache DeepSeek's architecture (Mistral Large 3)."""
    experts = params.inner("moe")
    if params.values.get("qk_nope_head_dim") and experts is None:
        alone = {**_ONE_EXPERT, "expert_hidden_dim": params.whole("hidden_dim")}
        experts = ConfigJson({**alone, "first_k_dense_replace": params.whole("n_layers")}, params.origin)
    if experts is None:
        return {}
    named = {new: experts.values[old] for old, new in _EXPERT_NAMES.items() if experts.values.get(old) is not None}
    return {**named, "model_type": "deepseek_v3" if named.get("n_shared_experts") else "mixtral"}


def _format(quantization: ConfigJson) -> Mapping[str, Any]:
    method = str(quantization.values.get("quant_method", "")).casefold().replace("_", "-")
    if quantization.values.get("qformat_weight") == "fp8_e4m3":
        return {"quant_method": "fp8", "activation_scheme": "static"}
    if method == "compressed-tensors":
        return {**quantization.values, "quant_method": method}
    raise UsageError(f"{quantization.origin}: quantization: not a format that vLLM reads (got {quantization.values!r})")
