"""The study's headline on known numbers: costs at 99 %, "never", savings, common levels, the front."""

from pathlib import Path

import pytest
from study_values import SWEEPS, rows, write, write_bounds

from raylane.autoscaling.lab.pareto import Point
from raylane.cluster.errors import UsageError
from studies.autoscaling.compare import (
    above,
    attainment_at,
    compare,
    compare_at_common,
    compare_at_same_cost,
    cost,
)
from studies.autoscaling.headline import front, front_policies, headline
from studies.autoscaling.job import Job, Records
from studies.autoscaling.runs import read_study

OURS = {1: [Point(0.98, 10.0), Point(1.0, 12.0)], 2: [Point(0.98, 11.0), Point(1.0, 13.0)]}
THEIRS = {1: [Point(0.98, 20.0), Point(1.0, 24.0)], 2: [Point(0.98, 20.0), Point(1.0, 24.0)]}
DEAR = {1: [Point(1.0, 40.0)], 2: [Point(1.0, 40.0)]}
LOW = {1: [Point(0.9, 5.0), Point(0.95, 6.0)], 2: [Point(0.9, 5.0), Point(0.9579, 6.0)]}


def test_cost_is_interpolated_along_each_seeds_sweep_and_averaged() -> None:
    found = cost(OURS, 0.99)
    assert dict(found.by_seed) == pytest.approx({1: 11.0, 2: 12.0})
    assert found.gpu_hours == pytest.approx(11.5)


def test_a_seed_that_does_not_get_there_leaves_no_mean_but_says_how_far_it_got() -> None:
    found = cost({1: OURS[1], 2: LOW[2]}, 0.99)
    assert (found.reached, found.gpu_hours) == (1, None)
    assert list(found.best) == pytest.approx([(1.0 + 0.9579) / 2, 9.0])


def test_the_saving_is_against_the_cheapest_that_reaches_it() -> None:
    found = compare(OURS, {"dear": DEAR, "low": LOW, "theirs": THEIRS}, 0.99)
    assert found is not None
    assert (found.baseline, found.level, found.seeds) == ("theirs", 0.99, 2)
    assert [found.ours, found.theirs] == pytest.approx([11.5, 22.0])
    assert found.saving.value == pytest.approx(1 - 23 / 44)
    assert found.saving.low is not None
    assert found.saving.low <= found.saving.value
    assert not found.ours_above


def test_without_anybody_at_99_the_highest_common_level_is_compared() -> None:
    assert compare(OURS, {"low": LOW}, 0.99) is None
    found = compare_at_common(OURS, {"low": LOW})
    assert found is not None
    assert found.level == 0.95
    assert [found.ours, found.theirs] == pytest.approx([10.5, (6.0 + 5 + 0.05 / 0.0579) / 2])
    assert found.ours_above
    assert not found.theirs_above


def test_no_shared_seed_is_no_comparison() -> None:
    other = {9: OURS[1]}
    assert compare(OURS, {"other": other}, 0.99) is None
    assert compare_at_common(OURS, {"other": other}) is None


@pytest.mark.parametrize(
    ("budget", "attained"),
    [
        pytest.param(9.9, None, id="every setting costs more"),
        pytest.param(10.0, 0.98, id="just the cheapest"),
        pytest.param(11.0, 0.99, id="between two"),
        pytest.param(99.0, 1.0, id="more than the dearest"),
    ],
)
def test_what_a_sweep_attains_for_at_most_so_many_gpu_hours(budget: float, attained: float | None) -> None:
    assert attainment_at(OURS[1], budget) == (None if attained is None else pytest.approx(attained))


def test_at_the_same_cost_the_baseline_that_attains_most_is_compared() -> None:
    found = compare_at_same_cost(LOW, {"ours": OURS, "worse": {1: [Point(0.5, 1.0)], 2: [Point(0.6, 1.0)]}})
    assert found is not None
    assert (found.baseline, found.seeds) == ("worse", 2)  # all of ours cost more
    assert [found.gpu_hours, found.ours, found.theirs] == pytest.approx([6.0, 0.95395, 0.55])
    assert found.difference.value == pytest.approx(0.40395)
    assert compare_at_same_cost(LOW, {"ours": OURS}) is None


