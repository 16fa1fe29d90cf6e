"""The clairvoyant oracle: the replicas somebody would ask for who knew every request beforehand.

It pays for cold starts and drains as every policy does, so what it does is possible; what is left to be gained below
it is between it and `fluid_bound`. Its plans are those of `schedule`. Two things are beyond them: queues may outlive a
window, so the replay has to confirm a plan; and while one model loads, another that shrinks may still hold the GPUs:
the plan looks at the window of the change only, and in the replay such a replica waits, as it does for everybody.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from raylane.autoscaling.lab.outcome import FLUID_WINDOW_S, Outcome, fluid_replicas, outcome
from raylane.autoscaling.lab.pareto import Point
from raylane.autoscaling.lab.schedule import Future, Schedule, Scheduled, asked_gpu_hours, foresee
from raylane.autoscaling.lab.setup import LabModel, Setup
from raylane.autoscaling.lab.world import ModelState, World
from raylane.autoscaling.pipeline import Policy
from raylane.autoscaling.share import in_turn

MOST_LOAD = 2.0
LEAST_LOAD = 0.15
REPLAYS, REPLAYS_NEAR, REPLAYS_TOGETHER = 7, 4, 6
NEAR = 1.4
TIGHTER = 0.95
PENALTIES = (10.0, 3.0, 30.0, 100.0)


@dataclass(frozen=True)
class Margins:
    """What a plan was made with, by model name."""

    headroom: Mapping[str, float]
    """The share of a replica's capacity that is used."""
    penalty_gpu_s: Mapping[str, float]
    """GPU-seconds that one missed request is worth."""

    def tighter(self, names: Sequence[str]) -> "Margins":
        """A little less used of the replicas of these models."""
        headroom = {name: value * (TIGHTER if name in names else 1.0) for name, value in self.headroom.items()}
        return replace(self, headroom=headroom)

    def used_more(self, factor: float) -> "Margins":
        """The headroom of every model times the factor."""
        return replace(self, headroom={name: value * factor for name, value in self.headroom.items()})


@dataclass(frozen=True)
class Oracle:
    """The cheapest schedule that the replay confirmed, and every one it tried. Means over the seeds."""

    schedule: Schedule
    margins: Margins | None
    """None for a schedule that was not planned."""
    attainment: float
    """Of the requests of all models."""
    models: Mapping[str, float]
    """Attainment of each model that had requests."""
    gpu_hours: float
    points: tuple[Point, ...]
    """Attainment as it was asked for, pooled or of the worst model, and cost of every schedule tried on all models."""
    reached: bool
    """False: nothing tried attains what was asked for; this is the one that attains most."""

    @property
    def worst_model(self) -> float:
        """The attainment of the model that attains least."""
        return min(self.models.values(), default=1.0)


def best_oracle(
    setup: Setup,
    attainment: float = 0.99,
    seeds: Sequence[int] = (1,),
    *,
    each: bool = False,
    penalties_gpu_s: Sequence[float] = PENALTIES,
    known: Sequence[Schedule] = (),
    near: Margins | None = None,
) -> Oracle:
    """The cheapest schedule found that attains this in the replay, on average over the seeds.

    Attainment is pooled: the share of all requests of all models. For each penalty the highest headroom that is enough
    is found by bisection: for the first one among all, for the others, in fewer replays, near the best one so far.
    With `each` every model attains it by itself: the search is made for each model alone on the whole fleet, then for
    all together, with less used of the replicas of those that miss in each other's company.

    `known` schedules are tried too where they may be cheaper, and pooled, plans `near` these margins: those found with
    `each` let models differ.
    """
    if each:
        return _best_each(setup, attainment, seeds, penalties_gpu_s, known)
    search = _search(setup, attainment, seeds, penalties_gpu_s, known)
    if near is not None:
        search.bisect(near, 1.0 / NEAR, NEAR, REPLAYS_NEAR)
    return search.found()


def replay_schedule(setup: Setup, schedule: Schedule, seed: int) -> World:
    """A finished replay of the schedule."""
    models = tuple(replace(m, initial_replicas=schedule.initial[m.spec.name]) for m in setup.models)
    specs = {model.spec.name: model.spec for model in setup.models}
    policy = Policy(specs, Scheduled(schedule), in_turn, name="oracle")
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


def _best_each(
    setup: Setup,
    attainment: float,
    seeds: Sequence[int],
    penalties_gpu_s: Sequence[float],
    known: Sequence[Schedule],
) -> Oracle:
    alone = [
        _search(_alone(setup, model), attainment, seeds, penalties_gpu_s, [_only(one, model) for one in known])
        for model in setup.models
    ]
    search = _Search(setup, attainment, seeds, each=True)
    search.replay(_together([one.best().schedule for one in alone]))
    margins = _joined([one.best_planned() for one in alone])
    for _ in range(REPLAYS_TOGETHER):
        tried = search.plan(margins)
        if tried.reached:
            break
        margins = margins.tighter([name for name, attained in tried.models.items() if attained < attainment])
    search.replay_cheaper(known)
    return search.found()


