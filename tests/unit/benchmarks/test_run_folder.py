import csv
import io
import subprocess
import sys
from array import array
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from stub_endpoint import DONE, content_event, usage_event

from raylane.benchmarks import Run, load_run
from raylane.benchmarks.metrics import CaseFacts, StreamPlan, Window, case_result
from raylane.benchmarks.plan import BenchmarkPlan
from raylane.benchmarks.records import RawReply, RequestRecord, read_reply
from raylane.benchmarks.report import write_report
from raylane.benchmarks.results import CostFigure, RunResults
from raylane.benchmarks.run_folder import RunFolder, check_writable
from raylane.benchmarks.spool import Spool, read_spool
from raylane.benchmarks.sse import RawBody
from raylane.cluster.errors import UsageError
from raylane.deployments.slo import Slo

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PLAN = BenchmarkPlan.from_data(
    {
        "name": "tiny",
        "cases": [
            {
                "name": "c|1",
                "duration_s": 10,
                "streams": [
                    {
                        "model": "m<b>",
                        "load": {"shape": "poisson", "rate_rps": 1},
                        "input_tokens": 4,
                        "output_tokens": 3,
                        "slo": {"ttft_ms": 200, "tpot_ms": 60},
                    }
                ],
            }
        ],
    },
    "test",
)
GOOD = RequestRecord("c|1", "m<b>", "m<b>", 1.0, 1.0, 1.3, 4, 3, 200, None, "length", 4, 3, (1.1, 1.15, 1.2))
REFUSED = replace(
    GOOD,
    t_sched_s=2.0,
    t_send_s=2.0,
    t_end_s=2.1,
    http_status=None,
    error="ClientOSError: <gone>",
    finish=None,
    prompt_tokens=None,
    completion_tokens=None,
    content_times_s=(),
)
COST = CostFigure(
    case="c|1",
    model="m<b>",
    gpus=2,
    usd_per_gpu_hour=3.5,
    price_source="test price",
    usd_per_hour=7.0,
    usd_per_million_output_tokens=6481.5,
    usd_per_1k_good_requests=None,
)


def write_run(out_dir: Path, *, complete: bool = True, simulated: bool = False) -> Path:
    folder = RunFolder(out_dir, PLAN, STARTED)
    results = RunResults(
        run_id=folder.run_id,
        plan_name=PLAN.name,
        started_at=STARTED.isoformat(),
        complete=False,
        simulated=simulated,
        cases=(),
    )
    folder.write_start({"python": "3", "packages": {}, "host": {}, "gpus": [], "engine": {}}, results)
    if complete:
        folder.write_requests([GOOD, REFUSED])
        facts = CaseFacts("c|1", Window(0.5, 10.5), complete=True, warmup_timed_out=False, client_cpu_share=0.1)
        case = case_result(
            facts, [GOOD, REFUSED], [StreamPlan("m<b>", "m<b>", Slo(ttft_ms=200, tpot_ms=60))], None, seed=1
        )
        folder.write_results(results.model_copy(update={"complete": True, "cases": (case,)}))
    return folder.path


def test_round_trip(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path))
    assert (run.complete, run.plan, run.results["run_id"]) == (True, PLAN, "20260102-030405-tiny")
    assert run.requests["ttft_ms"].to_list() == pytest.approx([100.0, np.nan], nan_ok=True)
    assert run.requests["tpot_ms"].to_list() == pytest.approx([50.0, np.nan], nan_ok=True)
    assert run.requests["good"].to_list() == [True, False]
    assert run.requests["in_window"].to_list() == [True, True]
    assert run.requests["completion_tokens"].isna().to_list() == [False, True]
    assert run.requests["error"].to_list()[1] == "ClientOSError: <gone>"
    assert run.tokens["request"].to_list() == [0, 0, 0]
    assert run.tokens["t_s"].to_list() == [1.1, 1.15, 1.2]
    assert run.tokens["gap_ms"].to_list() == pytest.approx([np.nan, 50.0, 50.0], nan_ok=True)
    assert run.tokens["tokens"].to_list() == [1.0, 1.0, 1.0]
    assert run.gpu.empty


def test_run_that_only_began_is_readable(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, complete=False))
    assert (run.complete, len(run.requests), len(run.tokens)) == (False, 0, 0)
    measured = run.requests[run.requests["in_window"]]
    assert measured.groupby(["case", "stream"])[["ttft_ms", "tpot_ms"]].describe().empty


