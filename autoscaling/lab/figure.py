"""Figures of the lab: cost against attainment, and replicas over time. Matplotlib, as small SVG with text as text."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raylane.autoscaling.lab.pareto import Point, envelope

SIMULATED = "SIMULATED"
LONG_NUMBER = re.compile(r"\b\d+\.\d{3,}")  # coordinates; a hundredth of a point is enough
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
PANEL_INCHES = (4.0, 3.0)
LOWEST = 60.0  # percent; what is below is left out of a panel that has something above
EMPHASIZED = "tab:red"
PALE = 0.35
COLORS = (
    "tab:blue",
    "tab:orange",
    "tab:green",
    "tab:purple",
    "tab:brown",
    "tab:pink",
    "tab:gray",
    "tab:olive",
    "tab:cyan",
    "black",
)
MARKERS = "osv^D<>pX*"


@dataclass(frozen=True)
class Panel:
    """One scenario: the points of each policy's sweep, and costs to mark with a line by name.

    A policy's line goes through its own Pareto front; settings that are not on it stay as pale points.
    """

    title: str
    sweeps: Mapping[str, Sequence[Point]]
    marked_gpu_hours: Mapping[str, float]


def pareto_figure(panels: Sequence[Panel], emphasized: str, wanted: float | None = None, columns: int = 3) -> Figure:
    """GPU-hours against attainment, a panel for each scenario; `wanted` attainment is marked."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    styles = _styles(panels, emphasized)
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, styles, wanted)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"{SIMULATED}: GPU-hours against attainment", fontsize=10)
    return figure


def _styles(panels: Sequence[Panel], emphasized: str) -> dict[str, dict[str, object]]:
    names = dict.fromkeys(name for panel in panels for name in panel.sweeps)
    looks = cycle(zip(COLORS, MARKERS, strict=True))
    styles: dict[str, dict[str, object]] = {}
    for name in names:
        if name == emphasized:
            styles[name] = {"color": EMPHASIZED, "marker": "o", "linewidth": 2.2, "markersize": 5, "zorder": 3}
        else:
            color, marker = next(looks)
            styles[name] = {"color": color, "marker": marker, "linewidth": 1.0, "markersize": 3.5}
    return styles


def _draw_panel(axes: Axes, panel: Panel, styles: Mapping[str, Mapping[str, object]], wanted: float | None) -> None:
    for name, points in panel.sweeps.items():
        front = envelope(points)
        _draw_points(axes, front, {**styles[name], "label": name})
        _draw_points(axes, sorted(set(points) - set(front)), {**styles[name], "linestyle": "none", "alpha": PALE})
    for (name, gpu_hours), dashes in zip(panel.marked_gpu_hours.items(), cycle((":", "-.", "--")), strict=False):
        axes.axvline(gpu_hours, color="black", linestyle=dashes, linewidth=0.9, label=name)
    if wanted is not None:
        axes.axhline(100 * wanted, color="black", linewidth=0.5, alpha=0.5)
    attained = [100 * point.attainment for points in panel.sweeps.values() for point in points]
    hidden = sum(value < LOWEST for value in attained)
    if 0 < hidden < len(attained):
        axes.set_ylim(LOWEST, 100.5)
    axes.set_title(panel.title + (f" ({hidden} points below {LOWEST:g} %)" if hidden else ""), fontsize=9)
    axes.set_xlabel("GPU-hours", fontsize=8)
    axes.set_ylabel("attainment, %", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _draw_points(axes: Axes, points: Sequence[Point], style: Mapping[str, object]) -> None:
    hours = [round(point.gpu_hours, 2) for point in points]
    axes.plot(hours, [round(100 * point.attainment, 2) for point in points], **style)  # type: ignore[arg-type]


def replicas_figure(
    title: str, targets: Mapping[str, Mapping[str, Sequence[tuple[float, int]]]], end_s: float
) -> Figure:
    """Replicas asked for: a row for each model, a line for each policy. `targets`: model, policy, (s, replicas)."""
    figure = Figure(figsize=(8.0, 2.4 * len(targets) + 0.8), layout="constrained")
    rows = figure.subplots(len(targets), 1, squeeze=False, sharex=True).ravel().tolist()
    for axes, (model, policies) in zip(rows, targets.items(), strict=True):
        for name, changes in policies.items():
            minutes = [at_s / 60 for at_s, _ in changes] + [end_s / 60]
            axes.step(minutes, [count for _, count in changes] + [changes[-1][1]], where="post", label=name)
        axes.set_ylabel(f"{model} replicas", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    rows[-1].set_xlabel("minutes", fontsize=8)
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"{SIMULATED}: {title}", fontsize=10)
    return figure


def save_svg(figure: Figure, path: Path) -> None:
    """The figure as SVG; the same figure gives the same file."""
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name, "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    text = LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", COMMENT.sub("", out.getvalue()))
    path.write_text(re.sub(r"\s*\n\s*", "\n", text), encoding="utf-8")
