"""Cost against attainment: who is on the Pareto front, and what a policy costs at a given attainment. Pure."""

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One run or one setting of a knob."""

    attainment: float
    """Share of requests that were good, 0 to 1: more is better."""
    gpu_hours: float
    """Less is better."""


def on_front(points: Sequence[Point]) -> tuple[bool, ...]:
    """For each point whether no other is at least as good in both and better in one. Equal points are both on it."""
    return tuple(not any(_dominates(other, point) for other in points) for point in points)


def _dominates(other: Point, point: Point) -> bool:
    as_good = other.attainment >= point.attainment and other.gpu_hours <= point.gpu_hours
    return as_good and (other.attainment > point.attainment or other.gpu_hours < point.gpu_hours)


def envelope(points: Sequence[Point]) -> tuple[Point, ...]:
    """The settings worth having, by rising attainment and rising cost: the Pareto front without doubles."""
    kept = zip(points, on_front(points), strict=True)
    return tuple(sorted({point for point, front in kept if front}))


def gpu_hours_at(points: Sequence[Point], attainment: float) -> float | None:
    """What a policy costs at this attainment, along its knob's sweep; None when no setting reaches it.

    Linear between neighbours of the envelope, so noise that makes a sweep fall back cannot show. Never extrapolated:
    below the envelope's lowest attainment the cost is that of its cheapest point.
    """
    curve = envelope(points)
    above = next((i for i, point in enumerate(curve) if point.attainment >= attainment), None)
    if above is None:
        return None
    if above == 0:
        return curve[0].gpu_hours
    low, high = curve[above - 1], curve[above]
    share = (attainment - low.attainment) / (high.attainment - low.attainment)
    return low.gpu_hours + share * (high.gpu_hours - low.gpu_hours)
