"""Fit the step model's four constants to measured runs, and say how wrong it is on runs that were not fitted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from raylane.cluster.catalog import Accelerator, need_accelerator
from raylane.cluster.errors import UsageError
from raylane.cluster.strict import StrictModel
from raylane.deployments.simulator.build import build_engine
from raylane.deployments.simulator.loads import closed_loop
from raylane.deployments.simulator.replica import EngineModel
from raylane.deployments.simulator.step_model import StepConstants
from raylane.deployments.sizing.checkpoint import read_model_facts
from raylane.deployments.sizing.fit import EngineSettings
from raylane.deployments.sizing.model_facts import ModelFacts
from raylane.deployments.sizing.roofline import Link, assumed_link

H200_ROWS = Path(__file__).with_name("measured_h200.yaml")
Metric = Literal["ttft_p50_ms", "tpot_p50_ms", "output_tokens_per_s"]
METRICS: tuple[Metric, ...] = ("ttft_p50_ms", "tpot_p50_ms", "output_tokens_per_s")
Vector = NDArray[np.float64]
_START = StepConstants(bandwidth_share=0.8, compute_share=0.6, step_overhead_s=1e-3, first_token_extra_s=5e-3)
_ROUNDS = 40
_SMALLEST_S = 1e-6


class MeasuredRow(StrictModel):
    """One measured load: `concurrency` clients in a closed loop, every request of the same size."""

    id: str
    model: str
    """builtin:..., a folder or a config.json."""
    gpu: str
    tensor_parallel: PositiveInt = 1
    quantization: str | None = None
    dtype: str = "auto"
    max_num_batched_tokens: PositiveInt | None = None
    """None takes the server's default for the card."""
    max_model_len: PositiveInt | None = None
    """None takes what the row needs: input and output."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """None takes vLLM's default, 0.9."""
    concurrency: PositiveInt
    requests: PositiveInt
    input_tokens: PositiveInt
    output_tokens: PositiveInt
    use: Literal["fit", "held out"]
    """Chosen before fitting."""
    ttft_p50_ms: PositiveFloat | None = None
    tpot_p50_ms: PositiveFloat | None = None
    output_tokens_per_s: PositiveFloat | None = None
    source: str
    assumed: str | None = None
    """What the source does not say and was filled in."""

    @model_validator(mode="after")
    def _measures_what_there_is(self) -> Self:
        if all(getattr(self, metric) is None for metric in METRICS):
            raise ValueError(f"row {self.id} has none of {', '.join(METRICS)}")
        if self.output_tokens == 1 and self.tpot_p50_ms is not None:
            raise ValueError(
                f"row {self.id}: tpot_p50_ms {self.tpot_p50_ms:g} with output_tokens 1: the first token has no TPOT"
            )
        return self

    @property
    def tokens(self) -> int:
        """Tokens of one request, prompt and output."""
        return self.input_tokens + self.output_tokens

    def measured(self) -> dict[Metric, float]:
        """The metrics this row has."""
        values = {metric: getattr(self, metric) for metric in METRICS}
        return {metric: value for metric, value in values.items() if value is not None}


class MeasuredFile(StrictModel):
    """Measured rows of one kind of GPU."""

    rows: tuple[MeasuredRow, ...]


@dataclass(frozen=True)
class Comparison:
    """One metric of one row: measured beside simulated."""

    row: MeasuredRow
    metric: Metric
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """(simulated - measured) / measured."""
        return self.simulated / self.measured - 1


@dataclass(frozen=True)
class Calibration:
    """Constants fitted on some rows, and how every row comes out with them."""

    gpu: str
    constants: StepConstants
    comparisons: tuple[Comparison, ...]

    def mean_error(self, use: str, metrics: Iterable[str] = METRICS) -> float | None:
        """Mean absolute relative error over the rows of that use; None without any."""
        chosen = set(metrics)
        errors = [abs(item.error) for item in self.comparisons if item.row.use == use and item.metric in chosen]
        return sum(errors) / len(errors) if errors else None


def read_rows(paths: Iterable[Path]) -> tuple[MeasuredRow, ...]:
    """All rows of these files. UsageError for a file without any, and for a row that cannot be simulated."""
    rows: list[MeasuredRow] = []
    for path in paths:
        found = MeasuredFile.from_yaml(path).rows
        if not found:
            raise UsageError(f"{path}: no rows")
        try:
            for row in found:
                _Case.of(row, None)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        rows += found
    return tuple(rows)


def calibrate(rows: Sequence[MeasuredRow], link: Link | None = None) -> Calibration:
    """Least squares over the logarithms of simulated / measured on the rows marked `fit`; the others are only judged.

    Levenberg-Marquardt over the logarithms of the four constants, each trial a simulation of every row. The all-reduce
    is not fitted: `link` (or what is assumed for the card) fixes it. UsageError for rows of different GPUs, an id that
    comes twice, and fewer figures than constants.
    """
    _check_ids(rows)
    cases = [_Case.of(row, link) for row in rows]
    gpus = sorted({case.gpu.name for case in cases})
    if len(gpus) > 1:
        raise UsageError(f"rows of one GPU are fitted together; these are of {', '.join(gpus)}")
    fitted = [case for case in cases if case.row.use == "fit"]
    if sum(len(case.row.measured()) for case in fitted) < 4:
        raise UsageError("four constants need at least four measured figures in rows with use: fit")
    constants = _levenberg_marquardt(fitted, _START)
    comparisons = tuple(item for case in cases for item in case.compare(constants))
    return Calibration(cases[0].gpu.name, constants, comparisons)


