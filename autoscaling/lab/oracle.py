"""The clairvoyant oracle: the replicas somebody would ask for who knew every request beforehand.

It pays for cold starts and drains as every policy does, so what it does is possible; what is left to be gained below
it is between it and `fluid_bound`. Time is cut into windows. A plan gives each model a number of ready replicas in each
window, and costs

    GPU-seconds held, loading and draining included  +  penalty x requests expected to miss

where the share of a window's load that is above its replicas' capacity is expected to miss. The cheapest plan is found
by dynamic programming over the replicas of all models. Two things are beyond it. Queues may outlive a window, so
`best_oracle` has the replay confirm a plan. And while one model loads, another that shrinks may still hold the GPUs:
the plan looks at the window of the change only, and in the replay such a replica waits, as it does for everybody.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from raylane.autoscaling.decision import Reason
from raylane.autoscaling.lab.foresight import drain_s, lead_windows, window_loads
from raylane.autoscaling.lab.outcome import FLUID_WINDOW_S, fluid_replicas, outcome
from raylane.autoscaling.lab.pareto import Point
from raylane.autoscaling.lab.setup import Setup
from raylane.autoscaling.lab.world import ModelState, World
from raylane.autoscaling.observation import ModelSeen
from raylane.autoscaling.policy import ModelSpec, Policy, Unshared, Wish

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

WINDOW_S = 60.0
PENALTY_GPU_S = 10.0
MOST_LOAD = 1.5
LEAST_LOAD = 0.3
REPLAYS, REPLAYS_NEAR = 6, 4
NEAR = 1.4
PENALTIES = (10.0, 3.0, 30.0)


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


@dataclass(frozen=True)
class Scheduled:
    """Wishes for what a schedule says, whatever is seen."""

    schedule: Schedule

    def wish(self, spec: ModelSpec, seen: ModelSeen, at_s: float, memory: None) -> tuple[Wish, None]:
        return Wish(self.schedule.replicas(spec.name, at_s), Reason.STATIC), None


@dataclass(frozen=True)
class Oracle:
    """The cheapest plan that the replay confirmed, and every plan it tried."""

    schedule: Schedule
    headroom: float
    attainment: float
    gpu_hours: float
    points: tuple[Point, ...]
    reached: bool
    """False: no plan tried attains what was asked for; this is the one that attains most."""


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
    penalty_gpu_s: float
    """GPU-seconds that one missed request is worth."""

    def holding(self, counts: Counts) -> Floats:
        """GPU-seconds and penalties of each number of replicas (columns: models) in each window: windows x rows."""
        total = np.zeros((len(self.need), len(counts)))
        for model, gpus in enumerate(self.gpus):
            have = counts[:, model][None, :]
            need = self.need[:, model][:, None]
            missed = np.maximum(need - have, 0.0) / np.maximum(need, 1e-9)
            total += gpus * have * self.window_s
            total += self.penalty_gpu_s * missed * self.requests[:, model][:, None]
        return total

    def changing(self, counts: Counts) -> Floats:
        """GPU-seconds of loading and draining from each number of replicas (rows) to each other (columns)."""
        total = np.zeros((len(counts), len(counts)))
        for model, gpus in enumerate(self.gpus):
            change = counts[:, model][None, :] - counts[:, model][:, None]
            loading_s = self.lead[model] * self.window_s
            total += gpus * np.where(change > 0, change * loading_s, -change * self.drain_s[model])
        return total


def plan(
    setup: Setup, headroom: float, *, penalty_gpu_s: float = PENALTY_GPU_S, window_s: float = WINDOW_S
) -> Schedule:
    """The cheapest schedule with perfect foresight. `headroom`: the share of a replica's capacity that is used."""
    costs = _costs(setup, headroom, penalty_gpu_s, window_s)
    bounds = [(model.spec.min_replicas, model.spec.max_replicas) for model in setup.models]
    fleet = sum(len(host.gpus) for host in setup.hosts)
    return _schedule(setup, cheapest_plan(costs, bounds, fleet), costs)


