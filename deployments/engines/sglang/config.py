"""The config of one SGLang server. Written against 0.5.5 and 0.5.23."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from raylane.deployments.config.kinds import EngineBlock, EngineSizes

OWN_FLAGS = {
    **{"--model-path": "source", "--model": "source", "--served-model-name": "the model's name"},
    **{"--host": "the host's address", "--port": "leased", "--nccl-port": "leased"},
    **{"--tp-size": "tensor_parallel", "--tensor-parallel-size": "tensor_parallel"},
    **{"--pp-size": "pipeline_parallel", "--pipeline-parallel-size": "pipeline_parallel"},
    **{"--dtype": "dtype", "--quantization": "quantization", "--context-length": "context_length"},
    **{"--mem-fraction-static": "mem_fraction_static", "--max-running-requests": "max_running_requests"},
    **{"--chunked-prefill-size": "chunked_prefill_size", "--kv-cache-dtype": "kv_cache_dtype"},
    **{"--disable-radix-cache": "disable_radix_cache", "--trust-remote-code": "trust_remote_code"},
    **{"--random-seed": "random_seed", "--load-format": "load_format", "--log-level": "log_level"},
    "--log-level-http": "set by raylane",
    "--enable-metrics": "set by raylane, which reads the load from them",
    "--enable-metrics-for-all-schedulers": "left out by raylane: its load would be counted once for every GPU",
    "--disable-custom-all-reduce": "disable_custom_all_reduce",
    "--skip-server-warmup": "set by raylane: the warm-up asks paths that the guard closes, and ends the server",
    "--api-key": "every user of the host can read a command line; raylane's guard asks for a key of its own",
    "--admin-api-key": "every user of the host can read a command line; raylane's guard closes the admin paths",
}
UNGUARDED = {  # ways to serve that do not hand the application to uvicorn in this process, or no HTTP at all
    *("--tokenizer-worker-num", "--enable-http2", "--use-ray", "--encoder-only"),
    *("--grpc-mode", "--smg-grpc-mode", "--grpc-port"),
    *("--ssl-keyfile", "--ssl-certfile"),
    "--config",  # a file may say any of them
}


class SglangConfig(EngineBlock):
    """Settings of one SGLang server; None leaves SGLang's own default. Never run on a GPU by raylane's authors."""

    kind: Literal["sglang"]
    device: Literal["cuda"] = "cuda"
    python: str | None = Field(
        None, description="The Python that has SGLang, by path; None: raylane's own. It pins a PyTorch of its own."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: str | None = Field(None, description="awq, gptq, fp8, w8a8_int8, ...: as the checkpoint was made.")
    context_length: PositiveInt | None = Field(None, description="Longest prompt plus output; more needs KV memory.")
    mem_fraction_static: float = Field(
        0.85,
        gt=0,
        lt=1,
        description="Share of the card for weights and KV; buffers come on top, so it is less than vLLM's. More holds "
        "more requests; too much runs out of memory in long prompts.",
    )
    max_running_requests: PositiveInt | None = Field(
        None, description="Largest batch: throughput against time per token."
    )
    chunked_prefill_size: PositiveInt | None = Field(
        None, description="Prompt tokens a step: a shorter TTFT against a steadier TPOT."
    )
    kv_cache_dtype: Literal["fp8_e5m2", "fp8_e4m3"] | None = Field(
        None, description="8 bits halve KV memory at a small loss of accuracy."
    )
    disable_radix_cache: bool = Field(False, description="Do not reuse KV of shared prompt beginnings.")
    disable_custom_all_reduce: bool = Field(False, description="For pairs whose peer access cannot be trusted.")
    trust_remote_code: bool = Field(False, description="Runs Python code that comes with the model. Off unless named.")
    random_seed: int | None = None
    load_format: str | None = Field(None, description="dummy fills the weights with random numbers.")
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    env: dict[str, str] = Field(default_factory=dict, description="Added to the engine's environment.")
    extra_args: tuple[str, ...] = Field((), description="Further `sglang.launch_server` arguments, passed as they are.")
    start_timeout_s: PositiveFloat = Field(1800.0, description="Until the first token; loading and capturing count.")

    @model_validator(mode="after")
    def _flags_of_others(self) -> Self:
        problem = wrong_flag(self.extra_args)
        if problem:
            raise ValueError(problem)
        return self

    def sizes(self) -> EngineSizes:
        """Of what its pools for layers with a window keep nothing is known: they are counted as whole."""
        return EngineSizes(
            dtype=self.dtype,
            quantization=self.quantization,
            kv_cache_dtype=self.kv_cache_dtype,
            max_model_len=self.context_length,
            max_num_seqs=self.max_running_requests,
            max_num_batched_tokens=self.chunked_prefill_size,
            memory_of_card=self.mem_fraction_static,
            prefix_caching=not self.disable_radix_cache,
            kv_windows=False,
        )


def wrong_flag(arguments: tuple[str, ...]) -> str | None:
    """Why these arguments cannot be added to the command line; None when they can.

    SGLang's parser takes a flag's beginning for the flag, so beginnings are refused as well.
    """
    for flag in (part.split("=")[0] for part in arguments if part.startswith("--")):
        own = next((name for name in OWN_FLAGS if name.startswith(flag)), None)
        if own is not None:
            return f"extra_args: {flag} is raylane's to set ({OWN_FLAGS[own]})"
        if any(name.startswith(flag) for name in UNGUARDED):
            return f"extra_args: {flag} may have SGLang serve past raylane's guard, so it cannot be given"
    return None


Block = SglangConfig
