"""What became of a replay: requests against their SLO, GPU-hours, actions. Every figure is a row of one small JSON."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylane.autoscaling.lab.world import ModelState, World
from raylane.autoscaling.profile import capacity_profile
from raylane.deployments.slo import Verdict, judge_all

WINDOW_S = 600.0
FLUID_WINDOW_S = 60.0
REVERSAL_S = 900.0
FEWEST_IN_WINDOW = 20
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ModelOutcome:
    """One model in one replay. `good` requests met the SLO; rejected, cut and unfinished ones did not.

    `over` and `under` are mean replicas above and below the fluid demand (the fewest that carry each minute's arrivals
    on average, by the capacity profile), as a share of it; `over_share`, `under_share` the shares of time.
    """

    name: str
    requests: int
    good: int
    late_first_token: int
    slow_tokens: int
    lost: int
    gpu_hours: float
    loading_gpu_hours: float
    ups: int
    downs: int
    reversals: int
    starts: int
    moves: int
    wakes: int
    second_best_starts: int
    over: float
    under: float
    over_share: float
    under_share: float
    wasted_gpu_hours: float


@dataclass(frozen=True)
class Outcome:
    """One replay. Attainment is the share of all attempted requests, of all models, that were good."""

    hours: float
    gpu_hours: float
    attainment: float
    worst_model: float
    worst_10_minutes: float
    p5_10_minutes: float
    good_output_tokens: int
    actions: int
    reversals_per_hour: float
    wasted_usd: float
    models: tuple[ModelOutcome, ...]

    def to_json(self) -> dict[str, Any]:
        """Figures rounded to what is meant."""
        rounded: dict[str, Any] = _round(asdict(self))
        return rounded


def outcome(world: World) -> Outcome:
    """The figures of a finished replay."""
    hours = world.end_s / 3600
    goods = [good_requests(model) for model in world.models]
    models = tuple(_model_outcome(model, good, world.end_s) for model, good in zip(world.models, goods, strict=True))
    requests, good = sum(m.requests for m in models), sum(m.good for m in models)
    windows = _windows(world, goods)
    return Outcome(
        hours=hours,
        gpu_hours=sum(m.gpu_hours for m in models),
        attainment=good / requests if requests else 1.0,
        worst_model=min((m.good / m.requests for m in models if m.requests), default=1.0),
        worst_10_minutes=float(windows.min()) if len(windows) else 1.0,
        p5_10_minutes=float(np.quantile(windows, 0.05)) if len(windows) else 1.0,
        good_output_tokens=sum(
            int(np.asarray(m.outputs)[g].sum()) for m, g in zip(world.models, goods, strict=True) if len(g)
        ),
        actions=sum(m.ups + m.downs for m in models),
        reversals_per_hour=sum(m.reversals for m in models) / hours if hours else 0.0,
        wasted_usd=sum(m.wasted_gpu_hours for m in models) * world.setup.usd_per_gpu_hour,
        models=models,
    )


def good_requests(model: ModelState) -> NDArray[np.bool_]:
    """Which requests met the SLO."""
    return _verdicts(model).good


def _verdicts(model: ModelState) -> Verdict[NDArray[np.bool_]]:
    """On every request."""
    limits = model.model.spec.slo.limits()
    arrivals, inputs = np.asarray(model.arrivals_s), np.asarray(model.inputs, dtype=float)
    first, finished = _floats(model.first_s), _floats(model.finished_s)
    more = np.maximum(np.asarray(model.outputs, dtype=float) - 1, 1)
    return judge_all(limits, ~np.isnan(finished), first - arrivals, (finished - first) / more, inputs)


def _model_outcome(model: ModelState, good: NDArray[np.bool_], end_s: float) -> ModelOutcome:
    found = _verdicts(model)
    spec = model.model.spec
    gpu_hours = sum(gpus * _overlap(begin, end, end_s) for begin, end, gpus in model.allocated) / 3600
    held = _held_replicas(model, end_s)
    needed = fluid_replicas(model, len(held))
    over, under = np.maximum(held - needed, 0), np.maximum(needed - held, 0)
    ups, downs, reversals = _actions(model.targets)
    return ModelOutcome(
        name=model.name,
        requests=len(good),
        good=int(good.sum()),
        late_first_token=int(found.late.sum()),
        slow_tokens=int(found.slow.sum()),
        lost=int(found.unproven.sum()),
        gpu_hours=gpu_hours,
        loading_gpu_hours=model.loading_gpu_s / 3600,
        ups=ups,
        downs=downs,
        reversals=reversals,
        starts=model.starts,
        moves=model.moves,
        wakes=model.wakes,
        second_best_starts=model.second_best_starts,
        over=float(over.sum() / max(1, needed.sum())),
        under=float(under.sum() / max(1, needed.sum())),
        over_share=float((over > 0).mean()) if len(over) else 0.0,
        under_share=float((under > 0).mean()) if len(under) else 0.0,
        wasted_gpu_hours=float(over.sum()) * spec.gpus * FLUID_WINDOW_S / 3600,
    )


def fluid_replicas(model: ModelState, windows: int) -> NDArray[np.int64]:
    """The fewest replicas that carry each minute's arrivals, and the configured minimum."""
    spec = model.model.spec
    profile = capacity_profile(model.model.engine, spec.slo)  # the true one, also where policies are told otherwise
    inputs, outputs = np.asarray(model.inputs, dtype=float), np.asarray(model.outputs, dtype=float)
    edges = np.searchsorted(np.asarray(model.arrivals_s), np.arange(windows + 1) * FLUID_WINDOW_S)
    needed = np.full(windows, spec.min_replicas)
    for window, (first, last) in enumerate(pairwise(edges)):
        if last > first:
            capacity = profile.requests_per_s(inputs[first:last].mean(), outputs[first:last].mean())
            wanted = math.ceil((last - first) / FLUID_WINDOW_S / capacity)
            needed[window] = spec.clamp(wanted)
    return needed