def test_distance_to_a_bound_counts_only_seeds_that_have_both() -> None:
    assert above({1: 11.0, 2: 12.0, 3: None}, {1: 10.0, 3: 1.0}) == pytest.approx(0.1)
    assert above({1: None}, {1: 10.0}) is None


def test_the_headline_has_costs_never_rows_bounds_and_the_saving(tmp_path: Path) -> None:
    write(tmp_path)
    write_bounds(
        tmp_path,
        fluid_gpu_hours=6.0,
        static={"each": None, "pooled": {"gpu_hours": 20.0}},
        oracle={"each": {"gpu_hours": 10.0, "reached": True}, "pooled": {"gpu_hours": 9.0, "reached": False}},
    )
    text = headline(read_study(tmp_path))
    found = rows(text)
    assert found["slo"] == ["11.5"]
    assert found["kpa"] == ["20.0"]
    assert found["queue"] == ["never (95.0 % for 11.5)"]
    assert found["*cheapest fixed fleet*"] == ["–"]
    assert found["*oracle*"] == ["10.0 (1 seed)"]
    assert found["*fluid bound*"] == ["6.0 (1 seed)"]
    saving = rows(text.split("saving [95 %]")[1])["step"]
    assert saving[:5] == ["kpa", "99.0 %", "2", "11.5", "20.0"]
    assert saving[5].startswith("+42.5 % [")
    assert saving[6:] == ["+10.0 %", "–"]
    same_cost = rows(text.split("difference [95 %]")[1])["step"]
    assert same_cost[:5] == ["kpa", "2", "12.5", "100.0 %", "96.0 %"]


def test_without_bounds_the_headline_still_stands(tmp_path: Path) -> None:
    write(tmp_path)
    assert rows(headline(read_study(tmp_path)))["*oracle*"] == ["–"]


def test_another_level_than_99_is_marked(tmp_path: Path) -> None:
    write(tmp_path, {name: SWEEPS[name] for name in ("slo", "queue")})
    saving = rows(headline(read_study(tmp_path)).split("saving [95 %]")[1])["step"]
    assert saving[:5] == ["queue", "95.0 % (not 99 %)", "2", "8.5 †", "11.5"]


def test_as_shipped_fixed_and_ablations_are_no_baselines(tmp_path: Path) -> None:
    write(tmp_path, {name: SWEEPS[name] for name in ("slo", "kpa")})
    records, cheap = Records(tmp_path / "test"), {"gpu_hours": 1.0, "worst_model": 1.0, "attainment": 1.0}
    for seed in (11, 12):
        for policy, rule in (("as shipped", "utilization"), ("one GPU", "fixed"), ("slo-no-band", "slo-no-band")):
            records.add(Job("step", policy, rule, {}, seed), cheap)
    text = headline(read_study(tmp_path))
    assert rows(text.split("saving [95 %]")[1])["step"][0] == "kpa"
    assert "slo-no-band" not in rows(text)
    assert rows(text)["one GPU"] == ["1.0"]


def test_the_front_counts_points_of_settings_that_ran_on_every_seed(tmp_path: Path) -> None:
    write(tmp_path)
    Records(tmp_path / "test").add(
        Job("step", "planner", "planner", {}, 11), {"gpu_hours": 0.1, "worst_model": 1.0, "attainment": 1.0}
    )
    study = read_study(tmp_path)
    assert front_policies(study.normal("step"), "worst_model") == {"slo": 3}
    assert rows(front(study))["step"][:2] == ["slo (3)", "yes"]


def test_a_folder_without_runs_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no runs in test\.parquet"):
        read_study(tmp_path)
