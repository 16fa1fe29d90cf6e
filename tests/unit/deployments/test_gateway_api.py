"""What a gateway worker answers by itself: models, browsers' preflights, and every error in OpenAI's shape."""

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
from aiohttp import web
from fake_engine import serving

from raylane.cluster.errors import UsageError
from raylane.deployments.config.deployment import GatewayConfig
from raylane.deployments.directory.reports import Endpoint, Table
from raylane.deployments.gateway.api import build_app, connection_factory
from raylane.deployments.gateway.body import MAX_BODY_BYTES
from raylane.deployments.gateway.metrics import GatewayMetrics
from raylane.deployments.gateway.relay import Relay
from raylane.deployments.gateway.worker import Accepting

KEY = "engine-key"
HELLO = b'{"model": "tiny", "prompt": "hello"}'
PAGE = "https://chat.example.org"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """In OpenAI's shape, and nothing else."""
        assert self.headers["content-type"].startswith("application/json")
        content = json.loads(self.body)
        assert set(content) == {"error"}
        assert set(content["error"]) == {"message", "type", "param", "code"}
        assert content["error"]["message"]
        assert "\n" not in content["error"]["message"]
        found: dict[str, Any] = content["error"]
        return found


@asynccontextmanager
async def worker(cors_origins: Sequence[str] = (), url: str = "http://127.0.0.1:1") -> AsyncIterator[int]:
    """A worker's server as it is, in this process; its port."""
    relay = Relay(GatewayMetrics())
    relay.apply(Table("e", 1, True, ("tiny", "big-8b.q4"), (Endpoint("r", "tiny", url, KEY, 0),)))
    runner = web.AppRunner(build_app(relay, GatewayMetrics(), cors_origins), handler_cancellation=True)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    accepting = Accepting(listening, connection_factory(cast(web.Server, runner.server)))
    try:
        yield port
    finally:
        await accepting.close()
        await runner.cleanup()


