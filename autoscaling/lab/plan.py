"""A replay plan: which fleet, models, traffic and policies. Read strictly from YAML, turned into setups for the lab.

Paths of traces are relative to $RAYLANE_TRACES where that is set, else to the plan's own folder.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from raylane.autoscaling.lab.fleet import check_room
from raylane.autoscaling.lab.setup import LabModel, ModelDefinition, Setup, lab_model
from raylane.autoscaling.share import deal, gpus_of
from raylane.autoscaling.traces.clock import Unit
from raylane.autoscaling.traces.layouts import LayoutName
from raylane.autoscaling.traces.rates import load_rate_curve, rate_curve_between, requests_at
from raylane.autoscaling.traces.readers import load_trace
from raylane.autoscaling.traces.resample import shuffled_lengths, variant
from raylane.autoscaling.traces.shapes import Shape, generate
from raylane.autoscaling.traces.trace import Trace, between, clipped, named, scaled
from raylane.cluster.catalog import need_accelerator
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Host
from raylane.cluster.recording import load_recording
from raylane.cluster.strict import StrictModel
from raylane.deployments.config.deployment import ReplicaBounds
from raylane.deployments.config.scaling import SharingName
from raylane.deployments.sizing.fit import EngineSettings
from raylane.deployments.slo import Slo

TRACES_VARIABLE = "RAYLANE_TRACES"
RECORDINGS = Path(__file__).parents[2] / "cluster" / "recordings"


class ReplayModel(StrictModel):
    """One model of the replay, on simulated engines."""

    source: str = Field(description="builtin:NAME, a folder or a config.json; hub names are not looked up.")
    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: PositiveInt | None = None
    max_num_seqs: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    replicas: ReplicaBounds = ReplicaBounds(min=1, max=12)
    slo: Slo
    cold_start_s: PositiveFloat = Field(description="Median, from having GPUs to the first token.")
    priority: PositiveFloat = 1.0

    def definition(self, name: str) -> ModelDefinition:
        """The model as the lab takes it."""
        settings = EngineSettings(
            dtype=self.dtype,
            quantization=self.quantization,
            kv_cache_dtype=self.kv_cache_dtype,
            max_model_len=self.max_model_len,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
        )
        bounds = self.replicas
        return ModelDefinition(name, self.source, settings, self.slo, self.cold_start_s, bounds.min, bounds.max)


class Traffic(StrictModel):
    """Where one model's requests come from: a recorded trace, a recorded rate curve, or a synthetic shape."""

    trace: str | None = Field(None, description="File of requests (CSV or JSONL, plain or gzipped).")
    rates: str | None = Field(None, description="File of t_s, rate_rps; requests are drawn along it.")
    lengths: str | None = Field(None, description="With rates: the trace whose request lengths are drawn.")
    shape: Shape | None = None
    layout: LayoutName | None = Field(None, description="Of the trace (or lengths); else known by its columns.")
    unit: Unit | None = Field(None, description="In what the trace (or lengths) counts its times, where in doubt.")
    begin_s: NonNegativeFloat = 0.0
    end_s: PositiveFloat | None = None
    max_input: PositiveInt | None = Field(None, description="Longer prompts are cut to this.")
    max_output: PositiveInt | None = Field(None, description="Longer replies are cut to this.")
    scale: PositiveFloat = Field(1.0, description="Times the recorded rate.")
    cv: PositiveFloat | None = Field(None, description="With rates: coefficient of variation of the gaps (1).")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("trace", "rates", "shape") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of trace, rates or shape, not {' and '.join(given) or 'none'}")
        if (self.rates is None) != (self.lengths is None):
            raise ValueError("rates and lengths go together")
        if self.cv is not None and self.rates is None:
            own = "has its own cv" if self.trace is None else "has the gaps it was recorded with"
            raise ValueError(f"cv {self.cv:g} goes with rates; a {given[0]} {own}")
        if self.shape is not None and (self.layout or self.unit):
            raise ValueError("layout and unit go with trace or lengths; a shape has no file")
        if self.end_s is not None and self.end_s <= self.begin_s:
            raise ValueError(f"end_s {self.end_s:g} does not come after begin_s {self.begin_s:g}")
        return self


