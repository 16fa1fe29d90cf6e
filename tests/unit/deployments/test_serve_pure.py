"""Reading Serve's answers, checking what fits, ports, and messages for users; nothing here needs a cluster."""

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.node import NodeState, write_state
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.rollout import rollout
from raylane.deployments.rollout.applications import GATEWAY
from raylane.deployments.rollout.rollout import Node, check_fits, display_name, own_cluster, port_problem, tidy
from raylane.deployments.rollout.serve_api import AppStatus, ServeApi, ServeState, dashboard_url

NODES = (Node("n1", "10.0.0.1", 4.0), Node("n2", "10.0.0.2", 8.0))


def config(**models: dict[str, Any]) -> DeploymentConfig:
    blocks = {name: {"source": "org/hub-id", **block} for name, block in models.items()}
    return DeploymentConfig.from_data({"models": blocks}, "test")


@pytest.mark.parametrize(
    "models",
    [
        pytest.param({"a": {"tensor_parallel": 8}, "b": {"tensor_parallel": 4}}, id="every GPU is used"),
        pytest.param({"a": {"replicas": {"min": 12, "max": 40}}}, id="the ceiling may be above the fleet"),
        pytest.param({"a": {"engine": {"device": "cpu"}, "tensor_parallel": 64}}, id="CPU engines need no GPU"),
    ],
)
def test_what_fits_passes(models: dict[str, dict[str, Any]]) -> None:
    check_fits(config(**models), NODES, "deploy.yaml")


