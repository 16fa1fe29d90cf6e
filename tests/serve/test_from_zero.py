"""A model at zero wakes for its first request, and what is deployed outlives the directory. Simulated engines."""

import asyncio
import threading
from collections.abc import Iterator

import openai
import pytest
import ray
from conftest import PORT, UP_WITHIN_S, Cluster, until

from raylane.cluster.errors import RaylaneError
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory.deployed import deployed_names, recall
from raylane.deployments.directory.ray_actor import RayDirectory, directory_actor
from raylane.deployments.rollout.rollout import delete, deploy, snapshot

pytestmark = [pytest.mark.serve, pytest.mark.timeout(1200)]

MODEL = {
    "source": "builtin:llama-3-8b-shape",
    "engine": {"kind": "simulator", "device": "cpu", "speedup": 10.0},
    "replicas": {"min": 0, "max": 2},
    "slo": {"ttft_ms": 1000, "tpot_ms": 60},
}


def config(**models: object) -> DeploymentConfig:
    gateway = {"port": PORT, "processes_per_host": 2, "hold_timeout_s": 120}
    return DeploymentConfig.model_validate({"models": models, "gateway": gateway})


@pytest.fixture(scope="module", autouse=True)
def deployed(cluster: Cluster) -> Iterator[None]:
    deploy(config(zero=MODEL, kept=MODEL), cluster.api, "test", lambda statuses: None, UP_WITHIN_S)
    yield
    delete(cluster.api, [])
    assert (deployed_names(), recall()) == ((), None)


def to_zero(cluster: Cluster) -> None:
    cluster.api.scale("zero", 0)
    until(lambda: not cluster.ready("zero"), 90.0)


def scale_at_the_wake(cluster: Cluster) -> tuple[threading.Thread, list[tuple[str, ...]]]:
    """What an autoscaler does: wait for a model that is asked for, and start it."""
    directory, woken, waits = RayDirectory(), list[tuple[str, ...]](), threading.Event()

    async def scale() -> None:
        known, _ = await directory.wait_for_wake(0, 0.0)
        waits.set()
        woken.append((await directory.wait_for_wake(known, 30.0))[1])
        cluster.api.scale("zero", 1)

    thread = threading.Thread(target=lambda: asyncio.run(scale()))
    thread.start()
    assert waits.wait(30.0)
    return thread, woken


def ask(cluster: Cluster) -> str:
    answer = cluster.client().completions.create(model="zero", prompt="x", max_tokens=2)
    return answer.choices[0].finish_reason


def test_a_request_wakes_a_model_at_zero_and_is_answered(cluster: Cluster) -> None:
    to_zero(cluster)
    thread, woken = scale_at_the_wake(cluster)
    assert ask(cluster) == "length"
    thread.join(120.0)
    assert woken == [("zero",)]


def test_a_model_at_zero_is_still_known_and_woken_after_the_directorys_death(cluster: Cluster) -> None:
    to_zero(cluster)
    before = snapshot()
    ray.kill(directory_actor(), no_restart=False)

    def settled() -> bool:
        """It is another one, and gateways go by what it says alone."""
        try:
            return bool(ray.get(directory_actor().poll.remote("test", "", 0, 0.0, {}), timeout=20).settled)
        except ray.exceptions.RayError:
            return False

    until(settled, 90.0)
    after = snapshot()
    assert before is not None
    assert after is not None
    assert after.epoch != before.epoch
    assert set(after.models) == {"zero", "kept"}
    thread, _ = scale_at_the_wake(cluster)
    assert ask(cluster) == "length"
    thread.join(120.0)


def test_the_deployed_config_is_recalled_whole_and_without_what_failed(cluster: Cluster) -> None:
    bad = {**MODEL, "engine": {**MODEL["engine"], "start_timeout_s": 3, "fail_after_s": 0.01}}  # type: ignore[dict-item]
    with pytest.raises(RaylaneError):
        deploy(config(zero=MODEL, kept=MODEL, bad=bad), cluster.api, "test", lambda statuses: None, UP_WITHIN_S)
    assert recall() == config(zero=MODEL, kept=MODEL)
    delete(cluster.api, ["kept"])
    assert recall() == config(zero=MODEL)
    with pytest.raises(openai.NotFoundError):
        cluster.client().completions.create(model="kept", prompt="x")
