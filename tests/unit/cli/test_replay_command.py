"""`raylane replay`: a tiny plan end to end, its files, and errors that name what there is."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from raylane.autoscaling.lab.choices import PLANS, check_choice, narrowed, plan_file, swept
from raylane.autoscaling.lab.plan import TRACES_VARIABLE, PolicyChoice, ReplayPlan
from raylane.autoscaling.lab.replay import replay
from raylane.autoscaling.rules.registry import RULES, build_rule
from raylane.cli import app
from raylane.cluster.errors import UsageError

LENGTHS = {"input_tokens": {"mean": 100, "p99": 400, "max": 900}, "output_tokens": {"mean": 50, "p99": 150, "max": 400}}
SHAPE = {"kind": "constant", "rps": 1, "duration_s": 300, "lengths": LENGTHS}
PLAN: Mapping[str, Any] = {
    "name": "tiny",
    "recording": "l40s-x12-six-switch-pairs",
    "models": {
        "m": {
            "source": "builtin:llama-3.1-8b-shape",
            "max_model_len": 8192,
            "replicas": {"min": 1, "max": 3},
            "slo": {"ttft_ms": 1000, "tpot_ms": 60},
            "cold_start_s": 60,
        }
    },
    "scenarios": {
        "calm": {"traffic": {"m": {"shape": SHAPE}}},
        "recorded": {"traffic": {"m": {"trace": "no-such.csv.gz"}}},
    },
    "policies": ["slo", {"rule": "kpa", "label": "knative"}],
    "seeds": 2,
}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(dict(PLAN)), encoding="utf-8")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["raylane", "replay", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as ended:
        app.run(app.build_app())
    code = ended.value.code
    return 0 if code is None else int(code)


def test_a_tiny_plan_prints_a_simulated_table_and_writes_its_files(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    chosen = (
        "--scenario",
        "calm",
        "--policy",
        "slo",
        "--policy",
        "knative",
        "--policy",
        "static",
        "--policy",
        "oracle",
    )
    assert run(monkeypatch, plan, *chosen, "--seeds", 1, "--workers", 1, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "SIMULATED calm, 1 seed" in printed
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert [name for name in lines if name in ("slo", "knative", "static", "oracle")] == [*chosen[3::2]]
    assert lines["static"][1:4] == ["0.1", "100.0", "%"]  # one GPU for 5 minutes
    assert "static, seed 1: 1 x m" in printed
    assert lines["oracle"][-2:] == ["+0.0", "+0.0"]
    assert "regret: GPU-hours beyond the oracle's" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        *("pareto.svg", "replicas-calm.svg", "results.csv", "results.json"),
    ]
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert found["simulated"] is True
    assert found["means"]["calm"]["static"]["gpu_hours"] == pytest.approx(300 / 3600, rel=1e-3)
    with (out / "results.csv").open(encoding="utf-8") as file:
        assert [(row["policy"], row["rule"], row["seed"]) for row in csv.DictReader(file)] == [
            *(("slo", "slo", "1"), ("knative", "kpa", "1"), ("static", "static", "1"), ("oracle", "oracle", "1")),
        ]
    with (out / "results.csv").open(encoding="utf-8") as file:
        rows = {row["policy"]: row for row in csv.DictReader(file)}
    runs = {run["policy"]: run for run in found["runs"]}
    for name in ("slo", "knative", "static"):
        beyond = runs[name]["outcome"]["gpu_hours"] - runs["oracle"]["outcome"]["gpu_hours"]
        assert runs[name]["regret_gpu_hours"] == pytest.approx(beyond, abs=1e-6)
        assert found["means"]["calm"][name]["regret_gpu_hours"] == runs[name]["regret_gpu_hours"]
        assert float(rows[name]["regret_points"]) == runs[name]["regret_points"]
    assert ">SIMULATED: calm, seed 1</text>" in (out / "replicas-calm.svg").read_text(encoding="utf-8")


def test_json_alone_is_on_stdout_and_knobs_reach_the_policies_that_have_them(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, plan, "--scenario", "calm", "--knob", "burst_margin=3", "--workers", 1, "--json") == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(each["policy"], each["seed"], each["knobs"]) for each in runs] == [
        *(("slo", 1, {"burst_margin": 3}), ("knative", 1, {})),
        *(("slo", 2, {"burst_margin": 3}), ("knative", 2, {})),
    ]
    assert all(each["outcome"]["models"][0]["name"] == "m" for each in runs)


def test_a_sweep_is_one_curve_for_each_policy_and_leaves_bounds_alone(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    chosen = ("--policy", "knative", "--policy", "static", "--knob", "target_share=0.4", "--sweep")
    assert run(monkeypatch, plan, "--scenario", "calm", *chosen, "--seeds", 1, "--workers", 1, "--out", out) == 0
    assert "knative target_share=0.85" in capsys.readouterr().out
    runs = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]
    assert [run["policy"] for run in runs if run["curve"] == "static"] == ["static"]
    settings = [run["knobs"]["target_share"] for run in runs if run["curve"] == "knative"]
    assert settings[0] == 0.4
    assert sorted(settings) == sorted(RULES["kpa"].sweep)
    assert all(run["regret_gpu_hours"] is None for run in runs)
    drawn = (out / "replicas-calm.svg").read_text(encoding="utf-8")
    assert drawn.count("knative") == 1
    assert (out / "pareto.svg").read_text(encoding="utf-8").count(">knative</text>") == 1


@pytest.mark.parametrize("rule", [*RULES, "oracle", "static"])
def test_a_sweep_begins_with_the_setting_asked_for_and_runs_no_setting_twice(rule: str) -> None:
    own = PolicyChoice(rule=rule, label="mine")
    found = swept(own)
    assert found[0] == own
    assert {choice.line for choice in found} == {"mine"}
    if rule in RULES:
        entry = RULES[rule]
        levels = [getattr(build_rule(rule, **choice.knobs), entry.knob) for choice in found]
        assert len(levels) == len(set(levels))
        assert set(levels) >= set(entry.sweep)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("--policy", "sl"), ("policy 'sl' is unknown", "knative", "oracle"), id="an unknown policy"),
        pytest.param(("--scenario", "storm"), ("scenario 'storm'", "calm, recorded"), id="an unknown scenario"),
        pytest.param(("--knob", "speed=2"), ("no policy has a knob 'speed'", "burst_margin"), id="an unknown knob"),
        pytest.param(("--knob", "speed"), ("--knob speed: give NAME=VALUE",), id="a knob without a value"),
        pytest.param(
            ("--knob", "burst_margin=much"),
            ("burst_margin: Input should be a valid number (got 'much')",),
            id="a wrong value",
        ),
        pytest.param(
            ("--policy", "static", "--knob", "attainment=1.5"),
            ("policy 'static': knob attainment: Input should be less than or equal to 1 (got 1.5)",),
            id="a bound asked for more than all",
        ),
        pytest.param(("--scenario", "recorded"), ("no-such.csv.gz", TRACES_VARIABLE), id="a missing trace"),
        pytest.param(("--seeds", "0"), ("--seeds",), id="no seeds"),
        pytest.param(("--policy", "slo", "--policy", "slo"), ("slo is there twice",), id="a policy twice"),
    ],
)
def test_wrong_input_ends_with_2_and_names_what_there_is(
    plan: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    words: Sequence[str],
) -> None:
    assert run(monkeypatch, plan, *arguments) == 2
    printed = capsys.readouterr().err
    assert [word for word in words if word not in printed] == []


@pytest.mark.parametrize("part", ["file", "file/below"])
def test_an_out_that_cannot_be_a_folder_is_said_before_anything_runs(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    monkeypatch.setattr("raylane.cli.replay.run_all", lambda *_: pytest.fail("ran"))
    assert run(monkeypatch, plan, "--scenario", "calm", "--out", tmp_path / part) == 2
    assert f"error: --out {tmp_path / part}: cannot be written: " in capsys.readouterr().err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_names_with_brackets_and_slashes_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenarios = {"day/night [/x]": {"about": "load [/red] of [7B]", "traffic": {"m": {"shape": SHAPE}}}}
    policies = [{"rule": "fixed", "label": "one [fast]"}, {"rule": "static", "label": "[/y]"}]
    path = tmp_path / "odd.yaml"
    data = {**PLAN, "scenarios": scenarios, "policies": policies, "seeds": 1}
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    out = tmp_path / "out"
    assert run(monkeypatch, path, "--workers", 1, "--out", out) == 0
    printed = capsys.readouterr().out
    for words in ("day/night [/x], 1 seed", "load [/red] of [7B]", "one [fast]", "[/y], seed 1: 1 x m"):
        assert words in printed
    assert "m, seed 1: " in printed
    assert " requests, none cut; generated: constant" in printed
    assert (out / "replicas-day%2Fnight [/x].svg".replace("[/x]", "[%2Fx]")).is_file()


def test_an_unknown_plan_names_the_shipped_ones() -> None:
    with pytest.raises(UsageError, match=r"nowhere: no such plan; raylane ships .*flash-crowd"):
        plan_file(Path("nowhere"))
    assert plan_file(Path("flash-crowd")) == PLANS / "flash-crowd.yaml"


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_plans_need_no_downloads_and_name_known_policies(path: Path) -> None:
    plan = narrowed(ReplayPlan.from_yaml(path))
    assert [choice.name for choice in plan.policies]
    shapes = [traffic.shape for scenario in plan.scenarios.values() for traffic in scenario.traffic.values()]
    assert None not in shapes


@pytest.mark.parametrize("rule", RULES)
def test_values_that_a_rule_is_swept_over_are_values_of_its_knobs(rule: str) -> None:
    entry = RULES[rule]
    for value in entry.sweep:
        check_choice(PolicyChoice(rule=rule, knobs={entry.knob: value}))
    for knob, values in entry.space.items():
        for value in values:
            check_choice(PolicyChoice(rule=rule, knobs={knob: value}))


def test_a_fleet_that_cannot_be_enough_is_said_not_made_up() -> None:
    crowded = {**SHAPE, "rps": 600, "duration_s": 20}
    scenarios = {"crowded": {"traffic": {"m": {"shape": crowded}}}}
    plan = narrowed(ReplayPlan.from_data({**PLAN, "scenarios": scenarios, "policies": ["static"], "seeds": 1}, "tiny"))
    ((found,),) = replay(plan, Path(), 1)
    assert found.outcome is None
    assert found.note == "no fixed fleet reaches 0.99 of every model"
