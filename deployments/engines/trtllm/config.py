"""The config of one TensorRT-LLM server."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from raylane.deployments.config.kinds import EngineBlock, EngineSizes
from raylane.deployments.engines.trtllm.names import (
    closest,
    llm_api_options,
    nested_options,
    serve_flags,
    version,
)

# What `trtllm-serve` takes by itself (BuildConfig); sizing needs the numbers.
DEFAULT_MAX_BATCH_SIZE = 2048
DEFAULT_MAX_NUM_TOKENS = 8192

OWN_FLAGS = {
    **{"--host": "the host's address", "--port": "leased", "--extra_llm_api_options": "llm_api_options"},
    **{"--config": "llm_api_options", "--backend": "backend", "--tokenizer": "source"},
    **{"--tp_size": "tensor_parallel", "--tensor_parallel_size": "tensor_parallel"},
    **{"--pp_size": "pipeline_parallel", "--pipeline_parallel_size": "pipeline_parallel"},
    **{"--max_batch_size": "max_batch_size", "--max_num_tokens": "max_num_tokens", "--max_seq_len": "max_seq_len"},
    "--kv_cache_free_gpu_memory_fraction": "kv_cache_free_gpu_memory_fraction",
    "--free_gpu_memory_fraction": "kv_cache_free_gpu_memory_fraction",
    "--enable_chunked_prefill": "enable_chunked_prefill",
    "--trust_remote_code": "trust_remote_code",
}
OWN_OPTIONS = {
    **{"model": "source", "tokenizer": "source", "backend": "backend", "dtype": "dtype"},
    **{"tensor_parallel_size": "tensor_parallel", "pipeline_parallel_size": "pipeline_parallel"},
    **{"max_batch_size": "max_batch_size", "max_num_tokens": "max_num_tokens", "max_seq_len": "max_seq_len"},
    "enable_chunked_prefill": "enable_chunked_prefill",
    "trust_remote_code": "trust_remote_code",
    "enable_iter_perf_stats": "set by raylane, which reads the load from it",
    "kv_cache_config.dtype": "kv_cache_dtype",
    "kv_cache_config.free_gpu_memory_fraction": "kv_cache_free_gpu_memory_fraction",
}


class TensorRtLlmConfig(EngineBlock):
    """Settings of one `trtllm-serve`; None leaves TensorRT-LLM's own default. Written against version 1.2.1."""

    kind: Literal["tensorrt-llm"]
    device: Literal["cuda"] = "cuda"
    backend: Literal["pytorch", "tensorrt"] = Field(
        "pytorch",
        description="pytorch loads Hugging Face checkpoints, quantized ones too, and starts in minutes; tensorrt runs "
        "an engine of `raylane engine build`, tied to one GPU model, one tensor_parallel and one longest context.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Of weights that are not quantized; an engine has its own. float32 doubles their memory."
    )
    quantization: str | None = Field(
        None,
        description="How the source is quantized: fp8, int8, int4_awq, ... Only for sizing; None reads config.json. "
        "Fewer bits leave room for context and cost accuracy.",
    )
    kv_cache_dtype: Literal["fp8"] | None = Field(
        None, description="fp8 halves KV memory at a small loss of accuracy. Of a built engine: as it was built."
    )
    kv_cache_free_gpu_memory_fraction: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="Share for KV of the memory that weights and buffers leave free (vLLM's is of the whole card). "
        "More holds more requests; too much runs out of memory in long prompts.",
    )
    max_seq_len: PositiveInt | None = Field(None, description="Longest prompt plus output; more needs KV memory.")
    max_batch_size: PositiveInt | None = Field(
        None, description="Largest batch: throughput against time per token. None: 2048, bounded by KV memory."
    )
    max_num_tokens: PositiveInt | None = Field(
        None, description="Tokens a step: a shorter TTFT against a steadier TPOT. None: 8192."
    )
    enable_chunked_prefill: bool = Field(
        False, description="Long prompts in pieces between decode steps: steadier TPOT, slightly later first token."
    )
    trust_remote_code: bool = Field(False, description="Runs Python code that comes with the model. Off unless named.")
    llm_api_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further keys of the options file (speculative_config, cuda_graph_config, ...), as TensorRT-LLM "
        "documents them. Names are checked, values are not.",
    )
    env: dict[str, str] = Field(default_factory=dict, description="Added to the engine's environment.")
    extra_args: tuple[str, ...] = Field((), description="Further `trtllm-serve serve` arguments; flags are checked.")
    start_timeout_s: PositiveFloat = Field(1800.0, description="Until the first token; loading and warm-up count.")

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        problem = wrong_flag(self.extra_args) or wrong_option(self.llm_api_options, self.backend)
        if problem:
            raise ValueError(problem)
        if self.backend == "tensorrt" and self.dtype != "auto":
            raise ValueError(f"dtype {self.dtype}: an engine's is fixed when it is built; leave it out")
        return self

    def sizes(self) -> EngineSizes:
        """It takes a share of what weights leave, never of the card. It reuses KV blocks unless it is told not to
        (llm_api_options.kv_cache_config.enable_block_reuse); of layers with a window nothing is known."""
        tokens = self.max_num_tokens or DEFAULT_MAX_NUM_TOKENS
        return EngineSizes(
            dtype=self.dtype,
            quantization=self.quantization,
            kv_cache_dtype=self.kv_cache_dtype,
            max_model_len=self.max_seq_len,
            max_num_seqs=self.max_batch_size or min(DEFAULT_MAX_BATCH_SIZE, tokens),
            max_num_batched_tokens=tokens,
            memory_of_card=1.0,
            kv_of_rest=self.kv_cache_free_gpu_memory_fraction,
            kv_windows=False,
        )


def wrong_flag(arguments: tuple[str, ...]) -> str | None:
    """Why these arguments cannot be added to the command line; None when they can."""
    for flag in (part.split("=")[0] for part in arguments if part.startswith("-") and not _number(part)):
        if flag in OWN_FLAGS:
            return f"extra_args: {flag} is raylane's to set ({OWN_FLAGS[flag]})"
        if flag not in serve_flags():
            hint = closest(flag, serve_flags())
            return f"extra_args: trtllm-serve {version()} has no {flag}{hint}"
    return None


def wrong_option(options: dict[str, Any], backend: str) -> str | None:
    """Why the options file cannot have these keys; None when it can."""
    nested = nested_options()
    for key, value in options.items():
        problem = _wrong_key(key, key, llm_api_options(backend), backend)
        if problem is None and key in nested:
            problem = _wrong_block(key, value, nested[key], backend)
        if problem:
            return problem
    return None


def _wrong_block(block: str, value: Any, known: tuple[str, ...], backend: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        return f"llm_api_options.{block}: {value!r} is not a mapping of its keys"
    inner = (_wrong_key(f"{block}.{part}", str(part), known, backend) for part in value)
    return next((found for found in inner if found), None)


def _wrong_key(dotted: str, key: str, known: tuple[str, ...], backend: str) -> str | None:
    if dotted in OWN_OPTIONS:
        return f"llm_api_options.{dotted} is raylane's to set ({OWN_OPTIONS[dotted]})"
    if key not in known:
        return f"llm_api_options.{dotted}: no such key in TensorRT-LLM {version()} ({backend}){closest(key, known)}"
    return None


def _number(part: str) -> bool:
    return part.lstrip("-").replace(".", "", 1).isdigit()


Block = TensorRtLlmConfig
