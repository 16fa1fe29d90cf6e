"""The command line of the simulator process, resolved to the engine it runs."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from raylane.cluster.catalog import Accelerator, load_catalog, need_accelerator
from raylane.deployments.simulator.build import build_engine
from raylane.deployments.simulator.constants import ConstantsEntry, constants_for
from raylane.deployments.simulator.replica import EngineModel
from raylane.deployments.simulator.step_model import StepConstants
from raylane.deployments.sizing.checkpoint import read_model_facts
from raylane.deployments.sizing.fit import EngineSettings
from raylane.deployments.sizing.roofline import Link, assumed_link

Port = Annotated[int, Field(ge=1, le=65535)]
Share = Annotated[float, Field(gt=0, le=1)]


class FailMode(StrEnum):
    """What an injected failure looks like."""

    EXIT = "exit"
    """The process ends with status 1."""
    HANG = "hang"
    """Health says yes and new requests never get a token."""
    UNHEALTHY = "unhealthy"
    """Health answers 503 and requests 500."""


@dataclass(frozen=True)
class Options:
    """A resolved command line."""

    model_name: str
    model: str
    host: str
    port: int
    engine: EngineModel
    gpu: Accelerator
    settings: EngineSettings
    trust: str
    speedup: float
    cold_start_s: float
    fail_after_s: float | None
    fail_mode: FailMode
    default_output_tokens: int

    def summary(self) -> str:
        """One line for the log: what is simulated, and how far its constants can be trusted."""
        gpus = f"{self.settings.tensor_parallel * self.settings.pipeline_parallel}x {self.gpu.name}"
        kv = f"{self.engine.limits.kv_tokens:,} KV tokens"
        return f"{self.model_name} ({self.model}) on {gpus}, {kv}, constants {self.trust}, speed-up {self.speedup:g}"


def _as(kind: Any) -> Callable[[str], Any]:
    """Reads an argument as a config file's field of this type is read."""
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[kind, Field(allow_inf_nan=False)])

    def read(text: str) -> Any:
        try:
            return adapter.validate_python(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(f"{error.errors()[0]['msg']} (got {text!r})") from error

    return read


def parser() -> argparse.ArgumentParser:
    """Every flag of the simulator process. Settings of the engine have vLLM's names."""
    build = argparse.ArgumentParser(prog="raylane.deployments.simulator.server", allow_abbrev=False)
    add = build.add_argument
    add("--model-name", required=True, help="name that clients use")
    add("--model", default="builtin:llama-3-8b-shape", help="builtin:..., a folder with config.json, or that file")
    add("--host", default="127.0.0.1")
    add("--port", type=_as(Port), default=8000)
    add("--gpu", default="L40S", help="name in the accelerator catalogue")
    add("--accelerators", type=Path, help="file with further catalogue entries")
    _add_engine(build.add_argument_group("engine"))
    _add_step_model(build.add_argument_group("step model"))
    _add_behaviour(build.add_argument_group("behaviour"))
    return build


def _add_engine(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--dtype", default="auto")
    add("--quantization")
    add("--kv-cache-dtype", default="auto")
    add("--max-model-len", type=_as(PositiveInt))
    add("--gpu-memory-utilization", type=_as(Share), default=0.9)
    add("--max-num-seqs", type=_as(PositiveInt))
    add("--max-num-batched-tokens", type=_as(PositiveInt))
    add("--tensor-parallel-size", type=_as(PositiveInt), default=1)
    add("--pipeline-parallel-size", type=_as(PositiveInt), default=1)
    add("--no-enable-prefix-caching", action="store_true")


def _add_step_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--constants", type=Path, help="file of constants (raylane calibrate writes them)")
    add("--bandwidth-share", type=_as(Share), help="share of the memory bandwidth reached")
    add("--compute-share", type=_as(Share), help="share of the peak arithmetic reached")
    add("--step-overhead-ms", type=_as(NonNegativeFloat))
    add("--first-token-extra-ms", type=_as(NonNegativeFloat))
    between = "between the GPUs of the replica; assumed from the card by default"
    add("--link-gb-per-s", type=_as(PositiveFloat), help=between)
    add("--link-latency-us", type=_as(NonNegativeFloat))
    window = "hold arrivals back to the next multiple of this"
    add("--batching-window-ms", type=_as(NonNegativeFloat), default=0.0, help=window)
    add("--slowdown", type=_as(PositiveFloat), default=1.0, help="2 makes every step take twice as long")


def _add_behaviour(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--speedup", type=_as(PositiveFloat), default=1.0, help="run this many times faster than real time")
    add("--cold-start-s", type=_as(NonNegativeFloat), default=0.0, help="real seconds before the port opens")
    add("--fail-after-s", type=_as(NonNegativeFloat), help="real seconds after the port opened")
    add("--fail-mode", type=FailMode, choices=list(FailMode), default=FailMode.EXIT)
    length = "length of a chat answer without max_tokens"
    add("--default-output-tokens", type=_as(PositiveInt), default=256, help=length)


def read_options(arguments: list[str] | None = None) -> Options:
    """Resolve a command line. UsageError when the model does not fit, with the nearest settings that do.

    Ends the process with status 2, as argparse does, for an argument that is wrong by itself.
    """
    given = parser().parse_args(arguments)
    gpu = need_accelerator(given.gpu, load_catalog(given.accelerators))
    entry = constants_for(gpu, given.constants)
    settings = _settings(given)
    engine = build_engine(
        read_model_facts(given.model),
        gpu,
        settings,
        _constants(given, entry),
        _link(given, gpu),
        prefix_caching=not given.no_enable_prefix_caching,
        batching_window_s=given.batching_window_ms / 1e3,
        slowdown=given.slowdown,
    )
    return Options(
        model_name=given.model_name,
        model=given.model,
        host=given.host,
        port=given.port,
        engine=engine,
        gpu=gpu,
        settings=settings,
        trust=entry.trust,
        speedup=given.speedup,
        cold_start_s=given.cold_start_s,
        fail_after_s=given.fail_after_s,
        fail_mode=given.fail_mode,
        default_output_tokens=given.default_output_tokens,
    )


def _settings(given: argparse.Namespace) -> EngineSettings:
    return EngineSettings(
        dtype=given.dtype,
        quantization=given.quantization,
        kv_cache_dtype=given.kv_cache_dtype,
        max_model_len=given.max_model_len,
        gpu_memory_utilization=given.gpu_memory_utilization,
        max_num_seqs=given.max_num_seqs,
        max_num_batched_tokens=given.max_num_batched_tokens,
        tensor_parallel=given.tensor_parallel_size,
        pipeline_parallel=given.pipeline_parallel_size,
    )


def _constants(given: argparse.Namespace, entry: ConstantsEntry) -> StepConstants:
    """The file's constants, with those given on the command line in their place."""
    base = entry.constants()
    return StepConstants(
        bandwidth_share=base.bandwidth_share if given.bandwidth_share is None else given.bandwidth_share,
        compute_share=base.compute_share if given.compute_share is None else given.compute_share,
        step_overhead_s=_seconds(given.step_overhead_ms, base.step_overhead_s),
        first_token_extra_s=_seconds(given.first_token_extra_ms, base.first_token_extra_s),
    )


def _seconds(given_ms: float | None, otherwise_s: float) -> float:
    return otherwise_s if given_ms is None else given_ms / 1e3


def _link(given: argparse.Namespace, gpu: Accelerator) -> Link:
    assumed = assumed_link(gpu)
    if given.link_gb_per_s is None and given.link_latency_us is None:
        return assumed
    return Link(
        bytes_per_s=assumed.bytes_per_s if given.link_gb_per_s is None else given.link_gb_per_s * 1e9,
        latency_s=assumed.latency_s if given.link_latency_us is None else given.link_latency_us / 1e6,
        source="given",
    )
