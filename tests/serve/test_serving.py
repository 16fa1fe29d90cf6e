"""The whole thread on real engines: deploy, serve through the gateway, edit, drain, break, replace.

The tests share one cluster and build on each other's deployments, in the order of this file: engine starts are what
takes the time on two cores.
"""

import concurrent.futures
import http.client
import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import openai
import pytest
import ray
from conftest import PORT, SIMULATED, UP_WITHIN_S, Cluster, until
from nbclient import NotebookClient
from ray import serve

from raylane.benchmarks import load_run
from raylane.benchmarks.plan import BenchmarkPlan
from raylane.cli.bench import run_with_progress
from raylane.cli.report import report
from raylane.cluster.errors import FailedError
from raylane.cluster.local_ray import MARK as CLUSTER_MARK
from raylane.cluster.processes import processes_with
from raylane.deployments.directory.ray_actor import directory_actor
from raylane.deployments.engines.guard import ALLOWED
from raylane.deployments.engines.load import read_page
from raylane.deployments.engines.process import MARK
from raylane.deployments.engines.vllm.engine import NAMES
from raylane.deployments.rollout.rollout import delete, deploy
from raylane.deployments.slo import SloLimits

pytestmark = [pytest.mark.serve, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]
ONE: dict[str, dict[str, Any]] = {"one": {}}
ONE_OF_EACH_KIND: dict[str, dict[str, Any]] = {"one": {}, "simulated": {"engine": SIMULATED}}
EACH_KIND = pytest.mark.parametrize("model", ONE_OF_EACH_KIND)
UP_TO_TWO = {"min": 1, "max": 2}
THREE: dict[str, dict[str, Any]] = {
    "one": {},
    "two": {"replicas": UP_TO_TWO, "engine": {"max_num_seqs": 32}},
    "simulated": {"replicas": UP_TO_TWO, "engine": {**SIMULATED, "slowdown": 6, "max_num_seqs": 32}},
}
SCALED_OF_EACH_KIND = pytest.mark.parametrize("model", ["two", "simulated"])


@pytest.fixture(scope="module", autouse=True)
def somebody_elses_application(cluster: Cluster) -> Iterator[None]:
    """An application that is none of raylane's business and must survive everything."""

    class Other:
        def __call__(self) -> int:
            return os.getpid()

    deployment = serve.deployment(ray_actor_options={"num_cpus": 0.1})(Other)
    handle = serve.run(deployment.bind(), name="other", route_prefix=None)
    pid = handle.remote().result(timeout_s=60)
    yield
    assert handle.remote().result(timeout_s=60) == pid


def test_a_taken_port_is_told_before_anything_starts(cluster: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FailedError, match=rf"gateway\.port: 127\.0\.0\.1:{port}.*in use"):
            deploy(cluster.config(ONE, port), cluster.api, "test", lambda statuses: None, 60.0)
    assert [name for name in cluster.api.state().statuses if name.startswith("raylane-")] == []


