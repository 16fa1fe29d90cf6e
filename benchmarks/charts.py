"""Charts of a run, drawn from its frames. Each returns a matplotlib Figure; `svg` turns one into text for a page."""

import io
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raylane.benchmarks.declared import REQUEST_METRICS
from raylane.benchmarks.results import CaseResult
from raylane.benchmarks.run_folder import Run

CHARTED = tuple(metric for metric in REQUEST_METRICS if metric.charted)
"""Metrics with a chart in the report."""
_SIZE_INCHES = (6.4, 3.2)
_SIMULATED = "SIMULATED "


def latency_figure(run: Run, case: str, column: str) -> Figure:
    """Share of requests (due in the window, completed) with at most so much of a metric, one line a stream."""
    metric = next(metric for metric in REQUEST_METRICS if metric.name == column)
    figure, axes = _figure(run, f"{metric.title or metric.heading}, {case}")
    for label, frame in _streams(_measured(run, case)):
        values = np.sort(frame[column].dropna().to_numpy(dtype=float))
        if values.size:
            axes.step(values, np.arange(1, values.size + 1) / values.size, where="post", label=label)
    axes.set(xlabel=metric.unit, ylabel="share of requests", ylim=(0, 1.02))
    axes.set_xlim(left=0)
    _legend(axes)
    return figure


def throughput_figure(run: Run, case: str, bin_s: float = 1.0) -> Figure:
    """Output tokens a second over the case, one line a stream; the measured window is shaded."""
    figure, axes = _figure(run, f"Throughput, {case}")
    tokens = run.tokens[(run.tokens["case"] == case) & run.tokens["tokens"].notna()]
    for label, frame in _streams(tokens):
        times = frame["t_s"].to_numpy(dtype=float)
        edges = np.arange(tokens["t_s"].min(), tokens["t_s"].max() + 2 * bin_s, bin_s)
        counts, _ = np.histogram(times, edges, weights=frame["tokens"])
        axes.step(edges[:-1], counts / bin_s, where="post", label=label)
    result = find_case(run, case)
    if result is not None:
        end_s = result.window_start_s + result.window_s
        axes.axvspan(result.window_start_s, end_s, alpha=0.12, color="tab:green", label="window")
    axes.set(xlabel="s since the run began", ylabel="output tok/s")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def find_case(run: Run, case: str) -> CaseResult | None:
    """The figures of a case; None for one that was cut before its window opened."""
    return next((result for result in run.summary.cases if result.case == case), None)


def svg(figure: Figure, salt: str) -> str:
    """The figure as an <svg> element; `salt` keeps its ids apart from those of other charts in the page."""
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _measured(run: Run, case: str) -> pd.DataFrame:
    frame = run.requests
    return frame[(frame["case"] == case) & frame["in_window"] & frame["completed"]]


def _streams(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for label, rows in frame.groupby("stream", sort=True):
        yield str(label), rows


def _figure(run: Run, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title((_SIMULATED if run.simulated else "") + title, fontsize=10)
    axes.grid(alpha=0.3)
    return figure, axes


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center")
