"""Which layers of a model cache how much of a request, from its config.json. Pure.

The rules are those of vLLM 0.29 (vllm/model_executor/models, the architecture's file) and, for what a config leaves
out, of transformers 5 (the architecture's configuration class).
"""

from collections import Counter
from dataclasses import dataclass

from raylane.cluster.errors import UsageError
from raylane.deployments.sizing.config_json import ConfigJson
from raylane.deployments.sizing.families.family import Family, Locals

INDEXER_BYTES_PER_TOKEN = 128 + 4
"""The key of DeepSeek's sparse attention in 8 bits, and a scale (vllm/model_executor/models/deepseek_v2.py)."""
SPARSE_FP8_BYTES_PER_TOKEN = 656
"""Latent vector of sparse attention in vLLM's own 8-bit layout (mla_attention.py: fp8_ds_mla)."""
_FULL = frozenset({"full_attention", "attention", "global_attention", "indexed_attention"})
_SLIDING = frozenset({"sliding_attention", "local_attention"})


@dataclass(frozen=True)
class KvLayers:
    """Layers that cache alike."""

    layers: int
    heads: int
    """KV heads, which tensor parallelism shares out and repeats where there are fewer of them than GPUs."""
    numbers: int
    """Cached numbers for a token and head: keys and values."""
    window: int | None = None
    """Newest tokens of a request that a layer sees; None: all."""
    bytes_per_number: int | None = None
    """None: as the KV cache's format says."""
    fp8_bytes_per_token: int | None = None
    """Bytes for a token and head in 8 bits where that is no plain array; None: one for each number."""

    def bytes_per_token(self, element_bytes: float) -> float:
        """Of one layer and one head."""
        if self.fp8_bytes_per_token is not None and element_bytes == 1:
            return self.fp8_bytes_per_token
        return self.numbers * (element_bytes if self.bytes_per_number is None else self.bytes_per_number)


def kv_layers(text: ConfigJson, family: Family, layers: int, kv_heads: int, head_dim: int) -> tuple[KvLayers, ...]:
    """The caches of a model's layers, those that see everything first."""
    if family.latent and family.latent_cache:
        return _latent(text, layers)
    windows = Counter(_windows(text, family, layers))
    ordered = sorted(windows, key=lambda window: (window is not None, window or 0))
    return tuple(KvLayers(windows[window], kv_heads, 2 * head_dim, window) for window in ordered)


def window_notes(caches: tuple[KvLayers, ...]) -> tuple[str, ...]:
    """What to say of layers with a window: their share of the cache depends on the length of requests."""
    every = sum(each.layers for each in caches)
    return tuple(
        f"{each.layers} of {every} layers have a sliding window of {each.window} tokens: tokens of context are counted "
        "in requests of max_model_len, as vLLM logs them"
        for each in caches
        if each.window is not None
    )


def chunk_note(text: ConfigJson) -> tuple[str, ...]:
    """What to say of layers that attend within chunks."""
    chunk = text.whole_or_none("attention_chunk_size")
    if chunk is None or not _chunked(text):
        return ()
    return (f"layers that attend in chunks of {chunk:,} tokens are counted as full ones, as vLLM allocates them",)


def _chunked(text: ConfigJson) -> bool:
    types = text.values.get("layer_types")
    return "chunked_attention" in types if isinstance(types, list) else True


def _latent(text: ConfigJson, layers: int) -> tuple[KvLayers, ...]:
    rank, rope = text.whole("kv_lora_rank"), text.whole("qk_rope_head_dim")
    if text.whole_or_none("index_topk") is None:
        return (KvLayers(layers, 1, rank + rope),)
    sparse = KvLayers(layers, 1, rank + rope, fp8_bytes_per_token=SPARSE_FP8_BYTES_PER_TOKEN)
    return sparse, KvLayers(layers, 1, INDEXER_BYTES_PER_TOKEN, bytes_per_number=1)


def _windows(text: ConfigJson, family: Family, layers: int) -> list[int | None]:
    """What each layer sees; None: everything."""
    types = text.values.get("layer_types")
    if types is not None:
        _check_types(text, types, layers)
    window = _window(text, family)
    if window is None:
        return [None] * layers
    window += family.window_extra
    if family.local is Locals.NEVER:
        return [None] * layers
    if isinstance(types, list) and family.local is not Locals.ABOVE_MAX_WINDOW_LAYERS:
        return [window if kind in _SLIDING else None for kind in types[:layers]]
    return [window if _is_local(text, family, layer, layers) else None for layer in range(layers)]


def _check_types(text: ConfigJson, types: object, layers: int) -> None:
    if not isinstance(types, list) or len(types) < layers:
        raise UsageError(f"{text.origin}: layer_types: not a list of {layers} types (got {types!r})")
    for kind in types:
        if not isinstance(kind, str) or kind not in {*_FULL, *_SLIDING, "chunked_attention"}:
            raise UsageError(f"{text.origin}: layer_types: layers of type {kind!r} cannot be sized")


def _window(text: ConfigJson, family: Family) -> int | None:
    """The window in use; 0 stands for none in some files."""
    if family.local is Locals.NEVER or not text.values.get("use_sliding_window", True):
        return None
    return text.whole_or_none("sliding_window") if text.values.get("sliding_window") != 0 else None


def _is_local(text: ConfigJson, family: Family, layer: int, layers: int) -> bool:
    match family.local:
        case Locals.EVEN:
            return layer % 2 == 0
        case Locals.ALL_BUT_LAST_OF_PATTERN:
            return _local_in_pattern(text, family, layer)
        case Locals.ABOVE_MAX_WINDOW_LAYERS:
            first = text.values.get("max_window_layers")
            if isinstance(first, int) and 0 < first < layers:
                raise UsageError(
                    f"{text.origin}: max_window_layers: {first} of {layers} layers; vLLM serves this architecture with "
                    "a window on all layers or on none"
                )
            return first == 0
        case _:
            return True


def _local_in_pattern(text: ConfigJson, family: Family, layer: int) -> bool:
    """`sliding_window_pattern` is a number of layers, or one letter for each: L for a window, another for all."""
    found = next(
        (text.values[key] for key in (family.pattern_key, "_sliding_window_pattern") if key in text.values), None
    )
    if isinstance(found, str) and found:
        return found[layer % len(found)] == "L"
    pattern = family.pattern if found is None else text.positive_whole(family.pattern_key, found)
    return bool((layer + 1) % pattern)
