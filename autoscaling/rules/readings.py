"""What the rules read from an observation, and means and peaks of it over time. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation

Series = tuple[tuple[float, float], ...]
"""(time in seconds, value), oldest first."""


class LastChange(NamedTuple):
    """When the replicas asked for last changed, whoever changed them. Until the first change `changed_s` is None."""

    target: int
    seen_s: float
    changed_s: float | None = None


def mean(readings: Iterable[float | None]) -> float | None:
    """Mean of what is known; None when nothing is."""
    known = [reading for reading in readings if reading is not None]
    return sum(known) / len(known) if known else None


def ongoing(seen: ModelObservation) -> float | None:
    """Requests in ready replicas, running or waiting, and held at the gateways. A replica without readings is taken to
    hold as many as the others; None when no ready replica has any."""
    ready = seen.ready
    if not ready:
        return float(seen.held)
    inside = mean(None if one.running is None else float(one.running + (one.waiting or 0)) for one in ready)
    return None if inside is None else inside * len(ready) + seen.held


def record(series: Series, at_s: float, value: float | None, keep_s: float) -> Series:
    """The series with this value, without what is `keep_s` old. None adds nothing; a clock set back begins anew."""
    if series and at_s < series[-1][0]:
        series = ()
    first = 0
    while first < len(series) and series[first][0] <= at_s - keep_s:
        first += 1
    return series[first:] if value is None else (*series[first:], (at_s, value))


def mean_over(series: Series, at_s: float, window_s: float) -> float | None:
    """Mean of the values of the last `window_s`; of the last one when the window is 0."""
    if not window_s:
        return series[-1][1] if series and series[-1][0] == at_s else None
    return mean(value for time_s, value in series if time_s > at_s - window_s)


def note_change(past: LastChange | None, seen: ModelObservation, at_s: float) -> LastChange:
    """What to remember of the target: a change seen now was made at the decision before."""
    if past is None or at_s < past.seen_s:
        return LastChange(seen.target, at_s)
    return LastChange(seen.target, at_s, past.changed_s if seen.target == past.target else past.seen_s)


def cooled(change: LastChange, at_s: float, cooldown_s: float) -> bool:
    """No change within the cooldown."""
    return change.changed_s is None or at_s - change.changed_s >= cooldown_s


def at_zero(seen: ModelObservation) -> Proposal:
    """For a model of which no replica is asked for: one as soon as a request waits."""
    return Proposal(1, Reason.WAKE) if seen.held else Proposal(0, Reason.IDLE)


def keep_one(seen: ModelObservation, replicas: int) -> int:
    """At least one while requests are inside or held, or while that is not known."""
    return max(replicas, 0 if ongoing(seen) == 0.0 else 1)
