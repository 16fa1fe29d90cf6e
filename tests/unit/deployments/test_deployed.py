"""What is deployed, kept where it outlives raylane's actors; the store itself is Ray's (tests/serve)."""

import json

import pytest

from raylane.cluster.errors import UsageError
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory import deployed
from raylane.deployments.directory.deployed import READ_EVERY_S, DeployedLimits, deployed_names, only, recall, remember
from raylane.deployments.slo import SloLimits

CONFIG = DeploymentConfig.model_validate(
    {
        "models": {
            "a": {
                "source": "builtin:tiny-llama",
                "engine": {"kind": "simulator", "gpu": "L40S", "max_model_len": 4096},
                "replicas": {"min": 0, "max": 4},
                "slo": {"ttft_ms": 1000, "tpot_ms": 60},
            },
            "b": {"source": "builtin:tiny-llama", "tensor_parallel": 2},
        },
        "gateway": {"port": 9000},
    }
)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """A dictionary in the place of Ray's store."""
    kept: dict[bytes, bytes] = {}

    def put(key: bytes, value: bytes, *, namespace: bytes) -> None:
        kept[namespace + b":" + key] = value

    def get(key: bytes, *, namespace: bytes) -> bytes | None:
        return kept.get(namespace + b":" + key)

    def delete(key: bytes, *, namespace: bytes) -> None:
        kept.pop(namespace + b":" + key, None)

    monkeypatch.setattr(deployed, "_internal_kv_put", put)
    monkeypatch.setattr(deployed, "_internal_kv_get", get)
    monkeypatch.setattr(deployed, "_internal_kv_del", delete)
    return kept


def test_before_the_first_deploy_nothing_is_known() -> None:
    assert (recall(), deployed_names()) == (None, ())
    remember(None)


def test_everything_of_a_config_comes_back() -> None:
    remember(CONFIG)
    assert recall() == CONFIG
    assert deployed_names() == ("a", "b")


def test_the_last_one_counts_and_none_forgets_it() -> None:
    remember(CONFIG)
    remember(only(CONFIG, frozenset({"b"})))
    assert deployed_names() == ("b",)
    remember(None)
    assert (recall(), deployed_names()) == (None, ())


def test_what_is_left_of_a_config() -> None:
    left = only(CONFIG, frozenset({"b", "never heard of"}))
    assert left is not None
    assert (left.models, left.gateway) == ({"b": CONFIG.models["b"]}, CONFIG.gateway)
    assert only(CONFIG, frozenset()) is None


def test_of_another_versions_config_the_names_are_known(store: dict[bytes, bytes]) -> None:
    remember(CONFIG)
    (key,) = store
    store[key] = json.dumps({"models": {"a": {"source": "x", "novelty": 1}}}).encode()
    assert deployed_names() == ("a",)
    with pytest.raises(UsageError, match=r"the deployed config: models\.a\.novelty: unknown key"):
        recall()


def test_the_limits_of_a_models_slo_are_those_deployed_now(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("raylane.deployments.directory.deployed.time.monotonic", lambda: now_s)
    with_slo, without = DeployedLimits("a"), DeployedLimits("b")
    assert with_slo() is None, "nothing is deployed yet"
    remember(CONFIG)
    assert with_slo() is None, "read not long ago"
    now_s += READ_EVERY_S
    assert with_slo() == SloLimits(1.0, 0.0, 0.06)
    assert without() is None


def test_the_limits_hold_while_the_store_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("raylane.deployments.directory.deployed.time.monotonic", lambda: now_s)
    remember(CONFIG)
    limits = DeployedLimits("a")
    before = limits()

    def fails() -> None:
        raise ConnectionError

    monkeypatch.setattr(deployed, "recall", fails)
    now_s += 2 * READ_EVERY_S
    assert limits() == before == SloLimits(1.0, 0.0, 0.06)
