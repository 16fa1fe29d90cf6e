"""The check runs records again: equal ones pass, changed ones and misfiled ones are named, absent traces are said."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from raylane.autoscaling.lab.plan import TRACES_VARIABLE
from raylane.cluster.errors import FailedError, UsageError
from studies.autoscaling import check as check_module
from studies.autoscaling.bounds import World
from studies.autoscaling.check import check, draw, draw_bound, main, without_traces
from studies.autoscaling.job import Job, Records
from studies.autoscaling.runner import run_job

JOB = Job("flash-crowd", "all 12 GPUs", "fixed", {"replicas": {"llama-8b": 6, "llama-70b": 3}}, 11)
NEEDS_TRACE = Job("azure2023-code", "slo", "slo", {}, 11)


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    return run_job(JOB)


def test_a_record_that_its_run_gives_passes(tmp_path: Path, outcome: dict[str, Any]) -> None:
    Records(tmp_path / "test").add(JOB, outcome)
    assert check(tmp_path, 1.0, 1, 1).runs == 1


def test_a_changed_figure_is_found_and_named(tmp_path: Path, outcome: dict[str, Any]) -> None:
    Records(tmp_path / "test").add(JOB, outcome | {"gpu_hours": outcome["gpu_hours"] + 1e-6})
    with pytest.raises(FailedError, match=r"flash-crowd, all 12 GPUs, seed 11 .*: gpu_hours is recorded as"):
        check(tmp_path, 1.0, 1, 1)


def test_a_record_under_another_key_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Records(tmp_path / "test").add(JOB, {})
    path = tmp_path / "test" / "flash-crowd.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"seed":11', '"seed":12'), encoding="utf-8")
    monkeypatch.setattr(check_module, "differences", lambda records, workers: iter(()))
    with pytest.raises(FailedError, match=f"recorded under {JOB.key}, the run's key is"):
        check(tmp_path, 1.0, 1, 1)


def test_without_its_traces_a_scenario_is_left_out_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACES_VARIABLE, str(tmp_path))
    Records(tmp_path / "test").add(NEEDS_TRACE, {"gpu_hours": 1.0})
    (tmp_path / "bounds.jsonl").write_text('{"scenario": "azure2023-code", "seed": 11}\n', encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["check", str(tmp_path)])
    assert main() == 0
    printed = capsys.readouterr()
    assert "NOT CHECKED: azure2023-code: " in printed.err
    assert "azure2023_code.csv.gz: no such trace" in printed.err
    assert "0 of 1 records, and no bound, run again" in printed.out


def test_each_call_draws_others_and_says_how_to_draw_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACES_VARIABLE, str(tmp_path))
    Records(tmp_path / "test").add(NEEDS_TRACE, {"gpu_hours": 1.0})

    def seed_of(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["check", str(tmp_path), *arguments])
        assert main() == 0
        return capsys.readouterr().out.splitlines()[0].removeprefix("--seed ")

    assert len({seed_of() for _ in range(3)}) > 1
    assert seed_of("--seed", "7") == "7"


def test_runs_of_the_tuning_are_drawn_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Records(tmp_path / "test").add(JOB, {})
    tuning = Job("tune-step", "slo", "slo", {"burst_margin": 1.0}, 1)
    Records(tmp_path / "tuning").add(tuning, {})
    drawn: list[str] = []

    def note(records: Sequence[Mapping[str, Any]], workers: int) -> Iterator[str]:
        drawn.extend(record["key"] for record in records)
        return iter(())

    monkeypatch.setattr(check_module, "differences", note)
    assert check(tmp_path, 1.0, 1, 1).recorded == 2
    assert sorted(drawn) == sorted((JOB.key, tuning.key))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({}, None, id="equal"),
        pytest.param(
            {"fluid_gpu_hours": 3.5}, "lull, seed 11: fluid_gpu_hours is recorded as 3.5, now 3.0", id="changed"
        ),
        pytest.param({"seed": 12}, None, id="equal on another seed"),
    ],
)
def test_a_bound_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str | None
) -> None:
    def computed(world: World) -> dict[str, Any]:
        return {"scenario": world[0], "seed": world[1], "fluid_gpu_hours": 3.0, "static": {"counts": (1, 2)}}

    Records(tmp_path / "test").add(JOB, {})
    recorded = computed(("lull", 11)) | change
    (tmp_path / "bounds.jsonl").write_text(json.dumps(recorded) + "\n", encoding="utf-8")
    monkeypatch.setattr(check_module, "differences", lambda records, workers: iter(()))
    monkeypatch.setattr(check_module, "bounds_of", computed)
    if message is None:
        assert check(tmp_path, 1.0, 1, 1).bound == ("lull", recorded["seed"])
    else:
        with pytest.raises(FailedError, match=message):
            check(tmp_path, 1.0, 1, 1)


def test_every_bound_can_be_drawn() -> None:
    bounds = [{"scenario": "lull", "seed": seed} for seed in range(5)]
    drawn = [draw_bound(bounds, seed) for seed in range(100)]
    assert all(bound in drawn for bound in bounds)
    assert draw_bound(bounds, 3) == draw_bound(bounds, 3)
    assert draw_bound([], 1) is None


def test_synthetic_scenarios_need_no_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACES_VARIABLE, str(tmp_path))
    records = [{"scenario": name} for name in ("step", "flash-crowd", "lull", "azure2023-code")]
    assert list(without_traces(records)) == ["azure2023-code"]


def test_the_sample_is_the_same_for_a_seed_and_never_empty() -> None:
    records = [{"key": str(number)} for number in range(200)]
    assert draw(records, 0.02, 1) == draw(records, 0.02, 1) != draw(records, 0.02, 2)
    assert (len(draw(records, 0.02, 1)), len(draw(records, 1e-9, 1)), len(draw([], 0.5, 1))) == (4, 1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda folder: None, "no runs", id="an empty folder"),
        pytest.param(
            lambda folder: Records(folder / "test").add(Job("gone", "slo", "slo"), {}),
            "'gone' is not in study.yaml",
            id="a scenario the plan has no more",
        ),
    ],
)
def test_wrong_folders_are_refused(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    change(tmp_path)
    with pytest.raises(UsageError, match=message):
        check(tmp_path, 0.5, 1, 1)


def test_a_share_is_a_share(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--share 2 is not within 0 and 1"):
        check(tmp_path, 2.0, 1, 1)


def test_records_are_json_lines_that_say_what_is_wrong(tmp_path: Path) -> None:
    Records(tmp_path).add(JOB, {"gpu_hours": 1.0})
    with (tmp_path / "flash-crowd.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"cut')
    with pytest.raises(UsageError, match="line 2: not JSON"):
        Records(tmp_path).read()
    assert json.loads((tmp_path / "flash-crowd.jsonl").read_text(encoding="utf-8").splitlines()[0])["seed"] == 11
