"""The engines' door: the key on every path, and no path that raylane does not use, however it is spelt."""

import json
import subprocess
import sys
from collections.abc import MutableMapping
from typing import Any

import pytest

from raylane.deployments.engines.guard import ALLOWED, FORWARDED, KeyGuard
from raylane.deployments.gateway.api import POSTS

KEY = "the-key"
RIGHT = ((b"authorization", b"Bearer the-key"),)
WRONG = {
    "no key": (),
    "another key": ((b"authorization", b"Bearer other"),),
    "the beginning of it": ((b"authorization", b"Bearer the-ke"),),
    "more than it": ((b"authorization", b"Bearer the-key "),),
    "no scheme": ((b"authorization", b"the-key"),),
    "another scheme": ((b"authorization", b"Basic the-key"),),
    "nothing": ((b"authorization", b"Bearer "),),
    "no text": ((b"authorization", b"Bearer \xff\xfe"),),
    "in another header": ((b"x-api-key", b"the-key"),),
    "two, one of them right": ((b"authorization", b"Bearer the-key"), (b"authorization", b"Bearer other")),
}
TRICKS = (
    *("/invocations", "//invocations", "/v1/../invocations", "/v1/models/../../invocations", "/./health", "/health/"),
    *("/v1/models/", "//v1/models", "/v1//models", "/V1/models", "/HEALTH", "/metricsx", "/metrics/x", "/health\x00"),
    *(
        "/v1/models?",
        "/v1/models;x",
        "v1/models",
        "",
        "/",
        "*",
        "/v1%2fmodels",
        "/%2e%2e/metrics",
        "/health ",
        "/ health",
    ),
    *("/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/tokenize", "/docs", "/openapi.json", "/v1/responses"),
)


class Inner:
    """The application behind the guard: notes what reaches it."""

    def __init__(self) -> None:
        self.reached: list[MutableMapping[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope)


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
def guard(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> KeyGuard:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    return KeyGuard(inner)


async def ask(guard: KeyGuard, scope: dict[str, Any]) -> list[MutableMapping[str, Any]]:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing of a refused request is read")

    await guard(scope, receive, send)
    return sent


def http(method: str, path: str, headers: Any = RIGHT, **more: Any) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": headers, **more}


async def test_what_raylane_uses_passes_with_the_key(guard: KeyGuard, inner: Inner) -> None:
    for method, path in sorted(ALLOWED):
        assert await ask(guard, http(method, path)) == []
    assert [(scope["method"], scope["path"]) for scope in inner.reached] == sorted(ALLOWED)


@pytest.mark.parametrize("case", WRONG)
async def test_nothing_passes_with(guard: KeyGuard, inner: Inner, case: str) -> None:
    for method, path in [*sorted(ALLOWED), ("POST", "/invocations"), ("OPTIONS", "/v1/models"), ("GET", "/ping")]:
        head, body = await ask(guard, http(method, path, WRONG[case]))
        assert (head["status"], json.loads(body["body"])["error"]["message"]) == (401, "Unauthorized")
    assert inner.reached == []


@pytest.mark.parametrize("path", TRICKS)
async def test_another_spelling_is_another_path(guard: KeyGuard, inner: Inner, path: str) -> None:
    for method in ("GET", "POST"):
        assert (await ask(guard, http(method, path)))[0]["status"] == 404
    assert inner.reached == []


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "get", ""])
async def test_methods_that_raylane_does_not_use(guard: KeyGuard, inner: Inner, method: str) -> None:
    for path in {path for _, path in ALLOWED}:
        assert (await ask(guard, http(method, path)))[0]["status"] == 404
    assert inner.reached == []


@pytest.mark.parametrize(
    ("root_path", "path"), [("/v1", "/v1/models"), ("/x", "/x/invocations"), ("/v1/models", "/v1/models")]
)
async def test_a_path_below_a_root_path_is_not_the_one_it_seems(
    guard: KeyGuard, inner: Inner, root_path: str, path: str
) -> None:
    assert (await ask(guard, http("GET", path, root_path=root_path)))[0]["status"] == 404
    assert inner.reached == []


@pytest.mark.parametrize("headers", [RIGHT, ()], ids=["with the key", "without it"])
@pytest.mark.parametrize("path", ["/v1/realtime", "/health"])
async def test_websockets_are_closed_before_the_handshake(
    guard: KeyGuard, inner: Inner, path: str, headers: Any
) -> None:
    (closed,) = await ask(guard, {"type": "websocket", "path": path, "headers": headers})
    assert closed["type"] == "websocket.close"
    assert inner.reached == []


async def test_a_kind_of_connection_that_is_not_known_gets_nothing(guard: KeyGuard, inner: Inner) -> None:
    assert await ask(guard, {"type": "webtransport", "path": "/health", "headers": RIGHT}) == []
    assert inner.reached == []


async def test_the_servers_own_start_and_end_pass(guard: KeyGuard, inner: Inner) -> None:
    await ask(guard, {"type": "lifespan"})
    assert inner.reached == [{"type": "lifespan"}]


@pytest.mark.parametrize("headers", [(), ((b"authorization", b"Bearer "),), RIGHT])
async def test_without_a_key_of_its_own_an_engine_answers_nobody(
    inner: Inner, monkeypatch: pytest.MonkeyPatch, headers: Any
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "")
    assert (await ask(KeyGuard(inner), http("GET", "/health", headers)))[0]["status"] == 401
    assert inner.reached == []


def test_everything_that_the_gateway_passes_on_is_let_in() -> None:
    assert set(POSTS) == set(FORWARDED)


def test_it_brings_nothing_into_the_engines_process() -> None:
    code = "import sys, raylane.deployments.engines.guard; print(set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    foreign = {"aiohttp", "ray", "pydantic", "prometheus_client", "raylane.deployments.config.deployment", "asyncio"}
    assert [name for name in foreign if f"'{name}'" in done.stdout] == []