def _held_replicas(model: ModelState, end_s: float) -> Floats:
    """Mean replicas that held GPUs, in each minute."""
    windows = math.ceil(end_s / FLUID_WINDOW_S)
    edges = np.arange(windows + 1) * FLUID_WINDOW_S
    held = np.zeros(windows)
    for begin, end, _ in model.allocated:
        first, last = int(begin // FLUID_WINDOW_S), min(int(end // FLUID_WINDOW_S), windows - 1)
        spans = np.minimum(edges[first + 1 : last + 2], end) - np.maximum(edges[first : last + 1], begin)
        held[first : last + 1] += np.maximum(spans, 0) / FLUID_WINDOW_S
    return held


def _windows(world: World, goods: list[NDArray[np.bool_]]) -> Floats:
    """Attainment of all requests in each 10 minutes that have enough of them."""
    count = math.ceil(world.end_s / WINDOW_S) + 1
    attempted, good = np.zeros(count), np.zeros(count)
    for model, flags in zip(world.models, goods, strict=True):
        bins = (np.asarray(model.arrivals_s) // WINDOW_S).astype(int)
        attempted += np.bincount(bins, minlength=count)
        good += np.bincount(bins, weights=flags, minlength=count)
    enough = attempted >= FEWEST_IN_WINDOW
    return np.asarray(good[enough] / attempted[enough])


def _actions(targets: list[tuple[float, int]]) -> tuple[int, int, int]:
    """(ups, downs, reversals): a reversal is a change against the one before, within 15 minutes of it."""
    ups = downs = reversals = 0
    before: tuple[float, int] | None = None
    for (_, old), (at_s, new) in pairwise(targets):
        sign = 1 if new > old else -1
        ups, downs = ups + (sign > 0), downs + (sign < 0)
        if before is not None and before[1] == -sign and at_s - before[0] <= REVERSAL_S:
            reversals += 1
        before = (at_s, sign)
    return ups, downs, reversals


def _overlap(begin_s: float, end_s: float, limit_s: float) -> float:
    return max(0.0, min(end_s, limit_s) - begin_s)


def _floats(values: list[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values])


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _round(item) for key, item in value.items()}
    return [_round(item) for item in value] if isinstance(value, list | tuple) else value
