"""The simulator as clients see it: a process with vLLM's endpoints, errors, metrics and manners."""

import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from raylane.deployments.engines.guard import ALLOWED
from raylane.deployments.simulator.loads import simulate
from raylane.deployments.simulator.options import read_options
from raylane.deployments.simulator.request import Request
from raylane.deployments.simulator.server import Service, main

pytestmark = pytest.mark.process

KEY = "secret"
HEADERS = {"Authorization": f"Bearer {KEY}"}
SMALL = ("--max-model-len", "2048", "--max-num-seqs", "32")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(*flags: str, wait: bool = True) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A simulator process; its base URL and itself. Ended at the end whatever happens."""
    port = free_port()
    command = [sys.executable, "-m", "raylane.deployments.simulator.server", "--model-name", "m", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *SMALL, *flags], env={**os.environ, "VLLM_API_KEY": KEY}, stderr=subprocess.DEVNULL
    )
    try:
        if wait:
            wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], limit_s: float = 30) -> None:
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("the simulator did not open its port")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running("--speedup", "20") as (base, _):
        yield base


async def call(url: str, path: str, body: dict[str, Any] | None = None, key: str | None = KEY) -> tuple[int, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    method = "GET" if body is None else "POST"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, url + path, json=body) as reply,
    ):
        assert reply.headers["x-raylane-simulated"] == "true"
        text = await reply.text()
        return reply.status, json.loads(text) if reply.content_type == "application/json" else text


async def stream(url: str, path: str, body: dict[str, Any]) -> list[Any]:
    """All events of a stream, parsed, the end mark as a string."""
    async with (
        aiohttp.ClientSession(headers=HEADERS) as session,
        session.post(url + path, json={**body, "stream": True}) as reply,
    ):
        assert reply.status == 200
        events = [line.removeprefix("data: ") for line in (await reply.text()).split("\n\n") if line]
        return [event if event == "[DONE]" else json.loads(event) for event in events]


async def test_a_completion_counts_token_ids_exactly(url: str) -> None:
    status, answer = await call(url, "/v1/completions", {"model": "m", "prompt": list(range(37)), "max_tokens": 5})
    assert status == 200
    assert answer["usage"] == {"prompt_tokens": 37, "completion_tokens": 5, "total_tokens": 42}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][0]["text"].split()) == 5
    assert answer["system_fingerprint"] == "raylane-simulated"


async def test_a_chat_answer_without_a_limit_stops_by_itself(url: str) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}
    status, answer = await call(url, "/v1/chat/completions", body)
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 256
    assert answer["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v1/completions", {"prompt": "some text"}, id="completion"),
        pytest.param("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, id="chat"),
    ],
)
@pytest.mark.parametrize("usage", [True, False])
async def test_a_stream_has_one_event_per_token(url: str, path: str, body: dict[str, Any], usage: bool) -> None:
    asked = {**body, "max_tokens": 7, "ignore_eos": True, "stream_options": {"include_usage": usage}}
    *events, end = await stream(url, path, asked)
    assert end == "[DONE]"
    if usage:
        assert events.pop()["usage"]["completion_tokens"] == 7
    assert len(events) == 7
    texts = [event["choices"][0].get("text") or event["choices"][0]["delta"]["content"] for event in events]
    assert all(texts)
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * 6 + ["length"]


async def test_a_chat_stream_names_the_role_once(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    *events, _ = await stream(url, "/v1/chat/completions", body)
    assert [event["choices"][0]["delta"].get("role") for event in events] == ["assistant", None, None]


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        pytest.param({"model": "other", "prompt": "x"}, 404, "NotFoundError", "other", id="unknown model"),
        pytest.param({"prompt": [1] * 2000, "max_tokens": 100}, 400, "BadRequestError", "2048", id="too long"),
        pytest.param({"prompt": [1] * 3000}, 400, "BadRequestError", "3000", id="prompt alone too long"),
        pytest.param({"prompt": ""}, 400, "BadRequestError", "prompt", id="empty prompt"),
        pytest.param({"prompt": ["a", "b"]}, 400, "BadRequestError", "prompt", id="several prompts"),
        pytest.param({"prompt": "x", "max_tokens": 0}, 400, "BadRequestError", "max_tokens", id="no tokens wanted"),
        pytest.param({"prompt": "x", "n": 2}, 400, "BadRequestError", "n:", id="several answers"),
    ],
)
async def test_errors_have_openais_shape(url: str, body: dict[str, Any], status: int, kind: str, words: str) -> None:
    found, answer = await call(url, "/v1/completions", body)
    assert found == status
    assert answer["error"]["code"] == status
    assert answer["error"]["type"] == kind
    assert words in answer["error"]["message"]


async def test_a_body_that_is_no_json_is_a_bad_request(url: str) -> None:
    async with (
        aiohttp.ClientSession(headers=HEADERS) as session,
        session.post(url + "/v1/completions", data=b"{") as reply,
    ):
        assert reply.status == 400
        assert "JSON" in (await reply.json())["error"]["message"]


def its_routes() -> list[tuple[str, str]]:
    """Method and path of everything that the server has."""
    app = Service(read_options([*SMALL, "--model-name", "m", "--port", "1"]), b"").app()
    return sorted({(route.method, route.resource.canonical) for route in app.router.routes() if route.resource})


@pytest.mark.parametrize("sent", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer \udcff"}])
async def test_every_route_asks_for_the_key(url: str, sent: dict[str, str]) -> None:
    routes = [*its_routes(), ("POST", "/invocations"), ("OPTIONS", "/v1/models"), ("GET", "//metrics")]
    assert {"/v1/completions", "/health", "/metrics"} <= {path for _, path in routes}
    async with aiohttp.ClientSession(headers=sent) as session:
        for method, path in routes:
            async with session.request(method, URL(url + path, encoded=True), json={}) as reply:
                assert reply.status == 401, (method, path)


async def test_it_has_no_route_that_raylane_does_not_use(url: str) -> None:
    assert {route for route in its_routes() if route[0] != "HEAD"} <= ALLOWED
    async with aiohttp.ClientSession(headers=HEADERS) as session:
        for method, path in (("HEAD", "/health"), ("GET", "//health"), ("GET", "/health/"), ("POST", "/invocations")):
            async with session.request(method, URL(url + path, encoded=True)) as reply:
                assert reply.status == 404, (method, path)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "elsewhere"])
def test_without_a_key_it_listens_to_its_own_host_alone(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert main([*SMALL, "--model-name", "m", "--port", "1", "--host", host]) == 2
    assert f"--host {host}: without VLLM_API_KEY" in capsys.readouterr().err


async def test_models_lists_the_served_name(url: str) -> None:
    _, answer = await call(url, "/v1/models")
    assert [(card["id"], card["max_model_len"]) for card in answer["data"]] == [("m", 2048)]


async def metric(url: str, name: str) -> float:
    _, page = await call(url, "/metrics")
    return next(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


async def test_metrics_count_tokens_under_vllms_names(url: str) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total")
    before = [await metric(url, name) for name in names]
    await call(url, "/v1/completions", {"prompt": [5] * 100, "max_tokens": 20})
    after = [await metric(url, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [100, 20, 1]
    assert await metric(url, "raylane:simulated") == 1


async def test_a_shared_prompt_is_found_in_the_cache(url: str) -> None:
    prompt = list(range(7000, 7160))
    await call(url, "/v1/completions", {"prompt": prompt, "max_tokens": 1})
    before = await metric(url, "vllm:prefix_cache_hits_total")
    await call(url, "/v1/completions", {"prompt": [*prompt, 1, 2, 3], "max_tokens": 1})
    assert await metric(url, "vllm:prefix_cache_hits_total") - before == 160


async def test_a_client_that_leaves_frees_its_place() -> None:
    with running() as (base, _):
        session = aiohttp.ClientSession(headers=HEADERS)
        body = {"prompt": "x", "max_tokens": 1500, "stream": True}
        reply = await session.post(base + "/v1/completions", json=body)
        await reply.content.readline()
        assert await metric(base, "vllm:num_requests_running") == 1
        reply.close()
        await session.close()
        for _ in range(100):
            if await metric(base, "vllm:num_requests_running") == 0:
                break
            await asyncio.sleep(0.02)
        assert await metric(base, "vllm:num_requests_running") == 0
        assert await metric(base, 'vllm:request_success_total{engine="0",finished_reason="abort"') == 1


def catches_term(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM: Python is up and the program has begun."""
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


