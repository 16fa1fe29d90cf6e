"""Fleets that never change: the cheapest one for a trace, and the load at which a given one is just enough.

Models share no engine, so what a model attains depends on its own number of replicas only: each is replayed alone.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from raylane.autoscaling.lab.outcome import good_requests, outcome
from raylane.autoscaling.lab.setup import LabModel, Setup
from raylane.autoscaling.lab.world import World
from raylane.autoscaling.pipeline import Policy
from raylane.autoscaling.rules.fixed import Fixed
from raylane.autoscaling.share import in_turn
from raylane.autoscaling.traces.trace import scaled
from raylane.cluster.errors import UsageError

LOOK_EVERY_S = 30.0  # nothing is decided; the world still collects what finished
FACTOR_TOLERANCE = 0.01
_WIDEST = 2.0**10  # factors are looked for within 1 / this and this


def static_setup(setup: Setup, counts: Mapping[str, int]) -> Setup:
    """The setup with these replicas at the start."""
    models = tuple(replace(model, initial_replicas=counts[model.spec.name]) for model in setup.models)
    return replace(setup, models=models)


def static_policy(setup: Setup, counts: Mapping[str, int]) -> Policy:
    """The policy that keeps these replicas."""
    specs = {model.spec.name: model.spec for model in setup.models}
    return Policy(specs, Fixed(dict(counts)), in_turn, LOOK_EVERY_S, name="static")


def replay_static(setup: Setup, counts: Mapping[str, int], seed: int) -> World:
    """A finished replay of a fleet that has these replicas, ready, from the start to the end."""
    return World(static_setup(setup, counts), static_policy(setup, counts), seed).run()


def cheapest_static(setup: Setup, attainment: float, seed: int = 0, *, each: bool = False) -> dict[str, int] | None:
    """The replicas of each model that reach this attainment on the setup's traces with the fewest GPUs.

    Attainment is pooled: the share of all requests of all models; a model with few requests may stay below it. With
    `each` every model reaches it by itself. Of fleets with as many GPUs the one that attains most wins. None when no
    fleet within the models' bounds and the GPUs reaches it.
    """
    curves = [_Curve(_alone(setup, model), model, seed) for model in setup.models]
    smallest = {curve.model.spec.name: curve.smallest(_counts(setup, curve.model), attainment) for curve in curves}
    if each:
        counts = {name: count for name, count in smallest.items() if count is not None}
        fleet = tuple(counts.values())
        return counts if len(counts) == len(curves) and _gpus(setup, fleet) <= _size(setup) else None
    return _cheapest_pooled(setup, curves, attainment, seed)


def _cheapest_pooled(setup: Setup, curves: "list[_Curve]", attainment: float, seed: int) -> dict[str, int] | None:
    for _, fleets in itertools.groupby(_fleets(setup), key=lambda fleet: _gpus(setup, fleet)):
        able = [fleet for fleet in fleets if _at_most(curves, fleet) >= attainment]
        for fleet in sorted(able, key=lambda fleet: -_pooled(curves, fleet)):
            if _pooled(curves, fleet) < attainment:
                break
            counts = {model.spec.name: count for model, count in zip(setup.models, fleet, strict=True)}
            if len(curves) == 1 or outcome(replay_static(setup, counts, seed)).attainment >= attainment:
                return counts
    return None


def scale_for_static(setup: Setup, want: Mapping[str, int], attainment: float, seed: int = 0) -> dict[str, float]:
    """For each model the factor on the rate of its trace up to which `want` replicas of it reach the attainment.

    Traces are scaled with `scaled` and a generator of `seed`: a study that scales them the same way gets the traces
    that were tried. Factors are exact to 1 %, from below: at the factor itself the attainment is reached.
    """
    return {
        model.spec.name: _largest_factor(setup, model, want[model.spec.name], attainment, seed)
        for model in setup.models
    }


@dataclass
class _Curve:
    """Good requests of one model by its number of replicas; more replicas are taken to be never worse."""

    setup: Setup
    model: LabModel
    seed: int
    known: dict[int, int] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        return len(self.setup.traces[self.model.spec.name])

    def good(self, count: int) -> int:
        if count not in self.known:
            world = replay_static(self.setup, {self.model.spec.name: count}, self.seed)
            self.known[count] = int(good_requests(world.models[0]).sum())
        return self.known[count]

    def at_most(self, count: int) -> int:
        """The most that can be good, from what is known of larger numbers."""
        return min((good for other, good in self.known.items() if other >= count), default=self.requests)

    def smallest(self, counts: range, attainment: float) -> int | None:
        """The fewest replicas that reach the attainment for this model alone."""
        low, high = counts.start, counts.stop  # high is enough, or one more than allowed
        while low < high:
            middle = (low + high) // 2
            if self.good(middle) >= attainment * self.requests:
                high = middle
            else:
                low = middle + 1
        return high if high < counts.stop else None


def _alone(setup: Setup, model: LabModel) -> Setup:
    return replace(setup, models=(model,), traces={model.spec.name: setup.traces[model.spec.name]})


def _counts(setup: Setup, model: LabModel) -> range:
    most = sum(len(host.gpus) // model.spec.gpus for host in setup.hosts)
    return range(model.spec.min_replicas, min(model.spec.max_replicas, most) + 1)


def _fleets(setup: Setup) -> Iterator[tuple[int, ...]]:
    """Every number of replicas within the bounds and the GPUs, the fewest GPUs first."""
    size = _size(setup)
    every = itertools.product(*(_counts(setup, model) for model in setup.models))
    fitting = (fleet for fleet in every if _gpus(setup, fleet) <= size)
    return iter(sorted(fitting, key=lambda fleet: _gpus(setup, fleet)))


def _size(setup: Setup) -> int:
    return sum(len(host.gpus) for host in setup.hosts)


def _gpus(setup: Setup, fleet: tuple[int, ...]) -> int:
    return sum(model.spec.gpus * count for model, count in zip(setup.models, fleet, strict=True))


def _at_most(curves: list[_Curve], fleet: tuple[int, ...]) -> float:
    good = sum(curve.at_most(count) for curve, count in zip(curves, fleet, strict=True))
    return good / max(1, sum(curve.requests for curve in curves))


def _pooled(curves: list[_Curve], fleet: tuple[int, ...]) -> float:
    requests = sum(curve.requests for curve in curves)
    good = sum(curve.good(count) for curve, count in zip(curves, fleet, strict=True))
    return good / requests if requests else 1.0


def _largest_factor(setup: Setup, model: LabModel, count: int, attainment: float, seed: int) -> float:
    name = model.spec.name
    alone = _alone(setup, model)

    def enough(factor: float) -> bool:
        trace = scaled(setup.traces[name], factor, np.random.default_rng(seed))
        if not len(trace):
            return True
        world = replay_static(replace(alone, traces={name: trace}), {name: count}, seed)
        return float(good_requests(world.models[0]).mean()) >= attainment

    low, high = _bracket(enough, f"{name}: {count} replicas and {attainment:g}")
    while high / low > 1.0 + FACTOR_TOLERANCE:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


def _bracket(enough: Callable[[float], bool], what: str) -> tuple[float, float]:
    """Neighbouring powers of 2, of which the lower one is enough and the higher one is not."""
    factor, first = 1.0, enough(1.0)
    while 1.0 / _WIDEST <= factor <= _WIDEST:
        other = factor * 2.0 if first else factor / 2.0
        if enough(other) is not first:
            return min(factor, other), max(factor, other)
        factor = other
    raise UsageError(f"{what}: still {'reached' if first else 'missed'} at {factor:g} times the rate of the trace")
