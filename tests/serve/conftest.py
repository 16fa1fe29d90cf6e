"""One local Ray for all serve tests, real vLLM CPU engines on it, and helpers that talk to them."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from raylane.cluster.local_ray import local_ray
from raylane.deployments.config import DeploymentConfig
from raylane.deployments.reports import ReplicaReport, ReplicaState
from raylane.deployments.rollout import delete, deploy, snapshot
from raylane.deployments.serve_api import ServeApi, dashboard_url

PORT = 18_080
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
        until(lambda: {r.model for r in self.ready()} >= set(models), 20.0)

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


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with local_ray(cpus=16) as context:
        running = Cluster(ServeApi(dashboard_url(context)))
        yield running
        delete(running.api, [])
