"""The autoscaler on a live cluster: up and down with the load, from zero, and through the death of what it needs."""

from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, told_by

pytestmark = [pytest.mark.serve, pytest.mark.timeout(960)]
RECORDING = Path(__file__).resolve().parents[2] / "cluster" / "recordings" / "l40s-x12-six-switch-pairs.json"
SCRIPT = Path(__file__).with_name("autoscaled_cluster.py")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What happened."""
    return told_by(SCRIPT, RECORDING, free_port())


def test_replicas_follow_a_step_of_load_up_and_down_again(told: dict[str, Any]) -> None:
    counts = told["counts"]
    assert (counts[0], counts[-1]) == (1, 1)
    assert max(counts) >= 3
    assert told["ready when steady"] == told["steady"] >= 3
    peak = counts.index(max(counts))
    assert counts[peak:] == sorted(counts[peak:], reverse=True), "no growth on the way down"


def test_no_request_is_lost_on_the_way(told: dict[str, Any]) -> None:
    assert told["bad"] == []
    assert told["good"] == told["sent"] > 200


def test_a_model_goes_to_zero_and_its_next_request_wakes_it(told: dict[str, Any]) -> None:
    assert told["rare"] == [1, []], "answered after the wake"
    assert told["cold starts"] == 1.0
    rare = [(entry["from"], entry["to"], entry["reason"]) for entry in told["log"] if entry["model"] == "rare"]
    assert (1, 0, "no request for long enough") in rare
    assert (0, 1, "a request waits and no replica runs") in rare


@pytest.mark.parametrize("part", ["directory", "controller", "autoscaler"])
def test_the_death_of_a_part_changes_no_count(told: dict[str, Any], part: str) -> None:
    first, *others = told["killed"][part]["counts"]
    assert first >= 3
    assert set(others) <= set(told["killed"][part]["decided"]), "every change is one that the autoscaler decided on"


def test_it_decides_on_after_every_death(told: dict[str, Any]) -> None:
    assert told["killed"]["decides again"]
    assert told["status"]["problem"] is None
    assert told["log"][-1]["to"] == 1, "the shrink came after the restart"


def test_every_change_has_a_reason_and_was_taken_by_serve(told: dict[str, Any]) -> None:
    assert all(entry["applied"] and entry["reason"] for entry in told["log"])


def test_the_command_shows_what_is_decided(told: dict[str, Any]) -> None:
    assert (told["shown"]["policy"], told["shown"]["mode"]) == ("slo", "act")
    assert {model["name"] for model in told["shown"]["models"]} == {"busy", "rare"}


def test_two_models_take_turns_on_one_gpu_and_a_deploy_leaves_them_at_that(told: dict[str, Any]) -> None:
    turns = told["turns"]
    assert turns["deployed"]["resting"] == ["raylane-model-second"]
    assert (turns["second"], turns["first"]) == ([1, []], [1, []]), "both were answered"
    first, second = {"first": 1, "second": 0}, {"first": 0, "second": 1}
    assert turns["targets"] == [first, second, second, first, first]
    assert turns["deployed again"]["resting"] == ["raylane-model-second"]
    assert turns["deployed again"]["restarted"] == turns["deployed again"]["added"] == []


def test_the_autoscaler_ends_with_the_last_model(told: dict[str, Any]) -> None:
    assert told["autoscaler is gone"]
