"""`raylane calibrate`: which cases of runs become rows, and what it prints."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from raylane.benchmarks.plan import BenchmarkPlan
from raylane.benchmarks.results import CaseResult, Estimate, RunResults, StreamResult, Summary
from raylane.benchmarks.run_folder import Run
from raylane.cli.calibrate import calibrate_command, rows_of_runs
from raylane.cluster.errors import UsageError
from raylane.deployments.simulator.calibration import H200_ROWS, calibrate, read_rows
from raylane.deployments.simulator.constants import ConstantsFile

BASE = {"model": "builtin:llama-3-8b-shape", "gpu": "L40S"}


def summary(value: float) -> Summary:
    middle = Estimate(value=value, low=None, high=None)
    return Summary(samples=50, mean=value, p50=middle, p90=middle, p95=middle, p99=None)


def result(case: str, *, valid: bool = True) -> CaseResult:
    stream = StreamResult(
        stream="m", model="m", attempted=50, completed=50, errors={}, ttft_ms=summary(80), ttft_from_schedule_ms=None,
        tpot_ms=summary(25), itl_ms=None, e2e_ms=None, dispatch_lag_ms=None, requests_per_s=1, output_tokens_per_s=400,
        input_tokens_per_s=1, goodput_rps=None, attainment=None,
    )  # fmt: skip
    return CaseResult(
        case=case, complete=True, valid=valid, reasons=(), window_start_s=0, window_s=60, client_cpu_share=None,
        output_tokens_per_s=400, streams=(stream,), energy=None,
    )  # fmt: skip


def run(*, simulated: bool = False, invalid: str = "", run_id: str = "r1") -> Run:
    loads: dict[str, dict[str, Any]] = {
        "c4": {"shape": "concurrency", "concurrency": 4},
        "c1": {"shape": "concurrency", "concurrency": 1},
        "c16": {"shape": "concurrency", "concurrency": 16},
        "open": {"shape": "poisson", "rate_rps": 2},
    }
    cases = [
        {
            "name": name,
            "duration_s": 60,
            "streams": [{"model": "m", "load": load, "input_tokens": 512, "output_tokens": 128}],
        }
        for name, load in loads.items()
    ]
    plan = BenchmarkPlan.from_data({"name": "sweep", "base_url": "http://x", "cases": cases}, "test")
    found = RunResults(
        run_id=run_id,
        plan_name="sweep",
        started_at="2026-01-01T00:00:00Z",
        complete=True,
        simulated=simulated,
        cases=tuple(result(name, valid=name != invalid) for name in loads),
    )
    empty = pd.DataFrame()
    return Run(Path(run_id), plan, {}, {}, found, empty, empty, empty)


def test_closed_loop_cases_become_rows_every_other_one_held_out() -> None:
    rows = rows_of_runs([run()], BASE, None)
    assert [(row.id, row.concurrency, row.use) for row in rows] == [
        ("r1/c1", 1, "fit"),
        ("r1/c4", 4, "held out"),
        ("r1/c16", 16, "fit"),
    ]
    assert rows[0].measured() == {"ttft_p50_ms": 80, "tpot_p50_ms": 25, "output_tokens_per_s": 400}


def test_named_cases_are_fitted_and_invalid_ones_left_out() -> None:
    rows = rows_of_runs([run(invalid="c4")], BASE, ["r1/c16"])
    assert [(row.id, row.use) for row in rows] == [("r1/c1", "held out"), ("r1/c16", "fit")]


def test_simulated_runs_are_no_measurements() -> None:
    with pytest.raises(UsageError, match="r1: a simulated run"):
        rows_of_runs([run(simulated=True)], BASE, None)


def test_a_case_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"r1/c99.*r1/c16"):
        rows_of_runs([run()], BASE, ["r1/c99"])


def test_repeats_of_a_load_are_fitted_or_held_out_together() -> None:
    rows = rows_of_runs([run(), run(run_id="r2")], BASE, None)
    assert [(row.concurrency, row.use) for row in rows] == [
        *[(1, "fit"), (1, "fit")],
        *[(4, "held out"), (4, "held out")],
        *[(16, "fit"), (16, "fit")],
    ]


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"r1/c1'.*more than once"):
        calibrate(rows_of_runs([run(), run()], BASE, None))


def test_runs_and_rows_of_different_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match=r"one GPU.*H200-SXM, L40S"):
        calibrate([*read_rows([H200_ROWS]), *rows_of_runs([run()], BASE, None)])


def test_run_folders_need_a_model_and_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--model and --gpu"):
        calibrate_command([tmp_path])


@pytest.mark.parametrize(
    ("run", "out", "words"),
    [
        pytest.param("nowhere", None, "nowhere: no such file or folder", id="nothing to read"),
        pytest.param("rows.yaml", "no/such/dir.yaml", r"--out .*no folder .*no/such$", id="no folder for the result"),
        pytest.param("rows.yaml", ".", "--out .*is a folder", id="a folder as the result"),
    ],
)
def test_paths_are_checked_before_the_fit(tmp_path: Path, run: str, out: str | None, words: str) -> None:
    (tmp_path / "rows.yaml").write_text("rows: [not, looked, at]")
    with pytest.raises(UsageError, match=words):
        calibrate_command([tmp_path / run], out=None if out is None else tmp_path / out)


def test_constants_are_written_in_the_simulators_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "constants.yaml"
    calibrate_command([H200_ROWS], out=out, json_output=True)
    printed = json.loads(capsys.readouterr().out)
    (entry,) = ConstantsFile.from_yaml(out).constants
    assert entry.gpu == printed["gpu"] == "H200-SXM"
    assert entry.bandwidth_share == pytest.approx(printed["bandwidth_share"], abs=1e-4)
    assert printed["held_out_mean_error"]["output_tokens_per_s"] < 0.1


def test_the_table_says_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    calibrate_command([H200_ROWS])
    shown = capsys.readouterr().out
    assert "SIMULATED" in shown
    assert yaml.safe_load(shown[shown.index("constants:") :])["constants"][0]["trust"] == "calibrated"


def test_run_folders_say_how_long_a_context_was_served() -> None:
    base = {**BASE, "max_model_len": 4096, "gpu_memory_utilization": 0.8}
    (row, *_) = rows_of_runs([run()], base, None)
    assert (row.max_model_len, row.gpu_memory_utilization) == (4096, 0.8)
    with pytest.raises(UsageError, match=r"^row r1/c1: 512 input and 128 output .* max_model_len 600$"):
        calibrate(rows_of_runs([run()], {**BASE, "max_model_len": 600}, None))


ROWS = """
rows:
- {id: "[/x]a", model: "builtin:llama-3-8b-shape", gpu: L40S, concurrency: 1, requests: 2, input_tokens: 512,
   output_tokens: 16, use: fit, ttft_p50_ms: 80, tpot_p50_ms: 25, source: test}
- {id: b, model: "builtin:llama-3-8b-shape", gpu: L40S, concurrency: 8, requests: 16, input_tokens: 512,
   output_tokens: 16, use: fit, ttft_p50_ms: 400, tpot_p50_ms: 30, source: test}
"""


def test_the_result_is_printed_before_a_file_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.yaml"
    rows.write_text(ROWS)
    with pytest.raises(UsageError, match=r"--out /proc/constants\.yaml: cannot be written: "):
        calibrate_command([rows], out=Path("/proc/constants.yaml"))
    shown = capsys.readouterr().out
    assert "[/x]a" in shown[: shown.index("constants:")]
    assert yaml.safe_load(shown[shown.index("constants:") :])["constants"][0]["gpu"] == "L40S"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param({"model": "builtin:llama-3-8b-shape"}, "--model", id="the model"),
        pytest.param({"tensor_parallel": 2, "fit": ["x"]}, "--tensor-parallel, --fit", id="the split and the cases"),
    ],
)
def test_options_for_run_folders_are_refused_where_there_are_none(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"^{named}: for run folders"):
        calibrate_command([H200_ROWS], **options)
