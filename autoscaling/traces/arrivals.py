"""Arrival times that follow a rate curve. Pure: randomness comes from the generator passed in."""

from dataclasses import dataclass

import numpy as np

from raylane.autoscaling.traces.trace import Floats
from raylane.cluster.errors import UsageError

_MOST_REQUESTS = 5e7


@dataclass(frozen=True, eq=False)
class RateCurve:
    """Requests per second over time: straight lines between the points, a jump where a time is given twice."""

    t_s: Floats
    rate_rps: Floats

    def __post_init__(self) -> None:
        t_s, rate_rps = self.t_s, self.rate_rps
        if len(t_s) != len(rate_rps) or len(t_s) < 2:
            raise ValueError(f"a rate curve needs two points or more, got {len(t_s)} times and {len(rate_rps)} rates")
        if t_s[0] != 0.0 or (np.diff(t_s) < 0).any() or not t_s[-1] > 0:
            raise ValueError(f"a rate curve's times rise from 0, got {t_s[0]} to {t_s[-1]}")
        if not np.isfinite(rate_rps).all() or rate_rps.min() < 0:
            raise ValueError(f"rates are finite and not below 0, the least is {rate_rps.min()}")

    @property
    def duration_s(self) -> float:
        """Time of the last point."""
        return float(self.t_s[-1])

    @property
    def expected_until(self) -> Floats:
        """Requests expected from the start until each point."""
        steps = np.diff(self.t_s) * (self.rate_rps[1:] + self.rate_rps[:-1]) / 2.0
        return np.concatenate([[0.0], np.cumsum(steps)])


def arrivals_s(curve: RateCurve, cv: float, rng: np.random.Generator) -> Floats:
    """Rising arrival times on [0, duration] whose expected number in any interval is the area under the curve.

    `cv` is the coefficient of variation of the gaps where the rate is constant: 1 is a Poisson process, more is
    burstier, less more even. Gaps are gamma distributed in operational time (time counted in expected requests), and
    the first one is the rest of a gap under way, so the process has no start-up bias (Cox, Renewal Theory, 1962,
    chapter 5). Raises UsageError above 50 million expected requests: arrays of that size no longer fit beside a replay.
    """
    until = curve.expected_until
    if until[-1] > _MOST_REQUESTS:
        raise UsageError(f"the load would be {until[-1]:.3g} requests, at most {_MOST_REQUESTS:.3g} are made at once")
    return _times_at(curve, until, _renewals(float(until[-1]), cv, rng))


def _renewals(end: float, cv: float, rng: np.random.Generator) -> Floats:
    """Points of a stationary gamma renewal process of rate 1 on [0, end)."""
    shape, scale = cv**-2.0, cv**2.0
    parts = [rng.random(1) * rng.gamma(shape + 1.0, scale, 1)]
    last = float(parts[0][0])
    while last < end:
        more = int(end - last + 6.0 * cv * np.sqrt(end - last)) + 16
        parts.append(last + np.cumsum(rng.gamma(shape, scale, more)))
        last = float(parts[-1][-1])
    points = np.concatenate(parts)
    return points[points < end]


def _times_at(curve: RateCurve, until: Floats, points: Floats) -> Floats:
    """When each expected count is reached: the positive root of rate x t + slope x t^2 / 2 on its straight line."""
    at = np.searchsorted(until, points, side="right") - 1
    length_s, start_rps = np.diff(curve.t_s)[at], curve.rate_rps[at]
    slope = (curve.rate_rps[at + 1] - start_rps) / length_s
    rest = points - until[at]
    root = np.sqrt(np.maximum(start_rps**2 + 2.0 * slope * rest, 0.0))
    into_s = np.divide(2.0 * rest, start_rps + root, out=np.zeros_like(rest), where=start_rps + root > 0)
    return np.maximum.accumulate(curve.t_s[at] + np.clip(into_s, 0.0, length_s))