def _search(
    setup: Setup,
    attainment: float,
    seeds: Sequence[int],
    penalties_gpu_s: Sequence[float],
    known: Sequence[Schedule],
) -> "_Search":
    """A search of which every model has the same headroom and penalty."""
    search = _Search(setup, attainment, seeds)
    for penalty_gpu_s in penalties_gpu_s:
        search.bisect_near(penalty_gpu_s)
    search.replay_cheaper(known)
    return search


def _alone(setup: Setup, model: LabModel) -> Setup:
    return replace(setup, models=(model,), traces={model.spec.name: setup.traces[model.spec.name]})


def _only(schedule: Schedule, model: LabModel) -> Schedule:
    name = model.spec.name
    return Schedule({name: schedule.initial[name]}, {name: schedule.changes[name]})


def _together(schedules: Sequence[Schedule]) -> Schedule:
    initial = {name: count for one in schedules for name, count in one.initial.items()}
    return Schedule(initial, {name: changes for one in schedules for name, changes in one.changes.items()})


def _joined(margins: Sequence[Margins]) -> Margins:
    headroom = {name: value for one in margins for name, value in one.headroom.items()}
    return Margins(headroom, {name: value for one in margins for name, value in one.penalty_gpu_s.items()})


@dataclass
class _Search:
    """Schedules tried so far. The same one is not replayed twice."""

    setup: Setup
    attainment: float
    seeds: Sequence[int]
    each: bool = False
    tried: list[Oracle] = field(default_factory=list)

    @cached_property
    def future(self) -> Future:
        return foresee(self.setup)

    def found(self) -> Oracle:
        """The best, with what was tried."""
        points = tuple(Point(self.attained(one), one.gpu_hours) for one in self.tried)
        return replace(self.best(), points=points)

    def best(self) -> Oracle:
        """The cheapest that is enough, else the one that attains most."""
        return self._best(self.tried)

    def best_planned(self) -> Margins:
        """What the best of the plans was made with."""
        margins = self._best([one for one in self.tried if one.margins is not None]).margins
        assert margins is not None  # noqa: S101
        return margins

    def attained(self, one: Oracle) -> float:
        return one.worst_model if self.each else one.attainment

    def bisect_all(self, penalty_gpu_s: float) -> None:
        """Every model with the same headroom and penalty."""
        self.bisect(self._same(1.0, penalty_gpu_s), LEAST_LOAD, MOST_LOAD, REPLAYS)

    def bisect_near(self, penalty_gpu_s: float) -> None:
        """The same near the best plan so far; among all where none was enough."""
        if not any(one.reached for one in self.tried):
            self.bisect_all(penalty_gpu_s)
            return
        (headroom,) = set(self.best_planned().headroom.values())
        self.bisect(self._same(headroom, penalty_gpu_s), 1.0 / NEAR, NEAR, REPLAYS_NEAR)

    def bisect(self, margins: Margins, low: float, high: float, replays: int) -> None:
        """The highest factor on the headrooms that is enough."""
        for _ in range(replays):
            factor = (low * high) ** 0.5
            reached = self.plan(margins.used_more(factor)).reached
            low, high = (factor, high) if reached else (low, factor)

    def _same(self, headroom: float, penalty_gpu_s: float) -> Margins:
        names = [model.spec.name for model in self.setup.models]
        return Margins(dict.fromkeys(names, headroom), dict.fromkeys(names, penalty_gpu_s))

    def plan(self, margins: Margins) -> Oracle:
        """What became of the plan with these margins."""
        return self.replay(self.future.plan(margins.headroom, margins.penalty_gpu_s), margins)

    def replay(self, schedule: Schedule, margins: Margins | None = None) -> Oracle:
        """What became of a schedule."""
        for other in self.tried:
            if other.schedule == schedule:
                self.tried.append(replace(other, margins=margins))
                return self.tried[-1]
        found = [outcome(replay_schedule(self.setup, schedule, seed)) for seed in self.seeds]
        one = Oracle(
            schedule=schedule,
            margins=margins,
            attainment=float(np.mean([each.attainment for each in found])),
            models=_by_model(found),
            gpu_hours=float(np.mean([each.gpu_hours for each in found])),
            points=(),
            reached=False,
        )
        self.tried.append(replace(one, reached=self.attained(one) >= self.attainment))
        return self.tried[-1]

    def replay_cheaper(self, known: Sequence[Schedule]) -> None:
        """Replay those of these schedules that may beat the best so far."""
        for schedule in known:
            enough = [one.gpu_hours for one in self.tried if one.reached]
            if asked_gpu_hours(self.setup, schedule) < min(enough, default=math.inf):
                self.replay(schedule)

    def _best(self, among: Sequence[Oracle]) -> Oracle:
        enough = [one for one in among if one.reached]
        if enough:
            return min(enough, key=lambda one: (one.gpu_hours, one.margins is None))
        return max(among, key=self.attained)


def _by_model(found: Sequence[Outcome]) -> dict[str, float]:
    goods: dict[str, list[float]] = {}
    for model in (model for one in found for model in one.models if model.requests):
        goods.setdefault(model.name, []).append(model.good / model.requests)
    return {name: float(np.mean(shares)) for name, shares in goods.items()}
