"""Recorded rate curves (no single requests) turned into request traces."""

from pathlib import Path

import numpy as np

from raylane.autoscaling.traces.arrivals import RateCurve, arrivals_s
from raylane.autoscaling.traces.clock import unix_clock
from raylane.autoscaling.traces.columns import read_columns
from raylane.autoscaling.traces.lengths import Lengths, drawn_lengths
from raylane.autoscaling.traces.trace import Trace
from raylane.cluster.errors import UsageError


def load_rate_curve(path: Path) -> RateCurve:
    """A CSV or JSON-lines file with the columns t_s and rate_rps, times rising.

    The first rate also holds from 0 to the first time; Unix times begin at 0 with the first. Raises UsageError naming
    file, line, column and value.
    """
    columns = read_columns(path, ("t_s", "rate_rps"))
    t_s, rate_rps = columns.numbers("t_s"), columns.numbers("rate_rps")
    falls = np.flatnonzero(np.diff(t_s) <= 0)
    if falls.size:
        row = int(falls[0]) + 1
        raise UsageError(
            f"{path}: line {columns.first_line + row}: t_s: {t_s[row]:g} does not come after {t_s[row - 1]:g}"
        )
    if unix := unix_clock(t_s, "s", sure=True):
        t_s = unix.seconds(t_s - t_s[0])
    if t_s[0] > 0:
        t_s, rate_rps = np.concatenate([[0.0], t_s]), np.concatenate([rate_rps[:1], rate_rps])
    if len(t_s) < 2:
        raise UsageError(f"{path}: a rate curve needs two points or more, it has 1")
    return RateCurve(t_s, rate_rps)


def rate_curve_between(curve: RateCurve, begin_s: float, end_s: float) -> RateCurve:
    """The part of a curve from `begin_s` to `end_s`, with the clock set to 0 at `begin_s`."""
    if not 0 <= begin_s < end_s <= curve.duration_s:
        raise UsageError(f"a part of a curve of {curve.duration_s:g} s cannot go from {begin_s:g} s to {end_s:g} s")
    inside = (curve.t_s > begin_s) & (curve.t_s < end_s)
    ends_rps = np.interp([begin_s, end_s], curve.t_s, curve.rate_rps)
    return RateCurve(
        np.concatenate([[0.0], curve.t_s[inside] - begin_s, [end_s - begin_s]]),
        np.concatenate([ends_rps[:1], curve.rate_rps[inside], ends_rps[1:]]),
    )


def requests_at(
    curve: RateCurve,
    lengths: Lengths | Trace,
    rng: np.random.Generator,
    *,
    name: str,
    factor: float = 1.0,
    cv: float = 1.0,
    model: str | None = None,
) -> Trace:
    """Requests that follow the curve times `factor`: Poisson, or gamma gaps of this `cv` where it is not 1.

    Lengths are those of whole requests drawn with replacement from another trace, or lognormal ones. Neither follows
    the time of day, and no curve shows bursts shorter than the spacing of its points: `cv` has to stand for those.
    """
    if not (np.isfinite(factor) and factor > 0 and np.isfinite(cv) and cv > 0):
        raise UsageError(f"{name}: factor and cv must be above 0, got {factor} and {cv}")
    at_s = arrivals_s(RateCurve(curve.t_s, curve.rate_rps * factor), cv, rng)
    inputs, outputs = drawn_lengths(lengths, len(at_s), rng)
    origin = f"{lengths.name} by bootstrap" if isinstance(lengths, Trace) else "lognormal"
    return Trace(
        name=name,
        model=model,
        at_s=at_s,
        input_tokens=inputs,
        output_tokens=outputs,
        source=f"generated from a rate curve times {factor:g}, gaps of cv {cv:g}, lengths {origin}",
        duration_s=curve.duration_s,
    )