async def sent(port: int, data: bytes) -> bytes:
    """All that comes back on a connection that the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


async def asked(port: int, line: str, headers: str = "", body: bytes = b"") -> Reply:
    """`line` is method and path; `headers` are whole lines without their ends, separated by |."""
    lines = [f"{line} HTTP/1.1", "host: gateway", "connection: close", *filter(None, headers.split("|"))]
    if "chunked" not in headers and "content-length" not in headers:
        lines.append(f"content-length: {len(body)}")
    return parsed(await sent(port, "\r\n".join([*lines, "", ""]).encode() + body))


def parsed(data: bytes) -> Reply:
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Reply(int(status.split()[1]), headers, body)


async def test_one_model_is_described_as_in_the_list() -> None:
    async with worker() as port:
        listed = json.loads((await asked(port, "GET /v1/models")).body)["data"]
        for name, path in (("tiny", "tiny"), ("big-8b.q4", "big%2d8b%2Eq4")):
            reply = await asked(port, f"GET /v1/models/{path}")
            assert reply.status == 200
            assert json.loads(reply.body) == next(model for model in listed if model["id"] == name)
        assert json.loads((await asked(port, "GET /v1/models/tiny")).body)["object"] == "model"


@pytest.mark.parametrize(
    ("path", "name"),
    [("nope", "nope"), ("org/nope", "org/nope"), ("org%2Fnope", "org/nope"), ("tiny/", "tiny/"), ("caf%C3%A9", "café")],
)
async def test_a_model_that_is_not_deployed_is_named(path: str, name: str) -> None:
    async with worker() as port:
        reply = await asked(port, f"GET /v1/models/{path}")
        assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")
        assert repr(name) in reply.error["message"]


BROKEN_GZIP = gzip.compress(HELLO)[:-12]


@pytest.mark.parametrize(
    ("line", "headers", "body", "status"),
    [
        pytest.param("POST /v1/completions/", "", HELLO, 404, id="a slash too many"),
        pytest.param("POST /v1/responses", "", HELLO, 404, id="an endpoint that there is not"),
        pytest.param("POST /v1/rerank", "", HELLO, 404, id="another one"),
        pytest.param("GET /", "", b"", 404, id="the root"),
        pytest.param("GET /v1/completions", "", b"", 405, id="GET for POST"),
        pytest.param("DELETE /v1/models/tiny", "", b"", 405, id="DELETE for GET"),
        pytest.param("OPTIONS /v1/chat/completions", "", b"", 405, id="OPTIONS"),
        pytest.param("PROPFIND /health", "", b"", 405, id="a method of others"),
        pytest.param("BREW /health", "", b"", 400, id="a method that there is not"),
        pytest.param("POST /v1/completions", "", b"{", 400, id="not JSON"),
        pytest.param("POST /v1/completions", "", b"", 400, id="nothing"),
        pytest.param("POST /v1/completions", "", b"[1]", 400, id="no object"),
        pytest.param("POST /v1/completions", "", b'{"model": ["tiny"]}', 400, id="a model that is no string"),
        pytest.param("POST /v1/completions", "content-encoding: gzip", b"plain", 400, id="not gzip"),
        pytest.param("POST /v1/completions", "content-encoding: gzip", BROKEN_GZIP, 400, id="half a gzip"),
        pytest.param("POST /v1/completions", "content-encoding: deflate", b"plain", 400, id="not deflate"),
        pytest.param(
            "POST /v1/completions", "transfer-encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n", 400, id="no chunk"
        ),
        pytest.param("POST /v1/completions", "content-length: many", b"", 400, id="no length"),
        pytest.param("POST /v1/completions", f"content-length: {MAX_BODY_BYTES + 1}", b"{", 413, id="too large"),
        pytest.param("POST /v1/completions", f"x-long: {'a' * 100_000}", HELLO, 400, id="a header too long"),
        pytest.param("POST /v1/completions", "expect: a miracle", HELLO, 417, id="an unknown expectation"),
        pytest.param("POST /v1/completions", "no header", HELLO, 400, id="a line that is no header"),
        pytest.param("nonsense", "", b"", 400, id="no HTTP"),
    ],
)
async def test_every_error_has_openais_shape(line: str, headers: str, body: bytes, status: int) -> None:
    async with worker() as port:
        reply = await asked(port, line, headers, body)
        assert reply.status == status
        assert reply.error["type"] == "invalid_request_error"
        assert ("allow" in reply.headers) == (status == 405)
        assert (await asked(port, "GET /health")).status == 200


async def test_a_wrong_method_is_told_which_are_right() -> None:
    async with worker() as port:
        assert (await asked(port, "GET /v1/completions")).headers["allow"] == "POST"
        assert (await asked(port, "POST /v1/models")).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/tiny", "/metrics"])
async def test_head_is_get_without_the_body(path: str) -> None:
    async with worker() as port:
        head, whole = await asked(port, f"HEAD {path}"), await asked(port, f"GET {path}")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]


async def test_a_client_that_waits_for_its_body_to_be_asked_for_is_answered() -> None:
    async with serving(KEY) as engine, worker(url=engine.url) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: {len(HELLO)}\r\n"
        writer.write(f"{head}expect: 100-continue\r\n\r\n".encode())
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(HELLO)
        assert parsed(await asyncio.wait_for(reader.read(), 20)).status == 200
        writer.close()


async def test_a_compressed_body_reaches_the_engine_as_it_was() -> None:
    async with serving(KEY) as engine, worker(url=engine.url) as port:
        reply = await asked(port, "POST /v1/completions", "content-encoding: gzip", gzip.compress(HELLO))
        assert (reply.status, engine.seen[0].body) == (200, HELLO)
        assert "content-encoding" not in engine.seen[0].headers


async def test_a_fault_of_the_gateway_itself_is_a_500_in_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr("raylane.deployments.gateway.relay.wanted", broken)
    async with worker() as port:
        reply = await asked(port, "POST /v1/completions", "", HELLO)
        assert (reply.status, reply.error["type"]) == (500, "internal_error")
        assert b"secret" not in reply.body


PREFLIGHT = "access-control-request-method: POST|access-control-request-headers: authorization, content-type"


@pytest.mark.parametrize(
    ("allowed", "origin", "answer"),
    [
        pytest.param([PAGE], PAGE, PAGE, id="a page that is named"),
        pytest.param(["*"], PAGE, "*", id="all pages"),
        pytest.param([PAGE], "https://evil.example.org", None, id="another page"),
        pytest.param([PAGE], None, None, id="no page"),
    ],
)
async def test_pages_that_are_named_may_ask_and_read(
    allowed: list[str], origin: str | None, answer: str | None
) -> None:
    async with serving(KEY) as engine, worker(allowed, engine.url) as port:
        header = f"origin: {origin}" if origin else ""
        before = await asked(port, "OPTIONS /v1/completions", f"{header}|{PREFLIGHT}")
        assert before.status == 204
        assert before.headers["access-control-allow-headers"] == "authorization, content-type"
        assert "POST" in before.headers["access-control-allow-methods"]
        streamed = HELLO[:-1] + b', "stream": true}'
        replies = [
            before,
            await asked(port, "POST /v1/completions", header, streamed),
            await asked(port, "GET /v1/nope", header),
        ]
        assert [reply.headers.get("access-control-allow-origin") for reply in replies] == [answer] * 3
        assert [reply.headers.get("vary") for reply in replies] == [None if answer == "*" else "Origin"] * 3


async def test_without_named_pages_none_may_ask() -> None:
    async with worker() as port:
        reply = await asked(port, "OPTIONS /v1/completions", f"origin: {PAGE}|{PREFLIGHT}")
        assert (reply.status, reply.error["code"]) == (405, "method_not_supported")
        assert not any(name.startswith("access-control") for name in reply.headers)


@pytest.mark.parametrize(
    "wrong", ["chat.example.org", "https://chat.example.org/", "https://Chat.example.org", "", "null"]
)
def test_an_origin_that_no_browser_sends_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"gateway.*cors_origins.*origin"):
        GatewayConfig.from_data({"cors_origins": [wrong]}, "gateway")
