"""Two recorded hosts on real raylets: scaled at random twenty times, replicas killed, one moved; leases stay right."""

from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, told_by

pytestmark = [pytest.mark.serve, pytest.mark.timeout(960)]
RECORDING = Path(__file__).resolve().parents[1] / "fixtures" / "topology" / "l40s-x12-three-hosts.json"
SCRIPT = Path(__file__).with_name("churning_cluster.py")
PAIR = "llama-70b"


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What the cluster did."""
    return told_by(SCRIPT, RECORDING, free_port())


def test_leases_never_overlap_whoever_comes_and_goes(told: dict[str, Any]) -> None:
    assert len(told["steps"]) == 20
    for step in told["steps"]:
        needed = sum(count * (2 if model == PAIR else 1) for model, count in step["replicas"].items())
        assert len(step["gpus"]) == len(set(step["gpus"])) == needed
    kills = {kill for step in told["steps"] for kill in step["kills"]}
    assert kills == {"engine", "replica"}, "both kinds of death happened"
    assert told["looks"] > 100
    assert (told["split"], told["overfull"]) == ([], [])


def test_leases_always_end_and_nothing_is_left_running(told: dict[str, Any]) -> None:
    assert told["left"] == []
    assert told["processes"] == []


def test_both_hosts_are_used_and_seen(told: dict[str, Any]) -> None:
    used = {uuid[:8] for step in told["steps"] for uuid in step["gpus"]}
    assert used == {"GPU-a1a1", "GPU-a2a2"}
    seen = {host["name"]: sorted(host["uses"]) for host in told["moved"]["hosts"]}
    assert seen.keys() == {"l40s-1", "l40s-2"}
    assert sorted(seen.values()) == [["free"] * 4, ["free", "free", "leased", "leased"]]


def test_a_moved_replica_stays_the_same_and_finds_its_better_pair_again(told: dict[str, Any]) -> None:
    moved = told["moved"]
    assert len(moved["replicas"]) == 1
    first, odd, last = moved["at"]
    assert sorted(odd["gpus"]) == sorted(moved["asked"])
    assert [place["second_best"] for place in moved["at"]] == [False, True, False]
    assert set(last["gpus"]) != set(odd["gpus"])
    assert len(first["gpus"]) == len(last["gpus"]) == 2
    assert [said["state"] for said in moved["said"]] == ["done", "done"]


def test_a_stream_that_runs_when_its_replica_moves_is_finished(told: dict[str, Any]) -> None:
    assert told["moved"]["streamed"] == [100, 8]