@pytest.mark.parametrize(
    ("models", "says"),
    [
        pytest.param(
            {"big": {"tensor_parallel": 8, "pipeline_parallel": 2}},
            ("deploy.yaml: models.big.tensor_parallel", "needs 16 GPUs on one host", "the largest host has 8"),
            id="a replica larger than every host",
        ),
        pytest.param(
            {"a": {"replicas": {"min": 9, "max": 9}}, "b": {"tensor_parallel": 4}},
            ("deploy.yaml: models", "need 13 GPUs", "the cluster has 12"),
            id="the minimum replicas together",
        ),
        pytest.param(
            {"a": {"tensor_parallel": 8, "replicas": {"min": 0}}, "b": {"tensor_parallel": 8, "replicas": {"min": 0}}},
            (
                "the first replicas need 16 GPUs",
                "without an autoscaler that acts each model starts with a replica, a, b too",
            ),
            id="a model that nothing would wake",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_values(
    models: dict[str, dict[str, Any]], says: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        check_fits(config(**models), NODES, "deploy.yaml")
    assert [part for part in says if part not in str(caught.value)] == []


def test_a_gpu_model_on_a_cluster_without_gpus_is_refused() -> None:
    with pytest.raises(UsageError, match="the largest host has 0"):
        check_fits(config(a={}), [Node("n1", "10.0.0.1", 0.0)], "deploy.yaml")


def test_two_wide_replicas_do_not_fit_on_hosts_that_hold_one_and_a_half() -> None:
    """12 GPUs, two replicas of 6: one fits on the host of 8, none on the host of 4."""
    with pytest.raises(UsageError, match="models"):
        check_fits(config(a={"tensor_parallel": 6, "replicas": {"min": 2, "max": 2}}), NODES, "deploy.yaml")


def test_a_port_that_is_taken_and_one_that_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port_problem("127.0.0.1", port) == "Address already in use"
        assert port_problem("0.0.0.0", port) == "Address already in use"
    assert port_problem("127.0.0.1", port) is None


def test_a_port_shared_by_other_processes_is_taken_too() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as server:
        assert port_problem("127.0.0.1", server.getsockname()[1]) == "Address already in use"


def test_an_address_that_is_not_this_hosts_is_a_problem() -> None:
    assert port_problem("192.0.2.1", 8000) == "Cannot assign requested address"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        pytest.param(
            "Traceback:\n  File app.py\nraylane.engines.process.EngineFailed: engine died; log x:\nlast line\n",
            "engine died; log x:\nlast line",
            id="from the engine's error on",
        ),
        pytest.param(
            "FailedError: first try\n...\nFailedError: no GPUs for a: 2 wanted, 1 free",
            "no GPUs for a: 2 wanted, 1 free",
            id="the last of several",
        ),
        pytest.param(
            "traceback\nraylane.cluster.errors.UsageError: m: source: not there\n",
            "m: source: not there",
            id="from a wrong input on",
        ),
        pytest.param("  Deployment is unhealthy.\n", "Deployment is unhealthy.", id="another message as it is"),
    ],
)
def test_messages_lose_serves_own_frames(message: str, shown: str) -> None:
    assert tidy(message) == shown


def test_users_see_model_names() -> None:
    assert display_name("raylane-model-llama-8b") == "llama-8b"
    assert display_name(GATEWAY) == "gateway"


def details(**apps: dict[str, Any]) -> dict[str, Any]:
    return {
        "applications": apps,
        "controller_info": {"node_id": "abc"},
        "proxy_location": "HeadOnly",
        "http_options": {"host": "0.0.0.0", "port": 8000, "root_url": None},
    }


def app(
    status: str, target: int, *states: str, config: dict[str, Any] | None = None, message: str = ""
) -> dict[str, Any]:
    deployment = {"message": "from below", "target_num_replicas": target, "replicas": [{"state": s} for s in states]}
    return {"status": status, "message": message, "deployments": {"replica": deployment}, "deployed_app_config": config}


class RecordedServe(ServeApi):
    """Answers with recorded bodies instead of asking a cluster."""

    def __init__(self, declarative: dict[str, Any], everything: dict[str, Any]) -> None:
        super().__init__("http://127.0.0.1:1/")
        self._bodies = {
            "/api/serve/applications/?api_type=declarative": declarative,
            "/api/serve/applications/": everything,
        }
        self.sent: list[tuple[str, str, Any]] = []

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        self.sent.append((method, path, body))
        return self._bodies.get(path, {})


def test_state_tells_configs_apart_from_statuses_of_everyone() -> None:
    ours = app("RUNNING", 2, "RUNNING", "STARTING", config={"name": "raylane-model-a"})
    theirs = app("DEPLOYING", 1, message="starts")
    api = RecordedServe(details(**{"raylane-model-a": ours}), details(**{"raylane-model-a": ours, "fruit": theirs}))
    state = api.state()
    assert state.configs == {"raylane-model-a": {"name": "raylane-model-a"}}
    assert state.statuses["raylane-model-a"] == AppStatus("raylane-model-a", "RUNNING", "from below", 2, 1)
    assert state.statuses["fruit"].message == "starts\nfrom below"
    assert state.model_targets() == {"a": 2}
    assert state.options == {"proxy_location": "HeadOnly", "http_options": {"host": "0.0.0.0", "port": 8000}}


def test_a_serve_that_never_ran_gets_no_proxy() -> None:
    api = RecordedServe({}, {"applications": {}, "controller_info": {"node_id": None}})
    assert api.state() == ServeState({}, {}, {"proxy_location": "Disabled"})


def test_what_is_put_keeps_serves_options() -> None:
    api = RecordedServe({}, {})
    api.put([{"name": "a"}], {"proxy_location": "HeadOnly"})
    body = {"proxy_location": "HeadOnly", "applications": [{"name": "a"}]}
    assert api.sent == [("PUT", "/api/serve/applications/", body)]


def test_a_dashboard_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(FailedError, match=f"GET http://127.0.0.1:{port}/api/serve/applications/.*no answer"):
        ServeApi(f"http://127.0.0.1:{port}").state()


def test_the_clusters_token_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request to a listener that keeps what it was sent and closes."""
    token = tmp_path / "token"
    token.write_text("secret-token\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    sent = []

    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                sent.append(peer.recv(65536))
                peer.sendall(b"HTTP/1.1 403 No\r\ncontent-length: 9\r\nconnection: close\r\n\r\nforbidden")

        listener = threading.Thread(target=answer)
        listener.start()
        with pytest.raises(FailedError, match="403: forbidden"):
            ServeApi(f"http://127.0.0.1:{server.getsockname()[1]}").scale("tiny", 3)
        listener.join()
    head = sent[0].decode()
    assert head.startswith("POST /api/v1/applications/raylane-model-tiny/deployments/replica/scale HTTP/1.1")
    assert "Authorization: Bearer secret-token" in head


def test_the_dashboards_address_may_lack_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)

    class Context:
        dashboard_url: str | None = "127.0.0.1:8265"

    assert dashboard_url(Context()) == "http://127.0.0.1:8265"
    context = Context()
    context.dashboard_url = None
    with pytest.raises(FailedError, match="no dashboard"):
        dashboard_url(context)


@pytest.mark.parametrize(
    ("recorded", "alive", "environment", "expected"),
    [
        pytest.param(True, True, "", "10.0.0.1:6379", id="the Ray that this host runs"),
        pytest.param(True, False, "", "auto", id="a Ray of this host that is gone"),
        pytest.param(False, False, "", "auto", id="none was started here"),
        pytest.param(True, True, "10.0.0.9:6379", "auto", id="RAY_ADDRESS, which Ray reads for auto"),
    ],
)
def test_which_cluster_is_meant_when_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool, alive: bool, environment: str, expected: str
) -> None:
    monkeypatch.setenv("RAYLANE_RUNTIME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", environment)
    monkeypatch.setattr(rollout, "works", lambda state: alive)
    if recorded:
        write_state(NodeState("mark", head=False, head_address="10.0.0.1:6379", own_address="10.0.0.2"), tmp_path)
    assert own_cluster() == expected
