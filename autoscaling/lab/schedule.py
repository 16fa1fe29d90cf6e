"""Replicas over time, planned by somebody who knows every request beforehand.

Time is cut into windows. A plan gives each model a number of ready replicas in each window, and costs

    GPU-seconds held, loading and draining included  +  penalty x requests expected to miss

where the share of a window's load that is above its replicas' capacity is expected to miss. The cheapest plan is found
by dynamic programming over the replicas of all models. Pure.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.lab.foresight import drain_s, lead_windows, peak_loads
from raylane.autoscaling.lab.setup import Setup
from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.spec import ModelSpec

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
PerModel = float | Mapping[str, float]

WINDOW_S = 60.0
PENALTY_GPU_S = 10.0


@dataclass(frozen=True)
class Schedule:
    """Replicas of each model over time. `changes` are (time of asking, replicas from then on), rising in time."""

    initial: Mapping[str, int]
    changes: Mapping[str, tuple[tuple[float, int], ...]]

    def replicas(self, name: str, at_s: float) -> int:
        """Replicas to have asked for at this time."""
        changes = self.changes[name]
        before = bisect_right(changes, at_s, key=lambda change: change[0])
        return changes[before - 1][1] if before else self.initial[name]


def asked_gpu_hours(setup: Setup, schedule: Schedule) -> float:
    """GPU-hours of the replicas asked for, without what drains longer."""
    end_s = max(trace.duration_s for trace in setup.traces.values())
    total_s = 0.0
    for model in setup.models:
        name = model.spec.name
        steps = [(0.0, schedule.initial[name]), *schedule.changes[name], (end_s, 0)]
        total_s += sum(model.spec.gpus * count * (to_s - from_s) for (from_s, count), (to_s, _) in pairwise(steps))
    return total_s / 3600


@dataclass(frozen=True)
class Scheduled:
    """Proposes what a schedule says, whatever is seen."""

    schedule: Schedule

    def propose(self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: None) -> tuple[Proposal, None]:
        return Proposal(self.schedule.replicas(spec.name, at_s), Reason.STATIC), None


@dataclass(frozen=True)
class Costs:
    """What a plan is judged by. One row for each window, one column for each model, except where said."""

    need: Floats
    """Replicas that the load fills, as a fraction."""
    requests: Floats
    gpus: tuple[int, ...]
    lead: tuple[int, ...]
    """Windows from asking for a replica until it is ready."""
    drain_s: tuple[float, ...]
    window_s: float
    penalty_gpu_s: tuple[float, ...]
    """GPU-seconds that one missed request of each model is worth."""

    def holding(self, counts: Counts) -> Floats:
        """GPU-seconds and penalties of each number of replicas (columns: models) in each window: windows x rows."""
        total = np.zeros((len(self.need), len(counts)))
        for model, gpus in enumerate(self.gpus):
            have = counts[:, model][None, :]
            need = self.need[:, model][:, None]
            missed = np.maximum(need - have, 0.0) / np.maximum(need, 1e-9)
            total += gpus * have * self.window_s
            total += self.penalty_gpu_s[model] * missed * self.requests[:, model][:, None]
        return total

    def changing(self, counts: Counts) -> Floats:
        """GPU-seconds of loading and draining from each number of replicas (rows) to each other (columns)."""
        total = np.zeros((len(counts), len(counts)))
        for model, gpus in enumerate(self.gpus):
            change = counts[:, model][None, :] - counts[:, model][:, None]
            loading_s = self.lead[model] * self.window_s
            total += gpus * np.where(change > 0, change * loading_s, -change * self.drain_s[model])
        return total


@dataclass(frozen=True)
class Future:
    """What a setup's traces will ask for, worked out once for many plans."""

    setup: Setup
    costs: Costs
    """Of replicas used to the full; a missed request costs nothing."""

    def plan(self, headroom: PerModel, penalty_gpu_s: PerModel = PENALTY_GPU_S) -> Schedule:
        """The cheapest schedule for 1 / headroom times the load, so that this share of the replicas' capacity is used.

        Headroom and penalty are of all models, or by model name.
        """
        used = np.array(self._by_model(headroom))
        costs = replace(
            self.costs,
            need=self.costs.need / used,
            requests=self.costs.requests / used,
            penalty_gpu_s=self._by_model(penalty_gpu_s),
        )
        bounds = [(model.spec.min_replicas, model.spec.max_replicas) for model in self.setup.models]
        fleet = sum(len(host.gpus) for host in self.setup.hosts)
        return _schedule(self.setup, cheapest_plan(costs, bounds, fleet), costs)

    def _by_model(self, value: PerModel) -> tuple[float, ...]:
        names = [model.spec.name for model in self.setup.models]
        return tuple(value[name] if isinstance(value, Mapping) else value for name in names)


