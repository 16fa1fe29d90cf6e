"""One local Ray for all serve tests, real vLLM CPU engines on it, and helpers that talk to them."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import create_server
from typing import Any

import openai
import pytest

from raylane.cluster.local_ray import local_ray
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory.reports import ReplicaReport, ReplicaState
from raylane.deployments.rollout.rollout import delete, deploy, snapshot
from raylane.deployments.rollout.serve_api import ServeApi, dashboard_url

ENDS_WITHIN_S = 840.0
"""For a script of a cluster: 207 to 404 s were seen on two cores that others kept busy (loads of 8 to 28)."""


def free_port() -> int:
    """A port that nobody listens on, below those that the system hands out, so that it stays free until it is used, and
    above those that Ray keeps for its workers (10,002 to 19,999), which a head may not have."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        try:
            with create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue


PORT = free_port()
# Eager float32 starts soonest; eager bfloat16 kernels of the CPU build end with SIGILL on some virtual machines.
ENGINE = {
    "device": "cpu",
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 64,
    "env": {"OMP_NUM_THREADS": "1"},
}
SIMULATED = {"kind": "simulator", "device": "cpu", "max_model_len": 2048, "slowdown": 20}
UP_WITHIN_S = 240.0


class Cluster:
    """The running cluster as the tests use it."""

    def __init__(self, api: ServeApi) -> None:
        self.api = api
        self.url = f"http://127.0.0.1:{PORT}"

    def config(self, models: dict[str, dict[str, Any]], port: int = PORT) -> DeploymentConfig:
        """A config of tiny models; each entry may override engine settings and model keys, or be a simulator's."""
        blocks = {
            name: {"source": "builtin:tiny-llama", **block, "engine": engine_block(block.get("engine", {}))}
            for name, block in models.items()
        }
        return DeploymentConfig.model_validate({"models": blocks, "gateway": {"port": port}})

    def deploy(self, models: dict[str, dict[str, Any]]) -> None:
        deploy(self.config(models), self.api, "test", lambda statuses: None, UP_WITHIN_S)
        until(lambda: {r.model for r in self.ready()} >= set(models), 60.0)

    def ready(self, model: str | None = None) -> list[ReplicaReport]:
        known = snapshot()
        replicas = [] if known is None else [r for r in known.replicas if r.state is ReplicaState.READY]
        return [r for r in replicas if model is None or r.model == model]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", timeout=120.0, max_retries=0)


def engine_block(own: dict[str, Any]) -> dict[str, Any]:
    return own if own.get("kind") == "simulator" else {**ENGINE, **own}


def until(true: Callable[[], object], within_s: float) -> float:
    """Wait for something; seconds it took. Fails the test when it does not come true in time."""
    began_s = time.monotonic()
    while not true():
        if time.monotonic() - began_s > within_s:
            pytest.fail(f"not true within {within_s} s")
        time.sleep(0.1)
    return time.monotonic() - began_s


def told_by(script: Path, *arguments: object) -> dict[str, Any]:
    """What a script of a cluster prints. It is a process of its own, because a process can have one local Ray."""
    command = [sys.executable, str(script), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            out, errors = running.communicate(timeout=ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            running.terminate()  # it takes its cluster down with it
            out, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors[-4000:]
    answer: dict[str, Any] = json.loads(out)
    return answer


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with local_ray(cpus=16) as context:
        running = Cluster(ServeApi(dashboard_url(context)))
        yield running
        delete(running.api, [])
