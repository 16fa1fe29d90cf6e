"""Plans of `raylane replay`: what of the traffic is cut, and what no fleet or model can do is refused by name."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raylane.autoscaling.lab.choices import narrowed
from raylane.autoscaling.lab.plan import TRACES_VARIABLE, ReplayModel, ReplayPlan, Traffic, base_trace, seeded_trace
from raylane.autoscaling.lab.replay import Offered, replay
from raylane.autoscaling.lab.replay_files import results
from raylane.cluster.errors import UsageError

DOCS = Path(__file__).parents[3] / "docs"
MODEL = {
    "source": "builtin:llama-3.1-8b-shape",
    "max_model_len": 8192,
    "replicas": {"min": 1, "max": 2},
    "slo": {"ttft_ms": 1000, "tpot_ms": 60},
    "cold_start_s": 60,
}
STEADY = {"kind": "constant", "rps": 1, "duration_s": 60}
LONG = "t_s,input_tokens,output_tokens\n" + "".join(f"{n},9000,3000\n{n}.5,100,50\n" for n in range(50))


def plan(traffic: dict[str, Any], policy: str = "fixed", **models: dict[str, Any]) -> ReplayPlan:
    """The traffic goes to every model; without models to one named m."""
    every = {name: MODEL | changes for name, changes in (models or {"m": {}}).items()}
    data = {
        "name": "small",
        "recording": "l40s-x12-six-switch-pairs",
        "models": every,
        "scenarios": {"calm": {"traffic": dict.fromkeys(every, traffic)}},
        "policies": [policy],
        "seeds": 1,
    }
    return ReplayPlan.from_data(data, "small.yaml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(TRACES_VARIABLE, raising=False)
    (tmp_path / "long.csv").write_text(LONG, encoding="utf-8")
    return tmp_path


def offered(made: ReplayPlan, folder: Path) -> Offered:
    ((run,),) = replay(made, folder, 1)
    return run.offered["m"]


def test_nothing_is_cut_unless_the_model_cannot_hold_it(folder: Path) -> None:
    whole = offered(plan({"trace": "long.csv"}, m={"max_model_len": 12_000}), folder)
    assert (whole.cut, "cut" in whole.source) == (0, False)
    assert 70 < whole.requests < 130


def test_what_the_model_cannot_hold_is_cut_and_counted(folder: Path) -> None:
    made = plan({"trace": "long.csv"})
    ((run,),) = replay(made, folder, 1)
    found = run.offered["m"]
    assert 30 < found.cut < found.requests - 30
    assert found.source.startswith("long.csv (plain layout), 100 rows")
    assert "longer ones cut to 8192 in all (tokens)" in found.source
    (stored,) = results(made, [run])["traffic"]
    assert stored == {
        "scenario": "calm",
        "seed": 1,
        "model": "m",
        "requests": found.requests,
        "cut": found.cut,
        "source": found.source,
    }


def test_limits_of_the_traffic_cut_too(folder: Path) -> None:
    found = offered(plan({"trace": "long.csv", "max_input": 90, "max_output": 20}), folder)
    assert found.cut == found.requests


def test_begin_and_end_hold_for_shapes() -> None:
    shape = {"kind": "step", "base_rps": 1, "peak_rps": 20, "before_s": 300, "hold_s": 100, "after_s": 300}
    traffic = Traffic.from_data({"shape": shape, "begin_s": 300, "end_s": 400, "scale": 2}, "f")
    trace = seeded_trace(base_trace(traffic, "m", Path()), traffic, 3)
    assert trace.duration_s == 100
    assert trace.mean_rps == pytest.approx(40, rel=0.1)
    assert trace.name == "m"


@pytest.mark.parametrize(
    ("traffic", "message"),
    [
        pytest.param({"shape": STEADY, "cv": 2}, "cv 2 goes with rates; a shape has its own cv", id="cv for a shape"),
        pytest.param({"trace": "t.csv", "cv": 2}, "cv 2 goes with rates; a trace has the gaps", id="cv for a trace"),
        pytest.param({"trace": "t.csv", "lengths": "u.csv"}, "rates and lengths go together", id="lengths alone"),
        pytest.param(
            {"shape": STEADY, "begin_s": 9, "end_s": 4}, "end_s 4 does not come after begin_s 9", id="end before begin"
        ),
    ],
)
def test_keys_that_would_be_ignored_are_refused(traffic: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=r"^small\.yaml: scenarios\.calm\.traffic\.m: " + message):
        plan(traffic)


def test_a_plan_written_out_reads_back() -> None:
    made = plan({"shape": STEADY, "max_input": 100})
    assert ReplayPlan.from_data(made.model_dump(mode="json"), "again") == made


@pytest.mark.parametrize(
    ("traffic", "models", "message"),
    [
        pytest.param(
            {"shape": STEADY, "max_input": 8000, "max_output": 500},
            {},
            "scenario calm: model m: max_input 8000 and max_output 500: beyond its max_model_len 8192",
            id="limits beyond the model's",
        ),
        pytest.param(
            {"shape": STEADY, "max_input": 8192},
            {},
            "scenario calm: model m: max_input 8192: beyond its max_model_len 8192",
            id="no room for a reply",
        ),
        pytest.param(
            {"shape": STEADY},
            {"a": {"replicas": {"min": 8, "max": 12}}, "b": {"replicas": {"min": 8, "max": 12}}},
            "scenario calm: model b: replicas.min 8 of 1 GPUs each, .*fleet of 12 GPUs has room for 4",
            id="more at least than there are GPUs",
        ),
        pytest.param(
            {"shape": STEADY},
            {"m": {"tensor_parallel": 16, "replicas": {"min": 0, "max": 2}}},
            "scenario calm: model m: a replica takes 16 GPUs with usable links to each other, the largest host has 12",
            id="a replica larger than every host",
        ),
        pytest.param(
            {"shape": STEADY},
            {"m": {"source": "builtin:llama-3.1-70b-shape"}},
            "model m: .*does not fit",
            id="weights larger than the GPU",
        ),
        pytest.param(
            {"shape": STEADY, "scale": 1e-9},
            {},
            r"scenario calm: no model has requests on seed 1 \(generated: constant\)",
            id="no requests",
        ),
        pytest.param(
            {"shape": STEADY, "begin_s": 500},
            {},
            "scenario calm: model m: .*the part begins at 500.0 s",
            id="a part after the end",
        ),
    ],
)
@pytest.mark.parametrize("policy", ["fixed", "static", "oracle"])
def test_what_cannot_be_replayed_is_named(
    traffic: dict[str, Any], models: dict[str, Any], message: str, policy: str
) -> None:
    with pytest.raises(UsageError, match="^plan small: " + message):
        list(replay(plan(traffic, policy, **models), Path(), 1))


def sigterm_there(made: ReplayPlan, folder: Path, where: tuple[str, int]) -> list[Any]:
    return [signal.getsignal(signal.SIGTERM)]


def test_workers_end_with_the_pool_whatever_the_command_does_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylane.autoscaling.lab.replay.replay_all", sigterm_there)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        found: list[Any] = list(replay(plan({"shape": STEADY}).model_copy(update={"seeds": 2}), Path(), 2))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [[signal.SIG_DFL], [signal.SIG_DFL]]


def documented(page: str, first_line: str) -> dict[str, Any]:
    """The YAML example of a page of the docs that begins with this line."""
    _, found = (DOCS / page).read_text(encoding="utf-8").split(f"```yaml\n{first_line}\n")
    data: dict[str, Any] = yaml.safe_load(f"{first_line}\n{found.partition('```')[0]}")
    return data


def test_the_plan_of_the_docs_runs(folder: Path) -> None:
    rows = "".join(f"{n * 5},{400 + n},40\n" for n in range(200))
    (folder / "requests.csv").write_text("t_s,input_tokens,output_tokens\n" + rows, encoding="utf-8")
    whole = narrowed(ReplayPlan.from_data(documented("replay.md", "name: two-loads"), "docs"))
    assert sorted(whole.scenarios) == ["recorded", "step"]
    (runs,) = replay(narrowed(whole, scenarios=["recorded"]), folder, 1)
    assert [run.policy for run in runs] == ["slo", "knative", "static"]
    assert 200 < runs[0].offered["llama-8b"].requests < 280


def test_the_synthetic_load_of_the_docs_is_a_traffic() -> None:
    traffic = Traffic.from_data(documented("traces.md", "shape:"), "docs")
    assert len(seeded_trace(base_trace(traffic, "m", Path()), traffic, 1)) > 1000


def test_every_key_of_a_plan_is_documented() -> None:
    section = (DOCS / "replay.md").read_text(encoding="utf-8").partition("## The plan\n")[2].partition("\n## ")[0]
    keys = [key for kind in (ReplayPlan, ReplayModel, Traffic) for key in kind.model_fields]
    assert [key for key in keys if f"`{key}`" not in section] == []


@pytest.mark.parametrize("policy", ["fixed", "static", "oracle"])
def test_a_model_that_nobody_asks_for_on_a_seed_is_replayed_beside_others(folder: Path, policy: str) -> None:
    made = plan({"shape": STEADY}, policy, busy={}, rare={})
    rare = Traffic.model_validate({"shape": STEADY, "scale": 1e-9})
    calm = made.scenarios["calm"].model_copy(update={"traffic": {**made.scenarios["calm"].traffic, "rare": rare}})
    ((run,),) = replay(made.model_copy(update={"scenarios": {"calm": calm}}), folder, 1)
    counts = {name: given.requests for name, given in run.offered.items()}
    assert counts["rare"] == 0
    assert counts["busy"] > 30


def test_a_trace_with_a_doubtful_clock_asks_for_its_unit_and_takes_it(folder: Path) -> None:
    rows = "".join(f"{second},100,50\n" for second in range(60))
    (folder / "clock.csv").write_text(f"timestamp,input_length,output_length\n{rows}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"model m: .*clock\.csv: timestamp: .* doubtful: .* unit: s or unit: ms"):
        offered(plan({"trace": "clock.csv"}), folder)
    ((run,),) = replay(plan({"trace": "clock.csv", "unit": "s"}), folder, 1)
    told = results(plan({"trace": "clock.csv", "unit": "s"}), [run])["traffic"][0]["source"]
    assert "times in seconds (as asked)" in told
    assert run.outcome is not None
    assert run.outcome["hours"] > 59 / 3600


def test_a_shape_has_no_unit() -> None:
    with pytest.raises(UsageError, match="a shape has no file"):
        plan({"shape": STEADY, "unit": "ms"})
