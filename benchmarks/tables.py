"""The tables of a report as plain text cells, for Markdown, HTML and the terminal alike. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from raylane.benchmarks.declared import REQUEST_METRICS, STREAM_METRICS, RequestMetric
from raylane.benchmarks.results import CaseResult, CostFigure, Estimate, RunResults, StreamResult, Summary

BLANK = "–"

Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column heads and rows of text."""

    title: str
    heads: tuple[str, ...]
    rows: Rows


def case_tables(results: RunResults, case: CaseResult, costs: Sequence[CostFigure]) -> tuple[Table, ...]:
    """Latencies, rates and, where they are known, cost and energy of one case."""
    mark = "SIMULATED " if results.simulated else ""
    tables = [
        Table(f"{mark}Latency in ms, {case.case}", LATENCY_HEADS, _latency_rows(case)),
        Table(f"{mark}Rates and SLO, {case.case}", RATE_HEADS, tuple(_rate_row(stream) for stream in case.streams)),
    ]
    own = [cost for cost in costs if cost.case == case.case]
    if own:
        tables.append(Table(f"{mark}Cost, {case.case}", COST_HEADS, tuple(_cost_row(cost) for cost in own)))
    if case.energy is not None:
        tables.append(Table(f"{mark}Energy, {case.case}", ENERGY_HEADS, (_energy_row(case),)))
    return tuple(tables)


def summary_table(results: RunResults, costs: Sequence[CostFigure]) -> Table:
    """One row for each stream of each case: what a reader wants first, narrow enough for a terminal."""
    prices = {(cost.case, cost.model): cost for cost in costs}
    rows = tuple(
        _summary_row(case, stream, prices.get((case.case, stream.model)))
        for case in results.cases
        for stream in case.streams
    )
    return Table(f"{'SIMULATED ' if results.simulated else ''}{results.run_id}", SUMMARY_HEADS, rows)


def _summary_row(case: CaseResult, stream: StreamResult, cost: CostFigure | None) -> tuple[str, ...]:
    met = stream.attainment
    return (
        case.case if case.valid else f"{case.case} (not valid)",
        stream.stream,
        f"{stream.completed}/{stream.attempted}",
        _p50_p95(stream.ttft_ms),
        _p50_p95(stream.tpot_ms),
        figure(stream.output_tokens_per_s),
        BLANK if met is None or met.share is None else f"{met.share:.0%}",
        BLANK if cost is None else figure(cost.usd_per_million_output_tokens),
    )


def _p50_p95(summary: Summary | None) -> str:
    return BLANK if summary is None else f"{figure(summary.p50.value)}/{figure(summary.p95.value)}"


SUMMARY_HEADS = ("case", "model", "done", "TTFT ms\np50/p95", "TPOT ms\np50/p95", "tok/s", "in SLO", "$/M tok")
LATENCY_HEADS = ("stream", "quantity", "p50", "p90", "p95", "p99", "mean", "samples")
RATE_HEADS = (
    *("stream", "completed", *(metric.heading for metric in STREAM_METRICS)),
    *("attainment", "95 % interval", "target"),
)
COST_HEADS = ("model", "GPUs", "$/GPU-h", "$/h", "$ per million output tokens", "$ per 1k good requests", "price")
ENERGY_HEADS = ("GPUs", "energy J", "mean power W", "J per output token", "valid")


def _latency_rows(case: CaseResult) -> Rows:
    return tuple(
        _latency_row(stream.stream, _heading(metric), metric.read(stream))
        for stream in case.streams
        for metric in REQUEST_METRICS
    )


def _heading(metric: RequestMetric) -> str:
    """With its unit where it is not that of the table."""
    return metric.heading if metric.unit == "ms" else f"{metric.heading} {metric.unit}"


def _latency_row(stream: str, name: str, summary: Summary | None) -> tuple[str, ...]:
    if summary is None:
        return (stream, name, *[BLANK] * 5, "0")
    marks = (summary.p50, summary.p90, summary.p95, summary.p99)
    return (stream, name, *(_interval(mark) for mark in marks), figure(summary.mean), f"{summary.samples}")


def _rate_row(stream: StreamResult) -> tuple[str, ...]:
    met = stream.attainment
    return (
        stream.stream,
        f"{stream.completed} of {stream.attempted}",
        *(figure(metric.read(stream)) for metric in STREAM_METRICS),
        BLANK if met is None or met.share is None else f"{met.share:.1%}",
        BLANK if met is None or met.share is None else f"{met.low:.1%} to {met.high:.1%}",
        BLANK if met is None else f"{met.slo.attainment:.1%}",
    )


def _cost_row(cost: CostFigure) -> tuple[str, ...]:
    return (
        cost.model,
        f"{cost.gpus}",
        figure(cost.usd_per_gpu_hour),
        figure(cost.usd_per_hour),
        figure(cost.usd_per_million_output_tokens),
        figure(cost.usd_per_1k_good_requests),
        cost.price_source,
    )


def _energy_row(case: CaseResult) -> tuple[str, ...]:
    energy = case.energy
    if energy is None:
        raise ValueError(f"{case.case} has no energy")
    return (
        f"{energy.gpus}",
        figure(energy.energy_j),
        figure(energy.mean_power_w),
        figure(energy.j_per_output_token),
        "yes" if energy.valid else "no: " + "; ".join(energy.reasons),
    )


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return BLANK
    if estimate.low is None or estimate.high is None:
        return figure(estimate.value)
    return f"{figure(estimate.value)} ({figure(estimate.low)} to {figure(estimate.high)})"


def figure(value: float | None) -> str:
    """Three significant digits or all whole ones: 0.0123, 4.57, 88.1, 12,345."""
    if value is None:
        return BLANK
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
