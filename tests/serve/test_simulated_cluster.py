"""A whole mixed deployment on eight recorded GPUs: leases, links, answers and scaling, with simulated engines."""

import json
import subprocess
import sys
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from raylane.cluster.choose import Choice, choose
from raylane.cluster.domains import domains
from raylane.cluster.hosts import Host
from raylane.cluster.recording import load_recording

pytestmark = [pytest.mark.serve, pytest.mark.timeout(420)]
RECORDING = Path(__file__).resolve().parents[1] / "fixtures" / "topology" / "l40s-x8-plx.json"
SCRIPT = Path(__file__).with_name("simulated_cluster.py")
PAIR = "llama-70b"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the cluster did, told by a process of its own: one process can have one local Ray."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    runs = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(RECORDING), str(port), str(runs)], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


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
