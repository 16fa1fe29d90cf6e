"""Which setting of a rule is frozen."""

from typing import Any

import pytest

from studies.autoscaling import tune
from studies.autoscaling.tune import best_knobs, score, settings


def records(rule: str, each: dict[str, tuple[float, float, float]], scenarios: int = 2) -> list[dict[str, Any]]:
    """A record for each scenario: setting -> (GPU-hours of 10 in one hour, worst attainment, reversals an hour)."""
    return [
        {
            "rule": rule,
            "scenario": scenario,
            "knobs": {"name": name},
            "outcome": {"hours": 1.0, "gpu_hours": gpu_hours, "worst_model": worst, "reversals_per_hour": turns},
        }
        for name, (gpu_hours, worst, turns) in each.items()
        for scenario in ("a", "b")[:scenarios]
    ]


@pytest.fixture(autouse=True)
def two_scenarios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "tuning_scenarios", lambda: ["a", "b"])


@pytest.mark.parametrize(
    ("gpu_hours", "worst", "expected"),
    [
        pytest.param(10.0, 0.99, 1.0, id="the fixed fleet at its attainment"),
        pytest.param(7.0, 0.999, 0.7, id="more than is wanted earns nothing"),
        pytest.param(7.0, 0.97, 0.9, id="each percent that lacks costs a tenth of the fleet"),
    ],
)
def test_what_a_run_scores(gpu_hours: float, worst: float, expected: float) -> None:
    assert score({"hours": 1.0, "gpu_hours": gpu_hours, "worst_model": worst}) == pytest.approx(expected)


def test_the_best_setting_of_each_rule_is_frozen() -> None:
    found = best_knobs(
        records("kpa", {"dear": (9.0, 0.99, 0.0), "good": (7.0, 0.98, 9.0), "bad": (5.0, 0.9, 0.0)})
        + records("apa", {"only": (12.0, 0.99, 0.0)})
    )
    assert found["kpa"] == {"knobs": {"name": "good"}, "score": 0.8, "tried": 3}
    assert found["apa"]["knobs"] == {"name": "only"}


def test_raylanes_own_must_not_turn_back_often_while_others_may() -> None:
    each = {"restless": (6.0, 0.99, 1.1), "steady": (7.0, 0.99, 1.0)}
    found = best_knobs(records("slo", each) + records("kpa", each))
    assert (found["slo"]["knobs"]["name"], found["kpa"]["knobs"]["name"]) == ("steady", "restless")


def test_a_setting_that_was_not_run_everywhere_does_not_count() -> None:
    assert best_knobs(records("kpa", {"half": (1.0, 1.0, 0.0)}, scenarios=1)) == {}


def test_a_setting_that_was_recorded_twice_counts_once() -> None:
    once = records("kpa", {"good": (5.0, 0.99, 0.0), "other": (9.0, 0.99, 0.0)})
    assert best_knobs(once + records("kpa", {"good": (5.0, 0.99, 0.0)})) == best_knobs(once)
    assert best_knobs(records("kpa", {"half": (1.0, 1.0, 0.0)}, scenarios=1) * 2) == {}


def test_every_rule_has_the_same_budget_and_the_same_draws_each_time() -> None:
    assert {len(settings(rule)) for rule in tune.TUNED} == {tune.BUDGET}
    assert settings("slo") == settings("slo") != settings("kpa")
