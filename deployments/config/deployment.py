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
    SerializeAsAny,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from raylane.cluster.errors import UsageError
from raylane.cluster.strict import StrictModel
from raylane.deployments.config.builtin import PREFIX, builtin_config
from raylane.deployments.config.kinds import DEFAULT_KIND, KINDS, EngineBlock, block_class
from raylane.deployments.config.model_files import describing_file
from raylane.deployments.config.profiles import profile_of
from raylane.deployments.config.scaling import CapacityConfig, ScalingConfig
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


def _default_engine() -> EngineBlock:
    return block_class(DEFAULT_KIND).model_validate({})


def _by_kind(value: Any, read: Any) -> EngineBlock:
    """The engine block as the class its `kind` names, vllm without one; errors then name that class's keys alone."""
    if not isinstance(value, dict):
        checked: EngineBlock = read(value)
        return checked
    kind = value.get("kind", DEFAULT_KIND)
    if not isinstance(kind, str) or kind not in KINDS:
        known = " or ".join(repr(name) for name in KINDS)
        wrong = InitErrorDetails(type="literal_error", loc=("kind",), input=kind, ctx={"expected": known})
        raise ValidationError.from_exception_data("engine", [wrong])
    return block_class(kind).model_validate(value)


EngineConfig = Annotated[SerializeAsAny[EngineBlock], WrapValidator(_by_kind)]


class ModelConfig(StrictModel):
    """One served model: where it comes from, its engine, its share of a host and its replicas."""

    source: str = Field(description="Hub id, local folder, or builtin:NAME (see deployments/config/builtin.py).")
    engine: EngineConfig = Field(default_factory=_default_engine)
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
        name: _resolve_folders(_resolve_source(model, path, name), path, name) for name, model in config.models.items()
    }
    return config.model_copy(update={"models": models})


def _resolve_source(model: ModelConfig, path: Path, name: str) -> ModelConfig:
    if model.source.startswith(PREFIX):
        try:
            builtin_config(model.source)
        except UsageError as error:
            raise UsageError(f"{path}: models.{name}.{error}") from error
    return model.model_copy(update={"source": _absolute(model.source, path, f"models.{name}.source")})


def _resolve_folders(model: ModelConfig, path: Path, name: str) -> ModelConfig:
    """The folders that the engine block names, which like the source are relative to the file."""
    engine = model.engine.with_folders(lambda key, given: _absolute(given, path, f"models.{name}.engine.{key}"))
    return model if engine is model.engine else model.model_copy(update={"engine": engine})


def _absolute(source: str, path: Path, key: str) -> str:
    """A folder that is named as one, beside the file; a hub id as it is."""
    if not source.startswith((".", "/", "~")):
        return source
    folder = (path.parent / Path(source).expanduser()).resolve()
    if describing_file(folder) is None:
        raise UsageError(f"{path}: {key}: no config.json in {folder} (got {source!r})")
    return str(folder)


def json_schema() -> dict[str, Any]:
    """JSON schema of the deployment config, for editors; an engine block is that of one of the kinds."""
    schema = DeploymentConfig.model_json_schema()
    definitions = schema["$defs"]
    del definitions[EngineBlock.__name__]
    for block in map(block_class, KINDS):
        own = block.model_json_schema()
        definitions |= own.pop("$defs", {}) | {block.__name__: own}
    any_kind = [{"$ref": f"#/$defs/{block_class(kind).__name__}"} for kind in KINDS]
    definitions["ModelConfig"]["properties"]["engine"] = {"anyOf": any_kind, "title": "Engine"}
    return schema


def to_yaml(config: DeploymentConfig) -> str:
    """YAML with only what differs from the defaults."""
    text: str = yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    return text
