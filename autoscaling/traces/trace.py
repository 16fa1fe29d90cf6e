"""A request trace and pure operations on it. Randomness comes from the generator the caller passes in."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from raylane.cluster.errors import UsageError

Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]

LENGTH_WINDOW_S = 600.0
"""Requests this close together count as one mix of lengths; diurnal drift of the mix is slower."""
COPY_JITTER_S = 30.0


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival. The three arrays have one entry for each request and are never written to."""

    name: str
    model: str | None
    """Which model the requests are for; None when the trace does not say."""
    at_s: Floats
    """Arrival, seconds from the start of the trace, rising."""
    input_tokens: Tokens
    output_tokens: Tokens
    source: str
    """Where it came from and what was done to it, for reports."""
    duration_s: float
    """Length of the observation in seconds; requests arrive in [0, duration_s]. Quiet ends count."""

    def __post_init__(self) -> None:
        for field, dtype in (("at_s", np.float64), ("input_tokens", np.int32), ("output_tokens", np.int32)):
            array = np.asarray(getattr(self, field), dtype=dtype).view()
            array.flags.writeable = False
            object.__setattr__(self, field, array)
        _check(self)

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def mean_rps(self) -> float:
        """Requests for each second of the observation."""
        return len(self) / self.duration_s


def _check(trace: Trace) -> None:
    counts = (len(trace.at_s), len(trace.input_tokens), len(trace.output_tokens))
    if len(set(counts)) != 1:
        raise ValueError(f"{trace.name}: {counts[0]} arrivals, {counts[1]} inputs, {counts[2]} outputs")
    if not (np.isfinite(trace.duration_s) and trace.duration_s > 0):
        raise ValueError(f"{trace.name}: duration_s must be above 0, is {trace.duration_s}")
    if not counts[0]:
        return
    first_s, last_s = float(trace.at_s[0]), float(trace.at_s[-1])
    if not (np.diff(trace.at_s) >= 0).all() or not 0 <= first_s <= last_s <= trace.duration_s:
        raise ValueError(
            f"{trace.name}: arrivals must rise within 0 and {trace.duration_s} s, go from {first_s} to {last_s} s"
        )
    if trace.input_tokens.min() < 1 or trace.output_tokens.min() < 1:
        raise ValueError(
            f"{trace.name}: requests have at least one token in and out, the least is "
            f"{trace.input_tokens.min()} in, {trace.output_tokens.min()} out"
        )


def named(trace: Trace, name: str, model: str | None = None) -> Trace:
    """The same requests under another name, for `model` when given."""
    return replace(trace, name=name, model=trace.model if model is None else model)


def taken(trace: Trace, rows: Indices | npt.NDArray[np.bool_], source: str) -> Trace:
    """Only these requests, in rising order, over the same observation."""
    return replace(
        trace,
        at_s=trace.at_s[rows],
        input_tokens=trace.input_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        source=source,
    )


def between(trace: Trace, begin_s: float, end_s: float) -> Trace:
    """Requests that arrive in [begin_s, end_s), with the clock set to 0 at `begin_s`."""
    if begin_s >= trace.duration_s:
        raise UsageError(f"{trace.name}: the part begins at {begin_s} s, the trace lasts {trace.duration_s:g} s")
    if not 0 <= begin_s < end_s:
        raise UsageError(f"{trace.name}: a part needs 0 <= begin < end, got {begin_s} s to {end_s} s")
    begin, end = np.searchsorted(trace.at_s, [begin_s, end_s])
    return replace(
        trace,
        at_s=trace.at_s[begin:end] - begin_s,
        input_tokens=trace.input_tokens[begin:end],
        output_tokens=trace.output_tokens[begin:end],
        duration_s=min(end_s, trace.duration_s) - begin_s,
        source=f"{trace.source}; {begin_s:g} s to {end_s:g} s",
    )


def compressed(trace: Trace, factor: float) -> Trace:
    """The time axis divided by `factor`: the same requests come `factor` times as fast."""
    _positive(trace, "compression", factor)
    return replace(
        trace,
        at_s=trace.at_s / factor,
        duration_s=trace.duration_s / factor,
        source=f"{trace.source}; time divided by {factor:g}",
    )


