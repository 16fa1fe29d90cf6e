"""Percentiles, their uncertainty, and the uncertainty of a share. Pure; the same seed gives the same interval."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raylane.benchmarks.results import Estimate, Summary

P99_MIN_SAMPLES = 500
_BOOTSTRAP_DRAWS = 1_000
_CONFIDENCE = 0.95
_Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution

Floats = npt.NDArray[np.float64]


def summarize(values: Sequence[float] | npt.NDArray[Any], seed: int, intervals: bool = True) -> Summary | None:
    """Mean and p50, p90, p95, p99 in the unit of the values; None without values.

    Percentiles interpolate linearly as numpy does. p99 stays None under 500 samples: it would be the fifth largest
    value or closer to the maximum. `intervals` adds 95 % bootstrap intervals, which take the samples as independent.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if ordered.size == 0:
        return None
    draws = np.random.default_rng(seed) if intervals else None
    return Summary(
        samples=int(ordered.size),
        mean=float(ordered.mean()),
        p50=_estimate(ordered, 0.50, draws),
        p90=_estimate(ordered, 0.90, draws),
        p95=_estimate(ordered, 0.95, draws),
        p99=_estimate(ordered, 0.99, draws) if ordered.size >= P99_MIN_SAMPLES else None,
    )


def _estimate(ordered: Floats, q: float, draws: np.random.Generator | None) -> Estimate:
    value = float(np.quantile(ordered, q))
    low, high = (None, None) if draws is None else bootstrap_interval(ordered, q, draws)
    return Estimate(value=value, low=low, high=high)


def bootstrap_interval(ordered: Floats, q: float, draws: np.random.Generator) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of a quantile of sorted values.

    A resample's k-th smallest of n values is ordered[floor(n U)] where U, the k-th smallest of n uniform numbers, is
    Beta(k, n - k + 1) distributed, and the next one lies a Beta(1, n - k) share of the rest above it. Drawing those
    two gives the distribution of full resampling at a cost that does not grow with n (David and Nagaraja, Order
    Statistics, chapter 2).
    """
    n = ordered.size
    position = q * (n - 1)
    k = math.floor(position) + 1
    lower = draws.beta(k, n - k + 1, _BOOTSTRAP_DRAWS)
    upper = lower if k == n else lower + (1.0 - lower) * draws.beta(1, n - k, _BOOTSTRAP_DRAWS)
    values = [ordered[np.minimum((rank * n).astype(np.int64), n - 1)] for rank in (lower, upper)]
    quantiles = values[0] + (position - math.floor(position)) * (values[1] - values[0])
    edge = (1.0 - _CONFIDENCE) / 2.0
    low, high = np.quantile(quantiles, [edge, 1.0 - edge])
    return float(low), float(high)


def wilson_interval(good: int, attempted: int) -> tuple[float, float]:
    """95 % Wilson score interval of good / attempted (Wilson 1927); (0, 1) when nothing was attempted."""
    if attempted == 0:
        return 0.0, 1.0
    share, z2 = good / attempted, _Z_95**2
    scale = 1.0 + z2 / attempted
    middle = (share + z2 / (2 * attempted)) / scale
    half = _Z_95 / scale * math.sqrt(share * (1 - share) / attempted + z2 / (4 * attempted**2))
    return max(0.0, middle - half), min(1.0, middle + half)
