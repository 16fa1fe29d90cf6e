"""Refusals in the words of their engine: sizing speaks vLLM's, and some formats need a checkpoint of their own."""

from collections.abc import Mapping
from dataclasses import replace

from raylane.deployments.sizing.fit import Fits, Refusal

# vLLM 0.29 makes FP8 of 16-bit weights while loading, has no `int8` (its int8_per_channel_weight_only leaves dense
# layers as they are), and reads AWQ and INT8 from checkpoints. TensorRT-LLM 1.2 quantizes nothing while loading, and
# its PyTorch backend has no INT8 (nvidia.github.io/TensorRT-LLM/features/quantization.html). Simulators take any.
WORDS: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "quantization int8": "quantization compressed-tensors (needs an INT8 checkpoint)",
        "quantization awq": "quantization awq (needs an AWQ checkpoint)",
    },
    "tensorrt-llm": {
        "max_model_len": "max_seq_len",
        "max_num_seqs": "max_batch_size",
        "max_num_batched_tokens": "max_num_tokens",
        "quantization fp8": "quantization fp8 (needs an FP8 checkpoint)",
        "quantization int8": "quantization int8 (needs backend tensorrt and an INT8 engine)",
        "quantization awq": "quantization int4_awq (needs an AWQ checkpoint)",
    },
}


def in_words_of(kind: str, found: Fits | Refusal) -> Fits | Refusal:
    """The same result; a refusal names the settings of this kind of engine and what else they need."""
    if isinstance(found, Fits):
        return found
    nearest = tuple(replace(item, change=_translated(kind, item.change)) for item in found.nearest)
    return replace(found, reason=_translated(kind, found.reason), nearest=nearest)


def _translated(kind: str, text: str) -> str:
    for sizings, engines in WORDS.get(kind, {}).items():
        text = text.replace(sizings, engines)
    return text