def clipped(trace: Trace, max_input: int | None, max_output: int | None, max_total: int | None = None) -> Trace:
    """Longer prompts and replies are cut to these token counts, None meaning no limit; no request is dropped.

    `max_total` bounds prompt and reply together: a prompt leaves one token for the reply, a reply takes what is left.
    """
    limits = {"in": max_input, "out": max_output, "in all": max_total}
    text = ", ".join(f"{limit} {what}" for what, limit in limits.items() if limit is not None)
    if any(limit is not None and limit < 1 for limit in limits.values()) or max_total == 1:
        raise UsageError(f"{trace.name}: clip to at least 1 token each, got {text}")
    inputs, outputs = trace.input_tokens, trace.output_tokens
    if max_input is not None:
        inputs = np.minimum(inputs, np.int32(max_input))
    if max_output is not None:
        outputs = np.minimum(outputs, np.int32(max_output))
    if max_total is not None:
        inputs = np.minimum(inputs, np.int32(max_total - 1))
        outputs = np.minimum(outputs, np.int32(max_total) - inputs)
    cut = (inputs < trace.input_tokens) | (outputs < trace.output_tokens)
    source = f"{trace.source}; longer ones cut to {text} (tokens)" if cut.any() else trace.source
    return replace(trace, input_tokens=inputs, output_tokens=outputs, source=source)


def scaled(trace: Trace, factor: float, rng: np.random.Generator) -> Trace:
    """The same load curve with `factor` times as many requests on average.

    Below 1 each request is kept with probability `factor`, independently. Above 1 every request stays and is joined
    by copies: floor(factor) - 1 of them and one more with the fractional probability. A copy comes up to 30 s after
    its original (before it where the trace would be over) and has the lengths of another request of the same 10
    minutes, so that a burst of a minute stays a burst and nothing is an exact double. Bursts shorter than the jitter
    are smoothed: measured peaks over 10 s grow by less than the factor.
    """
    _positive(trace, "scale factor", factor)
    source = f"{trace.source}; rate times {factor:g}"
    if factor <= 1.0:
        return taken(trace, rng.random(len(trace)) < factor, source)
    copies = int(factor) - 1 + (rng.random(len(trace)) < factor % 1.0)
    rows = np.repeat(np.arange(len(trace)), copies)
    shift_s = rng.uniform(0.0, COPY_JITTER_S, len(rows))
    at_s = np.concatenate([trace.at_s, _inside(trace.at_s[rows], shift_s, trace.duration_s)])
    drawn = np.concatenate([np.arange(len(trace)), neighbours(trace, rows, rng)])
    order = np.argsort(at_s, kind="stable")
    return replace(
        trace,
        at_s=at_s[order],
        input_tokens=trace.input_tokens[drawn[order]],
        output_tokens=trace.output_tokens[drawn[order]],
        source=source,
    )


def _inside(at_s: Floats, shift_s: Floats, duration_s: float) -> Floats:
    later_s = at_s + shift_s
    return np.clip(np.where(later_s > duration_s, at_s - shift_s, later_s), 0.0, duration_s)


def neighbours(trace: Trace, rows: Indices, rng: np.random.Generator) -> Indices:
    """For each row another request of the same 10-minute window, at random; the row itself where it is alone."""
    window = (trace.at_s // LENGTH_WINDOW_S).astype(np.int64)
    begin = np.searchsorted(window, window[rows], side="left")
    others = np.searchsorted(window, window[rows], side="right") - begin - 1
    steps = 1 + (rng.random(len(rows)) * others).astype(np.intp)
    place = rows - begin
    drawn: Indices = begin + np.where(others > 0, (place + steps) % (others + 1), place)
    return drawn


def rates_rps(trace: Trace, window_s: float) -> Floats:
    """Requests per second in each window of `window_s` from the start; a last, shorter window counts its own length."""
    _positive(trace, "window", window_s)
    windows = max(1, int(np.ceil(round(trace.duration_s / window_s, 9))))
    index = np.minimum((trace.at_s // window_s).astype(np.int64), windows - 1)
    lengths_s = np.full(windows, window_s)
    lengths_s[-1] = trace.duration_s - (windows - 1) * window_s
    counted: Floats = np.bincount(index, minlength=windows) / lengths_s
    return counted


def peak_rps(trace: Trace, window_s: float) -> float:
    """The highest number of requests in a full window of `window_s` from the start, as a rate.

    A last window that is cut short counts as a full one, so that a few requests at the end are no peak.
    """
    _positive(trace, "window", window_s)
    counts = np.bincount((trace.at_s // window_s).astype(np.int64), minlength=1)
    return float(counts.max()) / window_s


def _positive(trace: Trace, what: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise UsageError(f"{trace.name}: {what} must be above 0, got {value}")
