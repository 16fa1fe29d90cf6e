"""Reports from a run folder: Markdown, a single HTML page with its charts inside, and CSV. Dollars are handed in."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from raylane.benchmarks.charts import CHARTED, latency_figure, svg, throughput_figure
from raylane.benchmarks.declared import REQUEST_METRICS, STREAM_METRICS
from raylane.benchmarks.results import CaseResult, CostFigure, StreamResult
from raylane.benchmarks.run_folder import Run
from raylane.benchmarks.tables import Table, case_tables, figure
from raylane.benchmarks.writing import replace_text
from raylane.cluster.redact import redacted, redacted_url

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a report was written."""

    html: Path
    markdown: Path
    csv: Path


@dataclass(frozen=True, slots=True)
class CaseSection:
    """One case of a report."""

    result: CaseResult
    tables: tuple[Table, ...]
    charts: tuple[str, ...]


def write_report(run: Run, costs: Sequence[CostFigure] = ()) -> ReportFiles:
    """Write report.html, report.md and report.csv into the run folder and say where.

    Raises FailedError naming the file that cannot be written.
    """
    files = ReportFiles(run.path / "report.html", run.path / "report.md", run.path / "report.csv")
    replace_text(files.html, html_report(run, costs))
    replace_text(files.markdown, markdown_report(run, costs))
    replace_text(files.csv, csv_report(run, costs))
    return files


def html_report(run: Run, costs: Sequence[CostFigure] = ()) -> str:
    """One page that needs no other file."""
    sections = [
        CaseSection(case, case_tables(run.summary, case, costs), _charts(run, case.case)) for case in run.summary.cases
    ]
    return _template("report.html.j2").render(run=run, sections=sections)


def markdown_report(run: Run, costs: Sequence[CostFigure] = ()) -> str:
    """The tables, without charts."""
    sections = [CaseSection(case, case_tables(run.summary, case, costs), ()) for case in run.summary.cases]
    return _template("report.md.j2").render(run=run, sections=sections)


def csv_report(run: Run, costs: Sequence[CostFigure] = ()) -> str:
    """One row a case and stream with every figure in full precision; an empty cell means not measured."""
    rows = [_csv_row(run, case, stream, costs) for case in run.summary.cases for stream in case.streams]
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


def _charts(run: Run, case: str) -> tuple[str, ...]:
    figures = {
        **{metric.name.removesuffix("_ms"): latency_figure(run, case, metric.name) for metric in CHARTED},
        "throughput": throughput_figure(run, case),
    }
    return tuple(svg(figure, f"{case}-{name}") for name, figure in figures.items())


def _csv_row(run: Run, case: CaseResult, stream: StreamResult, costs: Sequence[CostFigure]) -> dict[str, Any]:
    cost = next((each for each in costs if (each.case, each.model) == (case.case, stream.model)), None)
    energy, met = case.energy, stream.attainment
    row: dict[str, Any] = {
        "run": run.summary.run_id,
        "simulated": run.simulated,
        "case": case.case,
        "stream": stream.stream,
        "model": stream.model,
        "valid": case.valid,
        "complete": case.complete,
        "window_s": case.window_s,
        "attempted": stream.attempted,
        "completed": stream.completed,
        "in_one_piece": stream.in_one_piece,
        "short": stream.short,
    }
    for metric in REQUEST_METRICS:
        summary = metric.read(stream)
        for mark in ("p50", "p90", "p95", "p99"):
            estimate = None if summary is None else getattr(summary, mark)
            row[f"{metric.name}_{mark}"] = None if estimate is None else estimate.value
    return row | {
        **{metric.name: metric.read(stream) for metric in STREAM_METRICS},
        "attainment": None if met is None else met.share,
        "attainment_low": None if met is None else met.low,
        "attainment_high": None if met is None else met.high,
        "model_usd_per_hour": cost and cost.usd_per_hour,
        "model_usd_per_million_output_tokens": cost and cost.usd_per_million_output_tokens,
        "model_usd_per_1k_good_requests": cost and cost.usd_per_1k_good_requests,
        "case_energy_j": energy and energy.energy_j,
        "case_j_per_output_token": energy and energy.j_per_output_token,
    }


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    environment.filters["address"] = redacted_url
    environment.filters["redacted"] = redacted
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    return environment.get_template(name)
