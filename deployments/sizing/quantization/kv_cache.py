"""The type of the KV cache that vLLM takes from a checkpoint when the user names none (`auto`). Pure.

vLLM 0.29 to 0.32: utils/torch_utils.py resolve_kv_cache_dtype_string for ModelOpt, layers/attention/attention.py for
compressed-tensors, which the attention of latent vectors (MLA) does not ask. The scales that checkpoints of Quark,
FP8 and others hold for an FP8 cache are only used when the user asks for one.
"""

from collections.abc import Mapping
from typing import Any

from raylane.deployments.sizing.quantization.reading import an_object

AUTO = "auto"
_MODELOPT = {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}


def checkpoint_kv_cache_dtype(config: Mapping[str, Any], declared: Mapping[str, Any] | None) -> str:
    """`fp8`, `fp8_e4m3`, `nvfp4` or `auto`. `declared` is the config's quantization, wherever it stands."""
    if declared is None:
        return AUTO
    method = str(declared.get("quant_method") or "").lower()
    if method.startswith("modelopt"):
        on_top = config.get("quantization_config") is declared
        return _of_modelopt(declared) if on_top else AUTO
    if method.replace("_", "-") == "compressed-tensors" and an_object(declared, "kv_cache_scheme"):
        text = an_object(config, "text_config") or config
        return AUTO if text.get("kv_lora_rank") else "fp8"
    return AUTO


def _of_modelopt(declared: Mapping[str, Any]) -> str:
    places = (an_object(declared, "quantization"), declared)
    values = (place.get(key) for key in ("kv_cache_scheme", "kv_cache_quant_algo") for place in places)
    found = next((value for value in values if value), None)
    if isinstance(found, Mapping):
        if found.get("type") != "float":
            return AUTO
        bits = found.get("num_bits")
        found = "fp8" if bits == 8 and found.get("dynamic") is False else "nvfp4" if bits == 4 else ""
    return _MODELOPT.get(str(found).lower(), AUTO)