def foresee(setup: Setup, window_s: float = WINDOW_S) -> Future:
    """The future of a setup. Its replicas must do for the fullest seconds of each window."""
    windows = max(1, math.ceil(max(trace.duration_s for trace in setup.traces.values()) / window_s))
    loads = [peak_loads(m, setup.traces[m.spec.name], windows, window_s) for m in setup.models]
    costs = Costs(
        need=np.column_stack([need for need, _ in loads]),
        requests=np.column_stack([requests for _, requests in loads]),
        gpus=tuple(m.spec.gpus for m in setup.models),
        lead=tuple(lead_windows(m, window_s) for m in setup.models),
        drain_s=tuple(drain_s(m, setup.traces[m.spec.name]) for m in setup.models),
        window_s=window_s,
        penalty_gpu_s=(0.0,) * len(setup.models),
    )
    return Future(setup, costs)


def plan(
    setup: Setup, headroom: PerModel, *, penalty_gpu_s: PerModel = PENALTY_GPU_S, window_s: float = WINDOW_S
) -> Schedule:
    """The cheapest schedule with perfect foresight. Headroom and penalty are of all models, or by model name."""
    return foresee(setup, window_s).plan(headroom, penalty_gpu_s)


def cheapest_plan(costs: Costs, bounds: Sequence[tuple[int, int]], fleet: int) -> Counts:
    """Ready replicas of each model (columns) in each window (rows) with the least cost.

    `bounds` are each model's fewest and most replicas, `fleet` the GPUs there are. From one window to the next, what
    grows finds its GPUs beside those of what shrinks. Nothing grows before its lead has passed.
    """
    counts = _states(costs.gpus, bounds, fleet)
    changing = np.where(_fits(counts, costs.gpus, fleet), costs.changing(counts), np.inf)
    holding = costs.holding(counts)
    windows = len(holding)
    best = holding[0]
    came_from = np.zeros((windows, len(counts)), dtype=np.int64)
    for window in range(1, windows):
        total = best[:, None] + _without_early(changing, counts, costs.lead, window)
        came_from[window] = total.argmin(axis=0)
        best = total[came_from[window], np.arange(len(counts))] + holding[window]
    path = np.empty(windows, dtype=np.int64)
    path[-1] = best.argmin()
    for window in range(windows - 1, 0, -1):
        path[window - 1] = came_from[window, path[window]]
    return counts[path]


def _states(gpus: Sequence[int], bounds: Sequence[tuple[int, int]], fleet: int) -> Counts:
    every = itertools.product(*(range(low, min(high, fleet) + 1) for low, high in bounds))
    fitting = [counts for counts in every if sum(g * n for g, n in zip(gpus, counts, strict=True)) <= fleet]
    return np.array(fitting, dtype=np.int64)


def _fits(counts: Counts, gpus: Sequence[int], fleet: int) -> NDArray[np.bool_]:
    """Whether the replicas of both sides of a change have room at once: from (rows), to (columns)."""
    both = np.maximum(counts[:, None, :], counts[None, :, :])
    return np.asarray((both * np.asarray(gpus)).sum(axis=2) <= fleet)


def _without_early(changing: Floats, counts: Counts, lead: Sequence[int], window: int) -> Floats:
    """The costs of changes, without growth that would have been asked for before the start."""
    early = [model for model, windows in enumerate(lead) if window < windows]
    if not early:
        return changing
    grows = counts[None, :, early] > counts[:, None, early]
    return np.where(grows.any(axis=2), np.inf, changing)


def _schedule(setup: Setup, path: Counts, costs: Costs) -> Schedule:
    initial, changes = {}, {}
    for index, model in enumerate(setup.models):
        ready, lead = path[:, index], costs.lead[index]
        asked = np.zeros(len(ready), dtype=np.int64)  # changes of the target, by window
        steps = np.diff(ready)
        windows = np.flatnonzero(steps) + 1
        np.add.at(asked, np.where(steps[windows - 1] > 0, windows - lead, windows), steps[windows - 1])
        targets = ready[0] + np.cumsum(asked)
        when = np.flatnonzero(asked)
        initial[model.spec.name] = int(ready[0])
        changes[model.spec.name] = tuple((float(w * costs.window_s), int(targets[w])) for w in when)
    return Schedule(initial, changes)
