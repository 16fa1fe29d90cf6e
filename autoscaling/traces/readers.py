"""Public request traces from files: CSV or JSON lines, plain or gzipped, known by their columns."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raylane.autoscaling.traces.clock import FAR_S, NAMES, Clock, DoubtfulClockError, Unit, clock_of
from raylane.autoscaling.traces.columns import Columns, header_of, read_columns
from raylane.autoscaling.traces.layouts import Layout, LayoutName, as_spelled, layout_named, recognised
from raylane.autoscaling.traces.trace import Trace
from raylane.cluster.errors import UsageError


@dataclass(frozen=True)
class Reading:
    """A trace and what was done to the rows of its file."""

    trace: Trace
    rows: int
    """Rows of the file, of all models."""
    without_output: int
    """Rows left out because they have no output tokens: requests that failed."""
    without_input: int
    """Rows left out because they have output but no input tokens."""
    sorted_here: bool
    """Whether the file was not in order of arrival and was sorted while reading."""
    clock: Clock | None
    """In what the file counts its times; None: they are dates."""
    zero_moved_s: float | None
    """How far the clock was set back to begin at the first request, in a layout that keeps the file's zero; None: it
    was kept."""


def load_trace(
    path: Path, layout: LayoutName | None = None, only_model: str | None = None, unit: Unit | None = None
) -> Trace:
    """The requests of a file; see `read_trace`."""
    return read_trace(path, layout, only_model, unit).trace


def read_trace(
    path: Path, layout: LayoutName | None = None, only_model: str | None = None, unit: Unit | None = None
) -> Reading:
    """Read a trace. The layout is known by the header unless given; `only_model` picks one model of a mixed trace.

    The unit of the times is the layout's where that or `unit` is given; otherwise the numbers must agree with it
    (`clock`). Rows without tokens are left out and counted, rows out of order are sorted, and Unix times begin at 0
    with the first request; the trace's `source` says all of it.
    The trace lasts until its last request. Raises UsageError naming file, line, column and value.
    """
    header = header_of(path)
    name = recognised(path, header) if layout is None else layout
    chosen = as_spelled(layout_named(name), header)
    columns = read_columns(path, chosen.columns)
    at_s, clock = _times_s(columns, replace(chosen, sure=chosen.sure or layout is not None), unit)
    inputs, outputs = columns.counts(chosen.input_tokens), columns.counts(chosen.output_tokens)
    wanted = _of_model(columns, chosen, only_model)
    kept = np.flatnonzero(wanted & (inputs > 0) & (outputs > 0))
    if not kept.size:
        raise UsageError(f"{path}: none of {len(at_s)} rows is a request with tokens in and out{_of(only_model)}")
    order = kept[np.argsort(at_s[kept], kind="stable")]
    first_s, last_s = float(at_s[order[0]]), float(at_s[order[-1]])
    begin_s = first_s if chosen.starts_at_first or first_s > FAR_S else 0.0
    reading = Reading(
        trace=Trace(
            name=_bare_name(path),
            model=only_model,
            at_s=at_s[order] - begin_s,
            input_tokens=inputs[order],
            output_tokens=outputs[order],
            source=f"{path.name} ({name} layout)",
            duration_s=max(last_s - begin_s, 1.0),
        ),
        rows=len(at_s),
        without_output=int((wanted & (outputs == 0)).sum()),
        without_input=int((wanted & (outputs > 0) & (inputs == 0)).sum()),
        sorted_here=bool((order != kept).any()),
        clock=clock,
        zero_moved_s=begin_s if begin_s and not chosen.starts_at_first else None,
    )
    return replace(reading, trace=replace(reading.trace, source=_source(reading)))


def _times_s(columns: Columns, layout: Layout, unit: Unit | None) -> tuple[npt.NDArray[np.float64], Clock | None]:
    if columns.has_dates(layout.at):
        if unit is not None:
            raise UsageError(f"{columns.path}: {layout.at}: holds dates, which have no unit (unit: {unit})")
        return columns.seconds(layout.at), None
    values = columns.numbers(layout.at)
    try:
        clock = Clock(unit, "as asked") if unit else clock_of(values, layout.unit, sure=layout.sure)
    except DoubtfulClockError as error:
        advice = "say which with unit: s or unit: ms in the plan (also us, ns), or name the layout"
        raise UsageError(f"{columns.path}: {layout.at}: {error}; {advice}") from error
    return clock.seconds(values), clock


def _of_model(columns: Columns, layout: Layout, only_model: str | None) -> npt.NDArray[np.bool_]:
    if only_model is None:
        return np.ones(len(columns.frame), dtype=np.bool_)
    if layout.model is None:
        raise UsageError(f"{columns.path}: has no column with models to pick {only_model!r} from")
    models = columns.texts(layout.model)
    if not (models == only_model).any():
        raise UsageError(f"{columns.path}: no request of model {only_model!r}, it has {', '.join(sorted(set(models)))}")
    chosen: npt.NDArray[np.bool_] = models == only_model
    return chosen


def _of(only_model: str | None) -> str:
    return "" if only_model is None else f" of model {only_model!r}"


def _bare_name(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.removesuffix(".csv").removesuffix(".jsonl")


def _source(reading: Reading) -> str:
    notes = [f"{reading.trace.source}, {reading.rows} rows"]
    if reading.without_output:
        notes.append(f"{reading.without_output} rows without output left out")
    if reading.without_input:
        notes.append(f"{reading.without_input} rows without input left out")
    if reading.sorted_here:
        notes.append("sorted by arrival")
    if reading.zero_moved_s is not None:
        notes.append(f"clock set to 0 at the first request, {reading.zero_moved_s:.0f} s after the file's zero")
    clock = reading.clock
    notes.append("times are dates" if clock is None else f"times in {NAMES[clock.unit]} ({clock.why})")
    return "; ".join(notes)
