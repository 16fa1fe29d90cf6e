"""How much work arrives, and how much will have arrived when a new replica is ready. Pure.

A rate measured over a short window is believed only as far as chance does not explain it: its lower confidence bound,
rate - k x sqrt(rate x dispersion / window), with the dispersion (variance over mean of the counts, 1 for Poisson
arrivals) measured on the same traffic. So one quiet or busy half minute moves nothing, and a real jump is seen within
seconds.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

from raylane.autoscaling.observation import ModelObservation

WINDOWS_S = (10.0, 15.0, 30.0, 60.0, 120.0, 300.0)
TREND_S = 150.0
KEEP_S = 900.0
MIX_S = 900.0  # the mix of lengths is taken over this long
FEWEST_FINISHED = 20  # before that the prior counts as so many requests
PRIOR = (512.0, 192.0)
MOST_DISPERSION = 30.0


class Sample(NamedTuple):
    """Totals at one moment."""

    at_s: float
    arrivals: float
    finished: float
    prompt_tokens: float | None
    output_tokens: float | None
    """None while the engines do not tell."""
    missed: float | None = None


class Mix(NamedTuple):
    """Mean tokens of a request."""

    prompt: float
    output: float


class Demand(NamedTuple):
    """Requests a second now and at the horizon, how bursty they are, and what they are like."""

    now_rps: float
    ahead_rps: float
    dispersion: float
    mix: Mix


History = tuple[Sample, ...]


def remember(history: History, seen: ModelObservation, at_s: float) -> History:
    """The history with this observation. One without arrivals adds nothing, and of what finished and missed the last
    total known holds on; one that goes backwards in time or count begins anew."""
    sample = _sample(history, seen, at_s)
    if sample is None:
        return history
    if history and any(
        new is not None and old is not None and new < old for new, old in zip(sample[:5], history[-1][:5], strict=True)
    ):
        return (sample,)
    if history and at_s == history[-1].at_s:
        return (*history[:-1], sample)
    first = 0
    while first < len(history) - 1 and history[first + 1].at_s <= at_s - KEEP_S:
        first += 1
    return (*history[first:], sample)


def _sample(history: History, seen: ModelObservation, at_s: float) -> Sample | None:
    """None while it is unknown how many finished and never was known: it would look like a jump once it is."""
    last = history[-1] if history else None
    finished = last.finished if last is not None and seen.finished_total is None else seen.finished_total
    if seen.arrivals_total is None or finished is None:
        return None
    missed = last.missed if last is not None and seen.missed_total is None else seen.missed_total
    return Sample(at_s, seen.arrivals_total, finished, seen.prompt_tokens_total, seen.output_tokens_total, missed)


def rate_over(history: Sequence[Sample], window_s: float) -> float | None:
    """Requests a second in the last `window_s`, or since the history began; None before there are two samples."""
    if not history:
        return None
    rate, span_s = _rate(history, history[-1], window_s)
    return rate if span_s else None


def estimate(history: Sequence[Sample], horizon_s: float, confidence: float) -> Demand:
    """Demand now and `horizon_s` from now. `confidence` is k: how many standard deviations chance is granted."""
    last = history[-1]
    spread = dispersion(history)
    now_rps = 0.0
    for window_s in WINDOWS_S:
        rate, span_s = _rate(history, last, window_s)
        if not span_s:
            continue
        slack = 0.0 if window_s == WINDOWS_S[-1] else confidence * sqrt(rate * spread / span_s)
        now_rps = max(now_rps, rate - slack)
    return Demand(now_rps, now_rps + _growth(history, last, spread, confidence, horizon_s), spread, mix(history))


def dispersion(history: Sequence[Sample]) -> float:
    """Variance over mean of the arrivals, at least 1.

    From the differences of neighbouring rates (von Neumann), so that a rise of the rate itself does not count as
    burstiness; each is weighed by its interval, so that a gap between samples does not either.
    """
    if len(history) < 8:
        return 1.0
    steps = [(new.at_s - old.at_s, new.arrivals - old.arrivals) for old, new in pairwise(history)]
    mean_rps = (history[-1].arrivals - history[0].arrivals) / (history[-1].at_s - history[0].at_s)
    if mean_rps <= 0.0:
        return 1.0
    squares = sum(
        (new / new_s - old / old_s) ** 2 / (1.0 / new_s + 1.0 / old_s) for (old_s, old), (new_s, new) in pairwise(steps)
    )
    return min(MOST_DISPERSION, max(1.0, squares / (len(steps) - 1) / mean_rps))


def mix(history: Sequence[Sample]) -> Mix:
    """Mean prompt and output tokens of what finished lately, with a prior while that is little or not known.

    Taken between two samples with tokens, so that what finished while they were unknown counts once they are known.
    """
    ends = _sized_ends(history)
    if ends is None:
        return Mix(*PRIOR)
    first, last = ends
    finished = max(0.0, last.finished - first.finished)
    prior = max(0.0, FEWEST_FINISHED - finished)
    total = finished + prior
    prompt = ((last.prompt_tokens or 0.0) - (first.prompt_tokens or 0.0) + prior * PRIOR[0]) / total
    output = ((last.output_tokens or 0.0) - (first.output_tokens or 0.0) + prior * PRIOR[1]) / total
    return Mix(max(1.0, prompt), max(1.0, output))


def sized(history: Sequence[Sample]) -> bool:
    """Whether it is known what a request costs: the engines tell tokens now, or did while enough finished.

    TensorRT-LLM never does.
    """
    if history and _sized(history[-1]):
        return True
    ends = _sized_ends(history)
    return ends is not None and ends[1].finished - ends[0].finished >= FEWEST_FINISHED


def _sized_ends(history: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    """The first and the last sample with tokens."""
    first = next(filter(_sized, history), None)
    last = next(filter(_sized, reversed(history)), None)
    return None if first is None or last is None else (first, last)


def _sized(sample: Sample) -> bool:
    return sample.prompt_tokens is not None and sample.output_tokens is not None


def _growth(history: Sequence[Sample], last: Sample, spread: float, confidence: float, horizon_s: float) -> float:
    """What the rate gains until the horizon if it goes on rising as it surely does.

    The rise between two windows, as far as chance does not explain it; and no more than the rise within the newer one
    can be, so that a rise that is over is not prolonged.
    """
    recent, recent_s = _rate(history, last, TREND_S)
    before, before_s = _rate(history, _at(history, last.at_s - TREND_S), TREND_S)
    if recent_s < 0.9 * TREND_S or before_s < 0.9 * TREND_S:
        return 0.0
    late, _ = _rate(history, last, TREND_S / 2)
    early, _ = _rate(history, _at(history, last.at_s - TREND_S / 2), TREND_S / 2)
    sure = recent - before - confidence * sqrt((recent + before) * spread / TREND_S)
    possible = 2.0 * (late - early + confidence * sqrt((late + early) * spread / (TREND_S / 2)))
    return max(0.0, min(sure, possible)) * (horizon_s + TREND_S / 2) / TREND_S


def _rate(history: Sequence[Sample], until: Sample, window_s: float) -> tuple[float, float]:
    """(requests a second in the window that ends at `until`, its true length in seconds)."""
    since = _at(history, until.at_s - window_s)
    span_s = until.at_s - since.at_s
    return ((until.arrivals - since.arrivals) / span_s, span_s) if span_s > 0 else (0.0, 0.0)


def _at(history: Sequence[Sample], at_s: float) -> Sample:
    """The last sample at or before that time, else the first."""
    return history[max(0, bisect_right(history, at_s, key=lambda sample: sample.at_s) - 1)]