def best_oracle(
    setup: Setup, attainment: float = 0.99, seeds: Sequence[int] = (1,), *, penalties_gpu_s: Sequence[float] = PENALTIES
) -> Oracle:
    """The cheapest plan found that attains this in the replay, on average over the seeds.

    For each penalty the highest headroom that is enough is found by bisection: for the first one among all, for the
    others, in fewer replays, near the best one so far.
    """
    search = _Search(setup, attainment, seeds)
    search.bisect(LEAST_LOAD, MOST_LOAD, penalties_gpu_s[0], REPLAYS)
    for penalty_gpu_s in penalties_gpu_s[1:]:
        near = search.best().headroom
        search.bisect(near / NEAR, near * NEAR, penalty_gpu_s, REPLAYS_NEAR)
    points = tuple(Point(one.attainment, one.gpu_hours) for one in search.tried)
    return replace(search.best(), points=points)


def replay_schedule(setup: Setup, schedule: Schedule, seed: int) -> World:
    """A finished replay of the schedule."""
    models = tuple(replace(m, initial_replicas=schedule.initial[m.spec.name]) for m in setup.models)
    specs = {model.spec.name: model.spec for model in setup.models}
    policy = Policy(specs, Scheduled(schedule), Unshared(), name="oracle")
    return World(replace(setup, models=models), policy, seed).run()


def fluid_bound(setup: Setup) -> float:
    """GPU-hours of the fewest replicas that carry each minute's arrivals, had they neither cold starts nor drains."""
    end_s = max(trace.duration_s for trace in setup.traces.values())
    windows = math.ceil(end_s / FLUID_WINDOW_S)
    lengths_s = np.full(windows, FLUID_WINDOW_S)
    lengths_s[-1] = end_s - (windows - 1) * FLUID_WINDOW_S
    return sum(
        model.spec.gpus * float(fluid_replicas(ModelState(model, setup), windows) @ lengths_s) / 3600
        for model in setup.models
    )


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


def _costs(setup: Setup, headroom: float, penalty_gpu_s: float, window_s: float) -> Costs:
    end_s = max(trace.duration_s for trace in setup.traces.values())
    windows = max(1, math.ceil(end_s / window_s))
    loads = [window_loads(m, setup.traces[m.spec.name], windows, window_s) for m in setup.models]
    return Costs(
        need=np.column_stack([need / headroom for need, _ in loads]),
        requests=np.column_stack([requests for _, requests in loads]),
        gpus=tuple(m.spec.gpus for m in setup.models),
        lead=tuple(lead_windows(m, window_s) for m in setup.models),
        drain_s=tuple(drain_s(m, setup.traces[m.spec.name]) for m in setup.models),
        window_s=window_s,
        penalty_gpu_s=penalty_gpu_s,
    )


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


@dataclass
class _Search:
    """Plans tried so far. The same schedule is not replayed twice."""

    setup: Setup
    attainment: float
    seeds: Sequence[int]
    tried: list[Oracle] = field(default_factory=list)

    def best(self) -> Oracle:
        """The cheapest that is enough, else the one that attains most."""
        enough = [one for one in self.tried if one.reached]
        if enough:
            return min(enough, key=lambda one: one.gpu_hours)
        return max(self.tried, key=lambda one: one.attainment)

    def bisect(self, low: float, high: float, penalty_gpu_s: float, replays: int) -> None:
        for _ in range(replays):
            headroom = (low * high) ** 0.5
            self.tried.append(self._try(headroom, penalty_gpu_s))
            low, high = (headroom, high) if self.tried[-1].reached else (low, headroom)

    def _try(self, headroom: float, penalty_gpu_s: float) -> Oracle:
        schedule = plan(self.setup, headroom, penalty_gpu_s=penalty_gpu_s)
        for other in self.tried:
            if other.schedule == schedule:
                return replace(other, headroom=headroom)
        found = [outcome(replay_schedule(self.setup, schedule, seed)) for seed in self.seeds]
        attained = sum(one.attainment for one in found) / len(found)
        gpu_hours = sum(one.gpu_hours for one in found) / len(found)
        return Oracle(schedule, headroom, attained, gpu_hours, (), attained >= self.attainment)