def _check_ids(rows: Sequence[MeasuredRow]) -> None:
    ids = [row.id for row in rows]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise UsageError(f"rows: the ids {twice} stand there more than once")


def compare_rows(
    rows: Sequence[MeasuredRow], constants: StepConstants, link: Link | None = None
) -> tuple[Comparison, ...]:
    """Simulate every row with given constants."""
    return tuple(item for row in rows for item in _Case.of(row, link).compare(constants))


@dataclass(frozen=True)
class _Case:
    """A row with what is needed to simulate it, looked up once."""

    row: MeasuredRow
    facts: ModelFacts
    gpu: Accelerator
    link: Link

    @classmethod
    def of(cls, row: MeasuredRow, link: Link | None) -> "_Case":
        """UsageError naming the row when its engine cannot be or its requests are too long for the model."""
        try:
            gpu = need_accelerator(row.gpu)
            facts = read_model_facts(row.model)
            case = cls(row, facts, gpu, link or assumed_link(gpu))
            longest = row.max_model_len or facts.max_position_embeddings
            if row.tokens > longest:
                limit = "max_model_len" if row.max_model_len else "the positions of the model:"
                sizes = f"{row.input_tokens:,} input and {row.output_tokens:,} output tokens"
                raise UsageError(f"{sizes} are more than {limit} {longest:,}")
            case.engine(_START)
        except UsageError as error:
            raise UsageError(f"row {row.id}: {error}") from error
        return case

    def engine(self, constants: StepConstants) -> EngineModel:
        settings = EngineSettings(
            dtype=self.row.dtype,
            quantization=self.row.quantization,
            max_model_len=self.row.max_model_len or self.row.tokens,
            gpu_memory_utilization=self.row.gpu_memory_utilization or EngineSettings.gpu_memory_utilization,
            tensor_parallel=self.row.tensor_parallel,
            max_num_batched_tokens=self.row.max_num_batched_tokens,
        )
        return build_engine(self.facts, self.gpu, settings, constants, self.link, prefix_caching=False)

    def compare(self, constants: StepConstants) -> list[Comparison]:
        found = closed_loop(
            self.engine(constants),
            concurrency=self.row.concurrency,
            requests=self.row.requests,
            input_tokens=self.row.input_tokens,
            output_tokens=self.row.output_tokens,
        )
        simulated: dict[Metric, float | None] = {
            "ttft_p50_ms": found.ttft_p50_s * 1e3,
            "tpot_p50_ms": None if found.tpot_p50_s is None else found.tpot_p50_s * 1e3,
            "output_tokens_per_s": found.output_tokens_per_s,
        }
        measured = self.row.measured()
        return [
            Comparison(self.row, metric, measured[metric], value)
            for metric, value in simulated.items()
            if metric in measured and value is not None
        ]


def _levenberg_marquardt(cases: Sequence[_Case], start: StepConstants) -> StepConstants:
    theta = _to_logs(start)
    residuals = _residuals(cases, theta)
    damping = 1e-2
    for _ in range(_ROUNDS):
        slopes = np.column_stack([_slope(cases, theta, residuals, i) for i in range(len(theta))])
        normal = slopes.T @ slopes
        step = np.linalg.solve(normal + damping * np.eye(len(theta)), -slopes.T @ residuals)
        trial = _bounded(theta + np.clip(step, -0.5, 0.5))
        found = _residuals(cases, trial)
        if found @ found < residuals @ residuals:
            theta, residuals, damping = trial, found, damping / 3
        else:
            damping *= 4
    return _from_logs(theta)


def _slope(cases: Sequence[_Case], theta: Vector, at: Vector, i: int) -> Vector:
    moved = theta.copy()
    moved[i] -= 1e-3  # downwards, away from the upper bounds
    slope: Vector = (at - _residuals(cases, moved)) / 1e-3
    return slope


def _residuals(cases: Sequence[_Case], theta: Vector) -> Vector:
    constants = _from_logs(theta)
    ratios = [item.simulated / item.measured for case in cases for item in case.compare(constants)]
    logs: Vector = np.log(np.array(ratios))
    return logs


def _to_logs(constants: StepConstants) -> Vector:
    values = (constants.bandwidth_share, constants.compute_share)
    times = (constants.step_overhead_s, constants.first_token_extra_s)
    logs: Vector = np.log(np.array([*values, *(max(time_s, _SMALLEST_S) for time_s in times)]))
    return logs


def _bounded(theta: Vector) -> Vector:
    return np.clip(theta, np.log([0.05, 0.05, _SMALLEST_S, _SMALLEST_S]), np.log([1.0, 1.0, 1.0, 10.0]))


def _from_logs(theta: Vector) -> StepConstants:
    bandwidth, compute, overhead_s, extra_s = (float(value) for value in np.exp(theta))
    return StepConstants(bandwidth, compute, overhead_s, extra_s)