class Scenario(StrictModel):
    """One load on the fleet."""

    about: str = ""
    traffic: dict[str, Traffic] = Field(min_length=1)


class PolicyChoice(StrictModel):
    """A scaling rule by name, with its knobs."""

    rule: str
    knobs: dict[str, Any] = Field(default_factory=dict)
    label: str | None = None
    curve: str | None = Field(None, description="Settings that share it are one line of the Pareto figure.")
    sharing: SharingName | None = Field(None, description="How models share the fleet; None: as the rule's entry says.")
    moves: bool = Field(False, description="A replica of several GPUs waits while a single moves out of its domain.")

    @property
    def name(self) -> str:
        return self.label or self.rule

    @property
    def line(self) -> str:
        """What it is called in the Pareto figure."""
        return self.curve or self.name


class ReplayPlan(StrictModel):
    """Everything `raylane replay` runs."""

    name: str
    recording: str = Field(description="File of hosts and links, or the name of one that raylane ships.")
    gpu: str = "L40S"
    models: dict[str, ReplayModel] = Field(min_length=1)
    scenarios: dict[str, Scenario] = Field(min_length=1)
    policies: tuple[PolicyChoice, ...] = ()
    seeds: PositiveInt = 3
    first_seed: NonNegativeInt = 1
    hold_timeout_s: PositiveFloat = 300.0
    usd_per_gpu_hour: PositiveFloat = Field(1.861, description="AWS g6e.xlarge, us-east-1, 2026-08-17.")

    @field_validator("policies", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """`- slo` means `- {rule: slo}`."""
        return (
            [{"rule": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value
        )

    @model_validator(mode="after")
    def _known_models(self) -> Self:
        for name, scenario in self.scenarios.items():
            if unknown := set(scenario.traffic) - set(self.models):
                raise ValueError(f"scenario {name}: traffic for {', '.join(sorted(unknown))}, which is no model here")
        return self

    def hosts(self, folder: Path) -> tuple[Host, ...]:
        """The hosts of the recording."""
        shipped = RECORDINGS / f"{self.recording}.json"
        return tuple(load_recording(shipped if shipped.is_file() else folder / self.recording))


@contextmanager
def naming(origin: str) -> Iterator[None]:
    """A UsageError from within begins with `origin`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from error


def base_trace(traffic: Traffic, name: str, folder: Path) -> Trace:
    """The requests as recorded or generated (seed 0), from begin_s to end_s, at their own rate."""
    rng = np.random.default_rng(0)
    if traffic.shape is not None:
        trace = generate(traffic.shape, rng)
    elif traffic.trace is not None:
        trace = load_trace(find_trace(traffic.trace, folder), traffic.layout, unit=traffic.unit)
    else:
        assert traffic.rates is not None and traffic.lengths is not None  # noqa: S101, PT018 - the validator
        curve = load_rate_curve(find_trace(traffic.rates, folder))
        curve = rate_curve_between(curve, traffic.begin_s, traffic.end_s or curve.duration_s)
        lengths = load_trace(find_trace(traffic.lengths, folder), traffic.layout, unit=traffic.unit)
        trace = requests_at(curve, lengths, rng, name=name, cv=traffic.cv or 1.0, factor=traffic.scale)
    return named(trace if traffic.rates is not None else _part(trace, traffic), name)


def _part(trace: Trace, traffic: Traffic) -> Trace:
    """From begin_s to end_s, where the traffic says so."""
    if not (traffic.begin_s or traffic.end_s):
        return trace
    return between(trace, traffic.begin_s, traffic.end_s or trace.duration_s)


def seeded_trace(base: Trace, traffic: Traffic, seed: int) -> Trace:
    """One version of the traffic: same load curve, other requests."""
    rng = np.random.default_rng((seed, 17))
    if traffic.shape is not None:
        return named(_part(generate(_scaled_shape(traffic), rng), traffic), base.name)
    if traffic.rates is not None:
        return variant(base, seed)
    if traffic.scale < 0.9:
        return shuffled_lengths(scaled(base, traffic.scale, rng), rng)
    return variant(scaled(base, traffic.scale, rng), seed)


def _scaled_shape(traffic: Traffic) -> Shape:
    """The shape with its rates times the scale."""
    shape = traffic.shape
    assert shape is not None  # noqa: S101
    rates = {
        name: getattr(shape, name) * traffic.scale for name in ("rps", "base_rps", "peak_rps") if hasattr(shape, name)
    }
    return shape.model_copy(update=rates)


def find_trace(name: str, folder: Path) -> Path:
    """UsageError when the file is not there, with where the public ones can be had."""
    root = os.environ.get(TRACES_VARIABLE)
    path = (Path(root) if root else folder) / name
    if not path.is_file():
        raise UsageError(f"{path}: no such trace (set {TRACES_VARIABLE} to their folder; docs/traces.md)")
    return path


def lab_models(
    plan: ReplayPlan, *, slowdown: float = 1.0, cold_start_factor: float = 1.0, profile_factor: float = 1.0
) -> dict[str, LabModel]:
    """Every model of the plan. `profile_factor` 1.2: the policy takes replicas for 20 % faster than they are."""
    gpu = need_accelerator(plan.gpu)
    made = {}
    for name, model in plan.models.items():
        with naming(f"plan {plan.name}: model {name}"):
            lab = lab_model(model.definition(name), gpu, slowdown=slowdown, cold_start_factor=cold_start_factor)
        spec = replace(lab.spec, priority=model.priority, profile=lab.spec.profile.faster(profile_factor))
        made[name] = replace(lab, spec=spec)
    return made


def with_initial(models: Mapping[str, LabModel], traces: Mapping[str, Trace], fleet_gpus: int) -> tuple[LabModel, ...]:
    """The models with the replicas the first minutes need, by their profiles: the same start for every policy."""
    specs = {name: models[name].spec for name in traces}
    least = {name: spec.min_replicas for name, spec in specs.items()}
    wanted = {name: _first_need(models[name], trace) for name, trace in traces.items()}
    given = deal(fleet_gpus - gpus_of(least, specs), specs, least, wanted)
    return tuple(replace(models[name], initial_replicas=given[name]) for name in traces)


def _first_need(model: LabModel, trace: Trace) -> int:
    first = trace.at_s <= 600.0
    if not first.any():
        return model.spec.min_replicas
    rate = first.sum() / min(600.0, trace.duration_s)
    mean_in, mean_out = float(trace.input_tokens[first].mean()), float(trace.output_tokens[first].mean())
    need = int(np.ceil(rate / model.spec.profile.requests_per_s(mean_in, mean_out) / 0.7))
    return model.spec.clamp(need)


def make_setup(
    plan: ReplayPlan, scenario: str, hosts: tuple[Host, ...], models: Mapping[str, LabModel], traces: dict[str, Trace]
) -> Setup:
    """One replay, ready to run; prompts and replies are cut to the limits of the traffic and of the model.

    UsageError for limits beyond the model's, and for models whose least replicas have no room on the fleet.
    """
    origin = f"plan {plan.name}: scenario {scenario}"
    cut = {}
    for name, trace in traces.items():
        with naming(f"{origin}: model {name}"):
            cut[name] = _within_limits(trace, plan.scenarios[scenario].traffic[name], models[name])
    with naming(origin):
        check_room(hosts, [models[name].spec for name in traces])
    gpus = sum(len(host.gpus) for host in hosts)
    return Setup(scenario, hosts, with_initial(models, cut, gpus), cut, plan.hold_timeout_s, plan.usd_per_gpu_hour)


def _within_limits(trace: Trace, traffic: Traffic, model: LabModel) -> Trace:
    longest = model.engine.limits.max_model_len
    if (traffic.max_input or 1) + (traffic.max_output or 1) > longest:
        asked = {"max_input": traffic.max_input, "max_output": traffic.max_output}
        keys = " and ".join(f"{key} {value}" for key, value in asked.items() if value is not None)
        raise UsageError(f"{keys}: beyond its max_model_len {longest}, prompt and reply (at least 1) together")
    return clipped(trace, traffic.max_input, traffic.max_output, longest)