def test_a_model_that_cannot_load_is_told_with_its_log_and_taken_away(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    models = {"broken": {"source": str(tmp_path)}}
    with pytest.raises(FailedError, match=r"(?s)broken did not come up.*engine ended before it was ready.*log "):
        deploy(cluster.config(models), cluster.api, "test", lambda statuses: None, UP_WITHIN_S)
    assert [name for name in cluster.api.state().statuses if name.startswith("raylane-")] == []


@EACH_KIND
def test_chat_completions_streaming_and_usage(cluster: Cluster, model: str) -> None:
    cluster.deploy(ONE_OF_EACH_KIND)
    client = cluster.client()
    assert {listed.id for listed in client.models.list()} == {"one", "simulated"}
    chat = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=8, extra_body={"ignore_eos": True}
    )
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 8
    whole = client.completions.create(model=model, prompt="The gateway", max_tokens=16, temperature=0)
    stream = client.completions.create(
        model=model,
        prompt="The gateway",
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage == whole.usage


@EACH_KIND
def test_errors_have_openais_shape(cluster: Cluster, model: str) -> None:
    client = cluster.client()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="nobody", prompt="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="2048"):  # the engine's own message, passed through
        client.completions.create(model=model, prompt=[70] * 3000, max_tokens=10)
    with pytest.raises(openai.BadRequestError, match="model"):
        client.post("/completions", body={"prompt": "x"}, cast_to=object)


@EACH_KIND
def test_a_client_that_leaves_ends_the_engines_work(cluster: Cluster, model: str) -> None:
    replica = cluster.ready(model)[0]
    body = {"model": model, "prompt": "x", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    assert connection.getresponse().readline()
    until(lambda: running(replica.url, replica.api_key) == 1, 30.0)
    connection.close()
    until(lambda: running(replica.url, replica.api_key) == 0, 30.0)


def running(url: str | None, key: str | None) -> int:
    """Requests that the engine says it is working on."""
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"})
    page = urllib.request.urlopen(request, timeout=10).read().decode()
    return int(
        sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("vllm:num_requests_running"))
    )


def knock(url: str | None, method: str, path: str, key: str | None) -> int:
    """The status of one request, whose path goes out as it is written."""
    connection = http.client.HTTPConnection(str(url).removeprefix("http://"), timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        if key is not None:
            connection.putheader("Authorization", f"Bearer {key}")
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


OTHER_SPELLINGS = (
    *(
        ("POST", path)
        for path in ("//invocations", "/v1/../invocations", "/invocations/", "/%69nvocations", "/INVOCATIONS")
    ),
    *(("GET", path) for path in ("/v1/models/", "/health/", "/metrics/", "/metricsx", "//metrics", "/docs")),
    *((method, "/health") for method in ("HEAD", "OPTIONS", "PUT")),
)


@EACH_KIND
def test_an_engine_refuses_whoever_has_not_its_key(cluster: Cluster, model: str) -> None:
    replica = cluster.ready(model)[0]
    for method, path in (*sorted(ALLOWED), *OTHER_SPELLINGS):
        assert [knock(replica.url, method, path, key) for key in (None, "any", "")] == [401] * 3, (method, path)
    for method, path in OTHER_SPELLINGS:
        assert knock(replica.url, method, path, replica.api_key) == 404, (method, path)
    for path in ("/health", "/metrics", "/v1/models"):
        assert knock(replica.url, "GET", path, replica.api_key) == 200


def test_every_route_that_the_running_vllm_lists_asks_for_the_key(cluster: Cluster) -> None:
    replica = cluster.ready("one")[0]
    listed = re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", Path(replica.log_path).read_text())
    routes = {(method, path) for path, methods in listed for method in methods.replace(" ", "").split(",")}
    assert {("POST", "/invocations"), ("GET", "/metrics"), ("POST", "/v1/completions")} <= routes
    for method, path in sorted(routes):
        assert [knock(replica.url, method, path, key) for key in (None, "any")] == [401, 401], (method, path)
        if (method, path) not in ALLOWED:
            assert knock(replica.url, method, path, replica.api_key) == 404, (method, path)


@EACH_KIND
def test_a_running_engine_has_every_figure_that_is_read_off_it(cluster: Cluster, model: str) -> None:
    replica = cluster.ready(model)[0]
    request = urllib.request.Request(f"{replica.url}/metrics", headers={"Authorization": f"Bearer {replica.api_key}"})
    page = urllib.request.urlopen(request, timeout=10).read().decode()
    load = read_page(page, NAMES, SloLimits(ttft_s=60.0, ttft_s_per_token=0.0, tpot_s=60.0))
    assert [name for name, value in vars(load).items() if value is None] == []
    for histogram in (NAMES.ttft, NAMES.tpot):
        assert f"{histogram}_bucket" in page


def test_a_benchmark_its_report_and_the_notebook(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = {
        "model": "one",
        "load": {"shape": "poisson", "rate_rps": 8},
        "input_tokens": 32,
        "output_tokens": 16,
        "slo": {"ttft_ms": 2000, "tpot_ms": 500},
    }
    plan = BenchmarkPlan.model_validate(
        {
            "name": "in-ci",
            "base_url": cluster.url,
            "cases": [{"name": "only", "duration_s": 6, "streams": [stream]}],
            "cost": {"one": {"price": "cpu-demo"}},
        }
    )
    folder = run_with_progress(plan, tmp_path, simulated=False)
    only = load_run(folder).summary.cases[0].streams[0]
    assert only.completed == only.attempted > 20
    report([folder])
    printed = capsys.readouterr().out
    assert "TTFT" in printed
    assert "$" in printed
    assert "<svg" in (folder / "report.html").read_text()
    monkeypatch.setenv("RAYLANE_RUN", str(folder))
    notebook = nbformat.reads((ROOT / "notebooks" / "01_first_benchmark.ipynb").read_text(), as_version=4)  # type: ignore[no-untyped-call]
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are stripped in git"
    done = NotebookClient(notebook, timeout=120).execute()
    assert any("image/png" in output.get("data", {}) for cell in done.cells for output in cell.get("outputs", []))


def test_adding_and_editing_a_model_leaves_the_others_alone(cluster: Cluster) -> None:
    cluster.deploy(ONE)
    pid_of_one = cluster.ready("one")[0].engine_pid
    cluster.deploy(THREE)
    before = {model: cluster.ready(model)[0].engine_pid for model in ("two", "simulated")}
    edited = {**THREE, **{model: wider(THREE[model]) for model in before}}
    cluster.deploy(edited)
    for model, pid in before.items():
        until(lambda model=model, pid=pid: [r.engine_pid for r in cluster.ready(model)] not in ([], [pid]), 60.0)  # type: ignore[misc]
    assert [r.engine_pid for r in cluster.ready("one")] == [pid_of_one]
    bounds = {**edited, "one": {"replicas": {"min": 1, "max": 3}}}
    pids = {r.engine_pid for r in cluster.ready()}
    cluster.deploy(bounds)
    assert {r.engine_pid for r in cluster.ready()} == pids


def wider(block: dict[str, Any]) -> dict[str, Any]:
    return {**block, "engine": {**block["engine"], "max_num_seqs": 48}}


def until_each_replica_serves(cluster: Cluster, model: str) -> None:
    """Short requests, until the gateway sends them to every ready replica: it knows a new one a moment later."""
    before = {replica.replica_id: replica.load.output_tokens_total or 0.0 for replica in cluster.ready(model)}

    def short(number: int) -> None:
        cluster.client().completions.create(model=model, prompt=f"short {number}", max_tokens=16)

    def each_serves() -> bool:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(short, range(8)))
        ready = cluster.ready(model)
        return all((one.load.output_tokens_total or 0.0) > before.get(one.replica_id, 0.0) + 8 for one in ready)

    until(each_serves, 60.0)


@SCALED_OF_EACH_KIND
def test_a_draining_replica_finishes_its_streams(cluster: Cluster, model: str) -> None:
    cluster.api.scale(model, 2)
    until(lambda: len(cluster.ready(model)) == 2, UP_WITHIN_S)
    until_each_replica_serves(cluster, model)
    ends: list[tuple[int, float]] = []

    def long_stream(number: int) -> None:
        stream = cluster.client().completions.create(
            model=model,
            prompt=f"stream {number}",
            max_tokens=1900,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        last = list(stream)[-1]
        assert last.usage is not None
        ends.append((last.usage.completion_tokens, time.monotonic()))

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        streams = [pool.submit(long_stream, number) for number in range(20)]
        until(lambda: all((r.load.running or 0) > 5 for r in cluster.ready(model)), 30.0)
        cluster.api.scale(model, 1)
        asked_s = time.monotonic()
        until(lambda: len(cluster.ready(model)) == 1, 15.0)
        for stream in streams:
            stream.result(timeout=300)
    assert [tokens for tokens, _ in ends] == [1900] * 20
    assert max(end_s for _, end_s in ends) - asked_s > 10.0, "the streams must outlast the request to scale down"
    until(lambda: cluster.api.state().statuses[f"raylane-model-{model}"].running_replicas == 1, 60.0)


def engine_core(replica_id: str) -> int:
    return next(
        pid for pid in processes_with(MARK, replica_id) if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def supervisor_of(engine_pid: int) -> int:
    return int(Path(f"/proc/{engine_pid}/stat").read_text().rpartition(")")[2].split()[1])


def replica_actor_of(model: str) -> int:
    """The process id of the Serve replica of a model."""
    wanted = f"raylane-model-{model}#replica".encode()
    token = os.environ[CLUSTER_MARK]
    for pid in processes_with(CLUSTER_MARK, token):
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        if title.startswith(b"ray::ServeReplica") and wanted.replace(b"#", b":") in title:
            return pid
    raise AssertionError(f"no replica actor of {model}")


@pytest.mark.parametrize(
    ("model", "victim"),
    [
        ("two", "engine core"),
        ("two", "supervisor"),
        ("two", "replica actor"),
        ("simulated", "engine"),
        ("simulated", "supervisor"),
        ("simulated", "replica actor"),
    ],
)
def test_whatever_is_killed_nothing_is_left_and_another_replica_comes(
    cluster: Cluster, model: str, victim: str
) -> None:
    until(lambda: len(cluster.ready(model)) == 1, 60.0)
    (old,) = cluster.ready(model)
    engine_pid = old.engine_pid
    assert engine_pid is not None
    pid = {
        "engine": lambda: engine_pid,
        "engine core": lambda: engine_core(old.replica_id),
        "supervisor": lambda: supervisor_of(engine_pid),
        "replica actor": lambda: replica_actor_of(model),
    }[victim]()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not processes_with(MARK, old.replica_id), 10.0)  # under 5 s on cores of its own
    until(lambda: [report.replica_id != old.replica_id for report in cluster.ready(model)] == [True], 180.0)
    assert tokens_of_an_answer(cluster, model) == 2


def tokens_of_an_answer(cluster: Cluster, model: str) -> int:
    """Output tokens of a request for two."""
    answer = cluster.client().completions.create(model=model, prompt="x", max_tokens=2, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    return answer.usage.completion_tokens


def test_requests_go_on_while_the_directory_is_away(cluster: Cluster) -> None:
    ray.kill(directory_actor(), no_restart=False)
    for _ in range(30):
        assert [tokens_of_an_answer(cluster, model) for model in ("one", "simulated")] == [2, 2]
        time.sleep(0.1)
    until(lambda: len(cluster.ready("one")) == len(cluster.ready("simulated")) == 1, 20.0)


def test_delete_takes_one_model_or_all_of_ours(cluster: Cluster) -> None:
    assert delete(cluster.api, ["two"]) == ["two"]
    assert sorted(r.model for r in cluster.ready()) == ["one", "simulated"]
    with pytest.raises(openai.NotFoundError):
        cluster.client().completions.create(model="two", prompt="x")
    delete(cluster.api, [])
    assert cluster.ready() == []
    assert list(cluster.api.state().statuses) == ["other"]
