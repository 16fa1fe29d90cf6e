"""The config of one simulated engine."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from raylane.deployments.config.kinds import EngineBlock, EngineSizes


class SimulatorConfig(EngineBlock):
    """Settings of one simulated engine: vLLM's, the card it pretends to run on, and what goes wrong with it."""

    kind: Literal["simulator"]
    gpu: str = Field("L40S", description="Card it behaves like: a name in the accelerator catalogue.")
    device: Literal["cuda", "cpu"] = Field(
        "cuda", description="cuda reserves GPUs as the real engine would (or recorded ones); cpu reserves none."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: str | None = Field(None, description="awq, gptq, fp8, ...: bytes of a weight, and so its speed.")
    max_model_len: PositiveInt | None = Field(None, description="Longest prompt plus output.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of the card the engine would take.")
    max_num_seqs: PositiveInt | None = Field(None, description="Largest batch.")
    max_num_batched_tokens: PositiveInt | None = Field(None, description="Tokens a step.")
    kv_cache_dtype: str | None = Field(None, description="fp8 halves KV memory.")
    enable_prefix_caching: bool | None = Field(None, description="Reuse KV of shared prompt beginnings; None: yes.")
    speedup: PositiveFloat = Field(1.0, description="Run this many times faster than real time.")
    slowdown: PositiveFloat = Field(1.0, description="2 makes every step take twice as long.")
    cold_start_s: NonNegativeFloat = Field(0.0, description="Real seconds before the port opens.")
    fail_after_s: NonNegativeFloat | None = Field(None, description="Real seconds until an injected failure.")
    fail_mode: Literal["exit", "hang", "unhealthy"] = Field("exit", description="What that failure looks like.")
    start_timeout_s: PositiveFloat = Field(60.0, description="Until the first token, cold_start_s included.")

    def sizes(self) -> EngineSizes:
        return EngineSizes(
            dtype=self.dtype,
            quantization=self.quantization,
            kv_cache_dtype=self.kv_cache_dtype,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            memory_of_card=self.gpu_memory_utilization,
            prefix_caching=self.enable_prefix_caching,
        )


Block = SimulatorConfig
