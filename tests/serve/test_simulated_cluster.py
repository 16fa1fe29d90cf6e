"""A whole mixed deployment on eight recorded GPUs: leases, links, answers and scaling, with simulated engines."""

from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, told_by

from raylane.cluster.choose import Choice, choose
from raylane.cluster.domains import domains
from raylane.cluster.hosts import Host
from raylane.cluster.recording import load_recording

pytestmark = [pytest.mark.serve, pytest.mark.timeout(960)]
RECORDING = Path(__file__).resolve().parents[1] / "fixtures" / "topology" / "l40s-x8-plx.json"
SCRIPT = Path(__file__).with_name("simulated_cluster.py")
PAIR = "llama-70b"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the cluster did."""
    return told_by(SCRIPT, RECORDING, free_port(), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def host() -> Host:
    (found,) = load_recording(RECORDING)
    return found


def test_no_gpu_is_ever_in_two_leases(told: dict[str, Any], host: Host) -> None:
    for step in told["steps"]:
        needed = sum(count * (2 if model == PAIR else 1) for model, count in step["replicas"].items())
        assert len(step["gpus"]) == len(set(step["gpus"])) == needed
    assert told["most_leased"] == len(host.gpus), "the largest mix takes all GPUs"
    assert told["unknown"] == [], "leases are on the recorded GPUs"
    assert told["doubled"] == [], "no two replicas ever said that they hold the same one"


def test_every_pair_is_on_the_best_link_that_the_host_has(told: dict[str, Any], host: Host) -> None:
    best = choose(frozenset(gpu.uuid for gpu in host.gpus), host, 2)
    assert isinstance(best, Choice)
    level = host.link(*best.uuids).level
    pairs = [pair for step in told["steps"] for pair in step["pairs"]]
    assert [host.link(*pair).level for pair in pairs] == [level] * len(pairs)
    assert [step["second_best"] for step in told["steps"]] == [0] * len(told["steps"])
    assert told["links"] == "2 of 2 pairs are on their best link; 6 GPUs leased"
    assert len(domains(host)) > 1, "a host where pairs could have gone wrong"


def test_both_models_answer_after_every_change_of_scale(told: dict[str, Any]) -> None:
    assert told["replies"] == [{"llama-8b": 8, "llama-70b": 8}] * len(told["steps"])


def test_the_run_is_marked_simulated_by_the_replies_alone(told: dict[str, Any]) -> None:
    assert told["simulated"] is True
    assert told["errors"] == []
    assert min(told["completed"].values()) > 0


def test_nothing_is_leased_when_all_is_deleted(told: dict[str, Any]) -> None:
    assert told["left"] == []
