from pathlib import Path

import pytest
from small_lab import load, model, setup

from raylane.autoscaling.lab.setup import Setup
from raylane.cluster.errors import UsageError
from studies.autoscaling.bounds import bounds, read_bounds, run_bounds, worlds
from studies.autoscaling.jobs import LONG


def two_models() -> Setup:
    traces = {"a": load(6.0, 360.0), "b": load(1.0, 360.0, seed=2)}
    return setup([model("a", least=1, most=4), model("b", gpus=2, least=1, most=2)], traces)


@pytest.mark.parametrize(
    "pooled_penalties",
    [pytest.param((10.0,), id="pooled plans of their own"), pytest.param((), id="pooled plans near the others only")],
)
def test_bounds_lie_above_each_other_and_attain_what_they_say(pooled_penalties: tuple[float, ...]) -> None:
    found = bounds(two_models(), 1, (10.0,), pooled_penalties)
    static, oracle = found["static"], found["oracle"]
    assert found["fluid_gpu_hours"] <= oracle["pooled"]["gpu_hours"] <= oracle["each"]["gpu_hours"]
    for kind in ("each", "pooled"):
        assert oracle[kind]["reached"]
        assert oracle[kind]["gpu_hours"] <= static[kind]["gpu_hours"] + 1e-9
        counts = static[kind]["counts"]
        assert static[kind]["gpu_hours"] == pytest.approx((counts["a"] + 2 * counts["b"]) * 0.1)
    assert min(static["each"]["worst_model"], oracle["each"]["worst_model"]) >= 0.99
    assert min(static["pooled"]["attainment"], oracle["pooled"]["attainment"]) >= 0.99


def test_no_fleet_is_no_bound() -> None:
    made = setup([model(most=1)], {"a": load(30.0, 60.0)})
    found = bounds(made, 1, (10.0,), (10.0,))
    assert found["static"] == {"each": None, "pooled": None}
    assert not found["oracle"]["each"]["reached"]


def computed(world: tuple[str, int]) -> dict[str, object]:
    return {"scenario": world[0], "seed": world[1], "hours": 1.0}


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bounds.jsonl"
    assert run_bounds(path, [("x", 1)], 1, computed) == 1
    assert run_bounds(path, [("x", 1), ("x", 2), ("y", 1)], 1, computed) == 2
    assert [(one["scenario"], one["seed"]) for one in read_bounds(path)] == [("x", 1), ("x", 2), ("y", 1)]


def test_a_torn_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bounds.jsonl"
    path.write_text('{"scenario": "x", "seed": 1}\n{"scen', encoding="utf-8")
    with pytest.raises(UsageError, match=r"bounds.jsonl: line 2: not JSON"):
        read_bounds(path)


def test_days_come_last_and_once() -> None:
    every = list(worlds())
    seeds = {scenario: [seed for one, seed in every if one == scenario] for scenario, _ in every}
    assert every[-len(LONG) :] == [(scenario, 11) for scenario in [name for name in seeds if name in LONG]]
    assert all(seeds[name] == [11, 12, 13] for name in seeds if name not in LONG)
