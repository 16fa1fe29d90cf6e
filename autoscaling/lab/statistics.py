"""How sure a comparison of policies is. Pure; the same seed gives the same interval.

All intervals are two-sided 95 % intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Values = Sequence[float] | Floats

DRAWS = 10_000
CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 500


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; both ends None where one sample says nothing about the spread."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is certain enough to claim."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over runs that share everything but the policy, seed by seed."""

    bootstrap: Interval
    student: Interval
    """The same mean with Student's t interval, a check: far from the bootstrap's means outliers or few seeds."""
    pairs: int

    @property
    def significant(self) -> bool:
        """Both intervals leave zero out. With under ten pairs the bootstrap alone is too narrow."""
        return self.bootstrap.excludes_zero and self.student.excludes_zero


def paired_difference(a: Values, b: Values, seed: int, draws: int = DRAWS) -> PairedDifference:
    """Mean of a[i] - b[i] with a percentile bootstrap over the pairs, and Student's t beside it."""
    differences = np.subtract(*_paired(a, b))
    return PairedDifference(
        bootstrap=_ratio_interval(differences, np.ones_like(differences), seed, draws),
        student=_student_interval(differences),
        pairs=len(differences),
    )


def paired_saving(a: Values, b: Values, seed: int, draws: int = DRAWS) -> Interval:
    """Share by which the sum of `a` is below that of `b`: 1 - sum(a) / sum(b), bootstrapped over the pairs.

    0.2 means that policy a takes 20 % less than policy b. `b` must be above 0.
    """
    ours, theirs = _paired(a, b)
    if theirs.min() <= 0:
        raise ValueError(f"a saving is relative to values above 0, the least is {theirs.min()}")
    ratio = _ratio_interval(ours, theirs, seed, draws)
    if ratio.low is None or ratio.high is None:
        return Interval(1.0 - ratio.value, None, None)
    return Interval(1.0 - ratio.value, 1.0 - ratio.high, 1.0 - ratio.low)


def block_sums(at_s: Values, values: Values, block_s: float, duration_s: float) -> Floats:
    """Sum of the values that fall into each block of `block_s` (an hour, a day) from the start; 0 for empty ones."""
    if not 0 < block_s <= duration_s:
        raise ValueError(f"blocks of {block_s} s do not fit into {duration_s} s")
    blocks = math.ceil(round(duration_s / block_s, 9))
    index = np.minimum((np.asarray(at_s, dtype=np.float64) // block_s).astype(np.int64), blocks - 1)
    return np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=blocks).astype(np.float64)


def block_ratio(parts: Values, wholes: Values, seed: int, draws: int = DRAWS) -> Interval:
    """sum(parts) / sum(wholes) with a bootstrap that draws whole blocks (hours or days of one long trace).

    With good requests over requests this is attainment, with a policy's GPU-hours over another's a relative cost.
    Requests of one block share its load, so blocks are drawn, not requests; a block must be longer than what load
    remembers: a day for traces with days, at least an hour else.
    """
    part, whole = _paired(parts, wholes)
    if whole.min() < 0 or whole.sum() <= 0:
        raise ValueError(f"wholes are not below 0 and not all 0, their sum is {whole.sum()}, the least {whole.min()}")
    return _ratio_interval(part, whole, seed, draws)


def student_t(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t that |T| stays below with this probability, by bisection of the exact distribution."""
    if degrees < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(f"t needs 1 degree of freedom and a confidence within 0 and 1, got {degrees}, {confidence}")
    low, high = 0.0, math.pi / 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _within(angle: float, degrees: int) -> float:
    """P(|T| < tan(angle) sqrt(degrees)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1, degrees // 2 + 1):
        total += term
        term *= cosine**2 * ((2 * k) / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total


def _student_interval(values: Floats) -> Interval:
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, None, None)
    half = student_t(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def _ratio_interval(parts: Floats, wholes: Floats, seed: int, draws: int) -> Interval:
    value = float(parts.sum() / wholes.sum())
    if len(parts) < 2:
        return Interval(value, None, None)
    rng = np.random.default_rng(seed)
    ratios = np.concatenate(
        [
            _drawn_ratios(parts, wholes, min(_DRAWS_AT_ONCE, draws - done), rng)
            for done in range(0, draws, _DRAWS_AT_ONCE)
        ]
    )
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.nanquantile(ratios, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def _drawn_ratios(parts: Floats, wholes: Floats, draws: int, rng: np.random.Generator) -> Floats:
    rows = rng.integers(0, len(parts), (draws, len(parts)))
    drawn = wholes[rows].sum(axis=1)
    ratios: Floats = np.divide(parts[rows].sum(axis=1), drawn, out=np.full(draws, np.nan), where=drawn > 0)
    return ratios


def _paired(a: Values, b: Values) -> tuple[Floats, Floats]:
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1 or not len(left):
        raise ValueError(f"pairs need two lists of one length, got shapes {left.shape} and {right.shape}")
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError("pairs must be finite numbers: leave out a seed on which one run has no value")
    return left, right