def test_folder_that_can_be_written_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "runs")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/runs")):
        with pytest.raises(UsageError, match=rf"^--out {folder}: a run folder cannot be made there: \w"):
            check_writable(folder)
    monkeypatch.chdir(tmp_path)
    check_writable(Path("runs"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_runs_in_one_second_and_order_by_name(tmp_path: Path) -> None:
    first, second = write_run(tmp_path), write_run(tmp_path)
    later = RunFolder(tmp_path, PLAN, STARTED.replace(hour=20)).path
    assert sorted([later.name, second.name, first.name]) == [first.name, second.name, later.name]


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        pytest.param(lambda path: (path / "results.json").unlink(), "no results.json", id="no run folder"),
        pytest.param(
            lambda path: (path / "results.json").write_text('{"run_id": 1}'), "results.json: run_id", id="other format"
        ),
        pytest.param(lambda path: (path / "environment.json").unlink(), "environment.json", id="no environment"),
        pytest.param(
            lambda path: (path / "requests.parquet").write_bytes(b"PAR1?"), "requests.parquet", id="broken requests"
        ),
        pytest.param(lambda path: (path / "gpu.parquet").touch(), "gpu.parquet", id="broken GPU samples"),
    ],
)
def test_folder_that_is_none_says_so(tmp_path: Path, breakage: object, message: str) -> None:
    path = write_run(tmp_path)
    breakage(path)  # type: ignore[operator]
    with pytest.raises(UsageError) as caught:
        load_run(path)
    assert message in str(caught.value)


def raw_reply(t_s: float) -> RawReply:
    chunks = [content_event("a"), content_event("b", "stop") + usage_event(4, 2) + DONE]
    ends = array("q", [len(chunks[0]), len(chunks[0]) + len(chunks[1])])
    return RawReply(t_s, t_s, t_s + 1, 200, None, 4, 2, RawBody(b"".join(chunks), ends, array("d", [t_s, t_s + 0.5])))


def test_spool_gives_back_whole_entries_and_leaves_out_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "case.spool"
    with Spool(path) as spool:
        for t_s in (1.0, 2.0):
            spool.append("c", "s", "m", raw_reply(t_s))
    expected = [read_reply(raw_reply(t_s), "c", "s", "m") for t_s in (1.0, 2.0)]
    assert expected[0].completion_tokens == 2
    assert list(read_spool(path)) == expected
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 2 - 1):
        path.write_bytes(whole[:-cut])
        assert list(read_spool(path)) == expected[:1]


def test_report_files(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path))
    files = write_report(run, [COST])
    markdown, html = files.markdown.read_text(), files.html.read_text()
    assert "| m<b> | TTFT | 100 (100 to 100) | 100 (100 to 100) | 100 (100 to 100) | – | 100 | 1 |" in markdown
    assert "| m<b> | 1 of 2 | 0.1 | 0.3 | 0.4 | 0.1 | 50.0% | 9.5% to 90.5% | 99.0% |" in markdown
    assert "| m<b> | 2 | 3.5 | 7 | 6,482 | – | test price |" in markdown
    assert "- 1 x ClientOSError: <gone>" in markdown
    assert html.count("<svg") == 3
    assert "m&lt;b&gt;" in html
    assert "m<b>" not in html
    assert "SIMULATED" not in html + markdown
    row = next(csv.DictReader(io.StringIO(files.csv.read_text())))
    assert (row["ttft_ms_p99"], row["model_usd_per_hour"], row["attainment"]) == ("", "7.0", "0.5")
    assert float(row["tpot_ms_p50"]) == pytest.approx(50.0)


def test_simulated_stands_in_every_table_and_chart(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, simulated=True))
    files = write_report(run, [COST])
    tables = [line for line in files.markdown.read_text().splitlines() if line.startswith("### ")]
    assert len(tables) == 3
    assert all(line.startswith("### SIMULATED ") for line in tables)
    html = files.html.read_text()
    charts = html.split("<svg")[1:]
    assert len(charts) == 3
    assert all("SIMULATED" in chart.split("</svg>")[0] for chart in charts)
    assert html.count("<caption>SIMULATED ") == html.count("<caption>")


def test_report_of_a_run_without_cases(tmp_path: Path) -> None:
    run: Run = load_run(write_run(tmp_path, complete=False))
    files = write_report(run)
    assert "0 of 1 cases" in files.markdown.read_text()
    assert files.csv.read_text() == ""


def test_loading_needs_neither_ray_nor_an_http_client() -> None:
    code = "import sys; from raylane.benchmarks import load_run; print(sorted({'ray', 'aiohttp'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