async def test_sigterm_ends_it_also_while_loading() -> None:
    with running() as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
    with running("--cold-start-s", "60", wait=False) as (_, process):
        for _ in range(200):
            if catches_term(process.pid):
                break
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0


def test_an_injected_exit_has_status_one() -> None:
    command = [sys.executable, "-m", "raylane.deployments.simulator.server", "--model-name", "m"]
    flags = ["--port", str(free_port()), "--fail-after-s", "0.2"]
    found = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert "injected failure after 0.2 s" in found.stderr


async def test_an_unhealthy_engine_breaks_streams_and_says_so() -> None:
    with running("--fail-after-s", "4", "--fail-mode", "unhealthy") as (base, _):
        with pytest.raises(aiohttp.ClientError):
            await stream(base, "/v1/completions", {"prompt": "x", "max_tokens": 1500})
        assert (await call(base, "/health"))[0] == 503
        assert (await call(base, "/v1/completions", {"prompt": "x"}))[0] == 500


async def test_a_hanging_engine_looks_healthy_and_never_answers() -> None:
    with running("--fail-after-s", "0.1", "--fail-mode", "hang") as (base, _):
        await asyncio.sleep(1.0)
        assert (await call(base, "/health"))[0] == 200
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(base, "/v1/completions", {"prompt": "x", "max_tokens": 1}), 1.0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(
            ("--model", "builtin:llama-3-70b-shape", "--tensor-parallel-size", "2"), "Nearest that fits", id="no room"
        ),
        pytest.param(("--gpu", "L41"), "catalogue", id="unknown card"),
        pytest.param(("--speedup", "0"), "argument --speedup: ", id="time standing still"),
    ],
)
def test_what_cannot_be_served_ends_with_status_two(flags: tuple[str, ...], words: str) -> None:
    command = [sys.executable, "-m", "raylane.deployments.simulator.server", "--model-name", "m", *flags]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert found.returncode == 2
    assert words in found.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--port", "99999"),
        ("--port", "0"),
        ("--tensor-parallel-size", "0"),
        ("--pipeline-parallel-size", "-1"),
        ("--max-model-len", "0"),
        ("--max-num-seqs", "0"),
        ("--max-num-batched-tokens", "0"),
        ("--gpu-memory-utilization", "1.5"),
        ("--bandwidth-share", "0"),
        ("--bandwidth-share", "7"),
        ("--compute-share", "nan"),
        ("--step-overhead-ms", "-1"),
        ("--first-token-extra-ms", "inf"),
        ("--link-gb-per-s", "-3"),
        ("--link-latency-us", "-1"),
        ("--batching-window-ms", "-1"),
        ("--slowdown", "0"),
        ("--speedup", "fast"),
        ("--cold-start-s", "-1"),
        ("--fail-after-s", "-1"),
        ("--default-output-tokens", "0"),
    ],
)
def test_a_number_that_means_nothing_is_refused_by_its_name(
    capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options(["--model-name", "m", flag, value])
    assert ended.value.code == 2
    assert f"argument {flag}: " in (said := capsys.readouterr().err)
    assert f"(got '{value}')" in said


SIZES = [(400 + 61 * i % 1400, 16 + 11 * i % 40) for i in range(24)]
ARRIVALS_S = [0.11 * i for i in range(24)]


async def one_stream(session: aiohttp.ClientSession, url: str, size: tuple[int, int]) -> tuple[float, float]:
    """(time to first token, time to the end) of one streamed request, in seconds."""
    sent_s = time.monotonic()
    body = {"prompt": [3] * size[0], "max_tokens": size[1], "stream": True}
    async with session.post(url + "/v1/completions", json=body) as reply:
        await reply.content.readline()
        first_s = time.monotonic()
        await reply.read()
    return first_s - sent_s, time.monotonic() - sent_s


async def medians_over_http(url: str) -> tuple[float, float]:
    async with aiohttp.ClientSession(headers=HEADERS) as session:
        begin_s = time.monotonic()

        async def one(at_s: float, size: tuple[int, int]) -> tuple[float, float]:
            await asyncio.sleep(begin_s + at_s - time.monotonic())
            return await one_stream(session, url, size)

        found = await asyncio.gather(*(one(*item) for item in zip(ARRIVALS_S, SIZES, strict=True)))
    return statistics.median(ttft for ttft, _ in found), statistics.median(latency for _, latency in found)


async def test_http_and_virtual_time_agree_on_the_same_arrivals() -> None:
    """Three at a time: most requests wait in line for seconds, beside which what the client adds is small."""
    flags = ("--no-enable-prefix-caching", "--max-num-seqs", "3")
    engine = read_options(["--model-name", "m", *SMALL, *flags]).engine
    found = simulate((Request(at_s, *size) for at_s, size in zip(ARRIVALS_S, SIZES, strict=True)), engine)
    expected = (found.ttft_p50_s, statistics.median(outcome.latency_s for outcome in found.outcomes))
    with running(*flags) as (base, _):
        await call(base, "/v1/completions", {"prompt": [1] * 8, "max_tokens": 2})
        for attempt in range(4):  # a machine busy with other work only ever adds time
            measured = await medians_over_http(base)
            if measured == pytest.approx(expected, rel=0.05) or attempt == 3:
                break
    assert measured == pytest.approx(expected, rel=0.05)
