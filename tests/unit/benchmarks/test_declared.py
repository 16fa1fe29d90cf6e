"""A metric is declared once: it is in the CSV, the tables and the frame, and runs of before it stay readable."""

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_run_folder import write_run

from raylane.benchmarks import load_run
from raylane.benchmarks.declared import REQUEST_METRICS, STREAM_METRICS
from raylane.benchmarks.report import csv_report, html_report, markdown_report

OLD_RESULTS = Path(__file__).parents[2] / "fixtures" / "benchmarks" / "results-format-1.json"

MADE_UP = """
import importlib, sys
from pathlib import Path
from raylane import benchmarks
from raylane.benchmarks import charts, declared, metrics, report, run_folder, tables
sys.path.insert(0, sys.argv[2])
chunks = declared.RequestMetric("chunks", "made-up", "pieces", lambda r: float(len(r.content_times_s)), charted=True)
cut = declared.StreamMetric("cut", "made-up cut", "requests", lambda parts: 7.0, since_format=2)
declared.REQUEST_METRICS += (chunks,)
declared.STREAM_METRICS += (cut,)
for module in (metrics, run_folder, tables, charts, report, benchmarks):
    importlib.reload(module)
from test_run_folder import write_run
from raylane.benchmarks import load_run
from raylane.benchmarks.report import write_report
run = load_run(write_run(Path(sys.argv[1])))
write_report(run)
print(run.path)
print(run.requests["chunks"].to_list())
"""


def test_every_declared_metric_is_everywhere(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path))
    header = next(csv.reader(io.StringIO(csv_report(run))))
    markdown, html = markdown_report(run), html_report(run)
    for metric in REQUEST_METRICS:
        assert f"{metric.name}_p50" in header
        assert f"| {metric.heading} |" in markdown
        assert f"<td>{metric.heading}</td>" in html
        assert (metric.name in run.requests.columns) != metric.many
    for figure in STREAM_METRICS:
        assert figure.name in header
        assert f"| {figure.heading} |" in markdown
        assert f"<th>{figure.heading}</th>" in html


def test_a_metric_more_is_one_entry(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", MADE_UP, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    path, frame = done.stdout.splitlines()
    assert frame == "[3.0, 0.0]"
    markdown, html = (Path(path, f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "| m<b> | made-up pieces | 3 (3 to 3) |" in markdown
    assert "| made-up cut |" in markdown
    assert html.count("<svg") == 4
    row = next(csv.DictReader(io.StringIO(Path(path, "report.csv").read_text())))
    assert (row["chunks_p50"], row["cut"]) == ("3.0", "7.0")
    known = load_run(path)  # by a raylane without these metrics
    assert known.summary.cases[0].streams[0].figure("cut") == 7.0
    assert "made-up" not in markdown_report(known)


def test_results_written_before_a_metric_came_are_readable(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    shutil.copy(OLD_RESULTS, path / "results.json")
    stream = load_run(path).summary.cases[0].streams[0]
    assert stream.figure("cut") is None
    assert stream.ttft_ms is not None
    assert stream.ttft_ms.p50.value == pytest.approx(100.0)
    assert STREAM_METRICS[0].read(stream) == pytest.approx(0.1)
