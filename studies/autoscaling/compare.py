"""What a policy costs at an attainment, seed by seed, and what raylane's own rule saves against the best other. Pure.

The best baseline is chosen on the very runs it is compared on, which favours the baseline, not raylane's rule.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylane.autoscaling.lab.pareto import Point, envelope, gpu_hours_at
from raylane.autoscaling.lab.statistics import Interval, paired_difference, paired_saving
from studies.autoscaling.runs import Curves, mean

LEVELS = 1000  # attainments to compare at are rounded down to a tenth of a percent
BOOTSTRAP_SEED = 1


@dataclass(frozen=True)
class Cost:
    """GPU-hours of one policy at an attainment."""

    by_seed: Mapping[int, float | None]
    """None on a seed whose sweep does not reach it."""
    best: Point
    """Mean over seeds of the highest attainment reached, and of what that cost."""

    @property
    def reached(self) -> int:
        """Seeds on which it is reached."""
        return sum(value is not None for value in self.by_seed.values())

    @property
    def gpu_hours(self) -> float | None:
        """The mean over seeds; None unless every seed reaches it."""
        values = [value for value in self.by_seed.values() if value is not None]
        return mean(values) if len(values) == len(self.by_seed) else None


@dataclass(frozen=True)
class SavingAtLevel:
    """raylane's own rule against the best baseline at one attainment, on the seeds that both ran."""

    baseline: str
    level: float
    ours: float
    theirs: float
    saving: Interval
    """Share of the baseline's GPU-hours that is saved; below 0 more is spent."""
    seeds: int
    ours_above: bool = False
    """On some seed our cheapest setting attains more than the level, so ours could be cheaper with a wider sweep."""
    theirs_above: bool = False
    """The same of the baseline's."""


@dataclass(frozen=True)
class SameCost:
    """raylane's own rule at its highest attainment, against what the best baseline attains for no more GPU-hours."""

    baseline: str
    gpu_hours: float
    ours: float
    theirs: float
    difference: Interval
    seeds: int


def cost(sweep: Curves, attainment: float) -> Cost:
    """What the sweep costs at this attainment."""
    best = [max(points, key=lambda point: (point.attainment, -point.gpu_hours)) for points in sweep.values()]
    return Cost(
        {seed: gpu_hours_at(points, attainment) for seed, points in sweep.items()},
        Point(mean(point.attainment for point in best), mean(point.gpu_hours for point in best)),
    )


def compare(ours: Curves, baselines: Mapping[str, Curves], attainment: float) -> SavingAtLevel | None:
    """Against the cheapest baseline that reaches the attainment on every shared seed; None where nobody, or ours, does
    not."""
    found = [_against(name, ours, theirs, attainment) for name, theirs in baselines.items()]
    return min((one for one in found if one is not None), key=lambda one: one.theirs, default=None)


def compare_at_common(ours: Curves, baselines: Mapping[str, Curves]) -> SavingAtLevel | None:
    """At the highest attainment that both ours and some baseline reach on every shared seed; of baselines that reach
    as high as each other, the cheapest."""
    levels = {name: common_level(ours, theirs) for name, theirs in baselines.items()}
    highest = max((level for level in levels.values() if level is not None), default=None)
    if highest is None:
        return None
    return compare(ours, {name: baselines[name] for name, level in levels.items() if level == highest}, highest)


def common_level(ours: Curves, theirs: Curves) -> float | None:
    """The highest attainment, in tenths of a percent, that both reach on every seed both ran; None without such."""
    seeds = ours.keys() & theirs.keys()
    highest = [max(point.attainment for point in sweep[seed]) for sweep in (ours, theirs) for seed in seeds]
    return math.floor(min(highest) * LEVELS + 1e-6) / LEVELS if highest else None


def compare_at_same_cost(ours: Curves, baselines: Mapping[str, Curves]) -> SameCost | None:
    """Against the baseline that attains most, along its sweep, for what our highest attainment costs on each seed; None
    where on some shared seed every baseline costs more."""
    found = [_for_no_more(name, ours, theirs) for name, theirs in baselines.items()]
    return max((one for one in found if one is not None), key=lambda one: one.theirs, default=None)


def _for_no_more(name: str, ours: Curves, theirs: Curves) -> SameCost | None:
    seeds = sorted(ours.keys() & theirs.keys())
    own = [envelope(ours[seed])[-1] for seed in seeds]
    other = [attainment_at(theirs[seed], best.gpu_hours) for seed, best in zip(seeds, own, strict=True)]
    attained = [value for value in other if value is not None]
    if not attained or len(attained) < len(seeds):
        return None
    difference = paired_difference([best.attainment for best in own], attained, BOOTSTRAP_SEED).bootstrap
    gpu_hours, highest = mean(best.gpu_hours for best in own), mean(best.attainment for best in own)
    return SameCost(name, gpu_hours, highest, mean(attained), difference, len(seeds))


def attainment_at(points: Sequence[Point], gpu_hours: float) -> float | None:
    """What a sweep attains for at most this, linear between neighbours of its envelope; None when every setting costs
    more."""
    curve = envelope(points)
    within = [point for point in curve if point.gpu_hours <= gpu_hours]
    if not within:
        return None
    if len(within) == len(curve):
        return within[-1].attainment
    low, high = within[-1], curve[len(within)]
    share = (gpu_hours - low.gpu_hours) / (high.gpu_hours - low.gpu_hours)
    return low.attainment + share * (high.attainment - low.attainment)


def _against(name: str, ours: Curves, theirs: Curves, attainment: float) -> SavingAtLevel | None:
    seeds = sorted(ours.keys() & theirs.keys())
    pairs = [(gpu_hours_at(ours[seed], attainment), gpu_hours_at(theirs[seed], attainment)) for seed in seeds]
    both = [(own, other) for own, other in pairs if own is not None and other is not None]
    if not both or len(both) < len(pairs):
        return None
    own, other = [pair[0] for pair in both], [pair[1] for pair in both]
    saving = paired_saving(own, other, BOOTSTRAP_SEED)
    overs = [any(_starts_above(sweep[seed], attainment) for seed in seeds) for sweep in (ours, theirs)]
    return SavingAtLevel(name, attainment, mean(own), mean(other), saving, len(both), *overs)


def _starts_above(points: Sequence[Point], attainment: float) -> bool:
    return envelope(points)[0].attainment > attainment


def above(ours: Mapping[int, float | None], bound: Mapping[int, float]) -> float | None:
    """Share by which ours is above a bound, on the seeds that have both; None without such."""
    pairs = [(value, bound[seed]) for seed, value in ours.items() if value is not None and seed in bound]
    return sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs) - 1.0 if pairs else None
