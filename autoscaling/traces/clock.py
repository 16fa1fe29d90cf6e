"""What the numbers in a trace's column of times count: seconds, ms, us or ns. Pure.

Formats share column names and not units (`timestamp` is ms with Mooncake, seconds with ServeGen and Bailian), so a name
alone decides only where it says the unit. Otherwise the numbers must agree with what the layout says, or are refused.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Unit = Literal["s", "ms", "us", "ns"]
Floats = npt.NDArray[np.float64]

PER_S: dict[Unit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
NAMES: dict[Unit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

UNIX_S = (1e9, 4.2e9)
"""Unix times from 2001 to 2103; as times since a file's own zero they would be decades."""

FAR_S = 1e8
"""A first request so long after the file's zero (three years) is in Unix time."""

FAST_RPS, BRISK_RPS, SHORT_S = 100.0, 10.0, 600.0
"""Public traces come at up to 50 requests/s and last from 17 minutes; one on the wrong clock comes 1,000 times as fast:
above the first rate, or above the second and over before the time, it is doubtful."""

RARE_RPS = FAST_RPS / 1e3
"""Below it a trace in seconds may be one in ms that is not too fast."""

GRID = 1000
ABSURD_RPS, ABSURD_S = 1e4, 3.2e8
"""No trace on any clock that its column can mean: ten years, or 10,000 requests/s."""


@dataclass(frozen=True)
class Clock:
    """The unit and how it is known."""

    unit: Unit
    why: str

    def seconds(self, values: Floats) -> Floats:
        """Numbers of this unit as seconds."""
        return values / PER_S[self.unit]


class DoubtfulClockError(ValueError):
    """The numbers do not tell their unit, or contradict it."""


def clock_of(values: Floats, declared: Unit, *, sure: bool) -> Clock:
    """The unit of these times (one or more, in any order). `sure`: a name says that it is `declared`.

    Raises DoubtfulClockError with what each reading would mean.
    """
    clock = unix_clock(values, declared, sure=sure)
    if clock is None:
        clock = Clock(declared, "by its columns") if sure else _found(values, declared)
    rate_rps, span_s = _reading(values, clock.unit)
    if span_s > ABSURD_S or (rate_rps > ABSURD_RPS and len(values) >= 100):
        raise DoubtfulClockError(_doubt(values))
    return clock


def unix_clock(values: Floats, declared: Unit, *, sure: bool) -> Clock | None:
    """The unit of times since 1970, which their size tells; None for any other times."""
    for unit, per_s in PER_S.items():
        low, high = UNIX_S[0] * per_s, UNIX_S[1] * per_s
        if low <= values.min() and values.max() <= high and not (sure and values.min() / PER_S[declared] < FAR_S):
            return Clock(unit, "Unix times")
    return None


def _found(values: Floats, declared: Unit) -> Clock:
    """The unit of times whose column is `declared` in one format and may be something else in another."""
    fractions = bool((values % 1 != 0).any())
    grid = not (values % GRID).any() and len(np.unique(values)) >= 5
    if declared == "ms":
        if grid or (not fractions and _believable(values, "ms")):
            return Clock("ms", "by its columns")
        if fractions and _believable(values, "s") and _reading(values, "s")[0] > RARE_RPS:
            return Clock("s", "for their fractions and rate")
    else:
        rate_rps, _ = _reading(values, declared)
        if not grid and not 0 < rate_rps < RARE_RPS:
            return Clock(declared, "by its columns")
    raise DoubtfulClockError(_doubt(values))


def _believable(values: Floats, unit: Unit) -> bool:
    rate_rps, span_s = _reading(values, unit)
    return rate_rps <= BRISK_RPS or (rate_rps <= FAST_RPS and span_s >= SHORT_S)


def _reading(values: Floats, unit: Unit) -> tuple[float, float]:
    """Mean rate between the first and the last request (0 where all come at once) and the time between them."""
    span_s = float(values.max() - values.min()) / PER_S[unit]
    return (len(values) - 1) / span_s if span_s else 0.0, span_s


def _doubt(values: Floats) -> str:
    readings = {unit: _reading(values, unit) for unit in ("s", "ms")}
    told = " and ".join(f"in {span_s:.3g} s ({rate:.3g}/s) as {unit}" for unit, (rate, span_s) in readings.items())
    return f"the unit of times like {values[0]:.15g} is doubtful: {len(values)} requests come {told}"
