"""One gateway worker's app between real sockets: what clients and engines see of each other, and what they must not.

Tests of what a well-behaved engine does run against the fake engine and against raylane's simulator server process
(`EITHER`, `BOTH_KINDS`). The fake one alone serves those that need an engine to do what a real one does not do on
request: answer with a given status, body or header, die at a given byte, be silent or late, close or hold back its
connection, or send megabytes; and those in which no engine is asked at all.
"""

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fake_engine import FakeEngine, Manner, pattern, serving
from simulated_engine import simulators, tapped, turn

from raylane.deployments.directory.reports import Endpoint, ModelTraffic, Table
from raylane.deployments.gateway.api import build_app
from raylane.deployments.gateway.holding import HoldLimits
from raylane.deployments.gateway.metrics import GatewayMetrics
from raylane.deployments.gateway.relay import Relay
from raylane.deployments.gateway.reply import HIGH_WATER_BYTES

KEY = "engine-key-that-no-client-may-see"
CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
EITHER = pytest.mark.parametrize("one", ["stub", "simulator"], indirect=True)
BOTH_KINDS = pytest.mark.parametrize("two", ["stub", "simulator"], indirect=True)


@dataclass
class Front:
    """A running gateway app and the engines behind it."""

    relay: Relay
    port: int
    engines: list[FakeEngine]
    transports: list[asyncio.Transport] = field(default_factory=list)  # of the requests so far

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def apply(self, *models: str) -> None:
        endpoints = tuple(Endpoint(f"replica-{i}", "tiny", e.url, KEY, 0) for i, e in enumerate(self.engines))
        self.relay.apply(Table("e", 1, True, ("tiny", *models), endpoints))

    async def post(self, path: str = CHAT, headers: dict[str, str] | None = None, **body: Any) -> "Reply":
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url + path, json={**HELLO, **body}, headers=headers) as answer,
        ):
            return Reply(answer.status, lowered(answer), await answer.read())

    async def get(self, path: str) -> "Reply":
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            return Reply(answer.status, lowered(answer), await answer.read())

    async def raw(self, body: dict[str, Any], version: str = "1.1", extra: str = "") -> "Wire":
        """A request written by hand, on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = json.dumps({**HELLO, **body}).encode()
        head = f"POST {CHAT} HTTP/{version}\r\nhost: gateway\r\ncontent-length: {len(content)}\r\n{extra}\r\n"
        writer.write(head.encode("utf-8") + content)
        await writer.drain()
        return Wire(reader, writer)


def lowered(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


@dataclass(frozen=True)
class Wire:
    """One raw client connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> str:
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)).decode().lower()

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), 20)

    def vanish(self) -> None:
        self.writer.transport.abort()


def unchunked(body: bytes) -> bytes:
    """The content of a chunked body; it must be complete and nothing may follow."""
    content = bytearray()
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        content += body[:length]
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]
        if not length:
            assert body == b""
            return bytes(content)


@asynccontextmanager
async def front(*engines: FakeEngine) -> AsyncIterator[Front]:
    metrics = GatewayMetrics()
    relay = Relay(metrics, HoldLimits(timeout_s=0.5))
    app = build_app(relay, metrics)
    made = Front(relay, 0, list(engines))

    @web.middleware
    async def remember(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        if request.transport is not None:
            made.transports.append(request.transport)
        answer: web.StreamResponse = await handler(request)
        return answer

    app.middlewares.append(remember)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    server = socket.create_server(("127.0.0.1", 0))
    made.port = server.getsockname()[1]
    await web.SockSite(runner, server).start()
    made.apply()
    try:
        yield made
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
def simulator_ports() -> Iterator[tuple[int, ...]]:
    """Two simulator processes, started for the first test that asks for them."""
    with simulators(2, KEY) as ports:
        yield ports


@asynccontextmanager
async def engines(count: int, request: pytest.FixtureRequest) -> AsyncIterator[list[FakeEngine]]:
    """Engines of the kind that the test asks for. Simulators look like fake ones as far as these tests use them."""
    simulated = getattr(request, "param", "stub") == "simulator"
    ports = request.getfixturevalue("simulator_ports")[:count] if simulated else ()
    async with AsyncExitStack() as stack:
        made: list[Any] = [await stack.enter_async_context(tapped(port)) for port in ports]
        yield made or [await stack.enter_async_context(serving(KEY)) for _ in range(count)]


@pytest.fixture
async def one(request: pytest.FixtureRequest) -> AsyncIterator[Front]:
    """A gateway with one engine."""
    async with engines(1, request) as made, front(*made) as running:
        yield running


@pytest.fixture
async def two(request: pytest.FixtureRequest) -> AsyncIterator[Front]:
    """A gateway with two engines."""
    async with engines(2, request) as made, front(*made) as running:
        yield running


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s} s"
        await asyncio.sleep(0.01)


# Straight through.


@EITHER
async def test_a_stream_arrives_byte_for_byte(one: Front) -> None:
    reply = await one.post(stream=True, **turn(50))
    assert reply.status == 200
    assert [reply.body] == one.engines[0].sent
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"


@EITHER
async def test_events_arrive_when_they_are_made_and_not_together_at_the_end(one: Front) -> None:
    wire = await one.raw({"stream": True, **turn(2, each_s=60.0)})
    await wire.head()
    await asyncio.wait_for(wire.reader.readuntil(b"\n\n"), 20)
    assert one.engines[0].sent == []
    wire.vanish()


@EITHER
async def test_the_engine_gets_the_request_byte_for_byte(one: Front) -> None:
    content = b'{ "model":"tiny",  "prompt":"\xc3\xa9\\u00e9", "unknown": [1e3] }\n'
    async with aiohttp.ClientSession() as session, session.post(f"{one.url}/v1/completions", data=content) as answer:
        assert answer.status == 200
    (seen,) = one.engines[0].seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/v1/completions", content)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
async def test_every_path_is_passed_through(one: Front, path: str) -> None:
    reply = await one.post(path, fake={"body": '{"data": [0.5]}'})
    assert (reply.status, reply.body) == (200, b'{"data": [0.5]}')
    assert one.engines[0].seen[0].path == path


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "chunked"])
async def test_a_large_reply_arrives_whole_in_its_framing(one: Front, chunked: bool) -> None:
    wire = await one.raw({"fake": {"size_bytes": 3_000_001, "chunked": chunked}}, extra="connection: close\r\n")
    head, body = await wire.head(), await wire.rest()
    assert ("transfer-encoding: chunked" in head) is chunked
    assert ("content-length: 3000001" in head) is not chunked
    assert (unchunked(body) if chunked else body) == pattern(3_000_001)


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "chunked"])
async def test_a_client_of_http_1_0_gets_the_body_until_the_connection_ends(one: Front, chunked: bool) -> None:
    wire = await one.raw({"fake": {"size_bytes": 200_000, "chunked": chunked}}, version="1.0")
    head, body = await wire.head(), await wire.rest()
    assert "transfer-encoding" not in head
    assert body == pattern(200_000)


@EITHER
async def test_a_stream_to_a_client_of_http_1_0(one: Front) -> None:
    wire = await one.raw({"stream": True}, version="1.0")
    assert "transfer-encoding" not in await wire.head()
    assert [await wire.rest()] == one.engines[0].sent


async def test_an_empty_reply_is_passed_on(one: Front) -> None:
    reply = await one.post(fake={"size_bytes": 0})
    assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429, 500, 503])
async def test_an_engines_error_is_passed_on_unchanged(one: Front, status: int) -> None:
    headers = {"retry-after": "7", "x-engine": "says so", "content-type": "application/problem+json"}
    body = '{"error": {"message": "max_tokens is too large: 99", "code": 400}}'
    reply = await one.post(fake={"status": status, "body": body, "headers": headers})
    assert (reply.status, reply.body.decode()) == (status, body)
    assert {name: reply.headers[name] for name in headers} == headers


@EITHER
async def test_one_connection_serves_many_requests_of_a_client(one: Front) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for number in range(20):
            stream = bool(number % 2)
            async with session.post(one.url + CHAT, json={**HELLO, "stream": stream}) as answer:
                assert answer.status == 200
                await answer.read()
    assert len({id(transport) for transport in one.transports}) == 1
    assert one.engines[0].connections == 1


# Whose word reaches whom.


@EITHER
async def test_the_engine_gets_its_own_key_and_nothing_of_the_clients_credentials(one: Front) -> None:
    private = {
        "Authorization": "Bearer users-key",
        "Cookie": "session=1",
        "X-Api-Key": "users-key",
        "api-key": "users-key",
    }
    assert (await one.post(headers=private)).status == 200
    (seen,) = one.engines[0].seen
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert "users-key" not in str(seen)
    assert "cookie" not in seen.headers


@EITHER
async def test_what_may_pass_is_passed(one: Front) -> None:
    wanted = {
        "x-request-id": "r-1",
        "traceparent": "00-a-b-01",
        "accept": "text/event-stream",
        "content-type": "application/json",
    }
    await one.post(headers=wanted)
    (seen,) = one.engines[0].seen
    assert {name: seen.headers[name] for name in wanted} == wanted


@EITHER
async def test_a_request_id_that_is_not_latin_is_no_reason_to_fail(one: Front) -> None:
    wire = await one.raw({}, extra="x-request-id: 漢字\r\nconnection: close\r\n")
    assert (await wire.head()).startswith("http/1.1 200")


@pytest.mark.parametrize(
    ("one", "manner"),
    [
        ("simulator", {}),
        ("stub", {}),
        ("stub", {"status": 500}),
        ("stub", {"die": "before_head"}),
        ("stub", {"die": "after_events"}),
        ("stub", {"die": "in_event"}),
    ],
    indirect=["one"],
)
async def test_the_engines_key_and_address_never_reach_the_client(one: Front, manner: dict[str, Any]) -> None:
    wire = await one.raw({"stream": True, "fake": manner}, extra="connection: close\r\n")
    everything = (await wire.rest()).decode()
    assert KEY not in everything
    assert str(one.engines[0].port) not in everything


@EITHER
async def test_the_address_of_an_engine_that_is_away_never_reaches_the_client(one: Front) -> None:
    await one.engines[0].stop()
    reply = await one.post()
    assert reply.status == 502
    assert KEY.encode() not in reply.body
    assert str(one.engines[0].port).encode() not in reply.body


# Refusals.


async def test_an_unknown_model_is_a_404_that_openai_clients_understand(one: Front) -> None:
    reply = await one.post(model="gpt-17")
    assert reply.status == 404
    assert (reply.error["type"], reply.error["code"], reply.error["param"]) == (
        "invalid_request_error",
        "model_not_found",
        "model",
    )
    assert "'gpt-17'" in reply.error["message"]
    assert "tiny" in reply.error["message"]
    assert one.engines[0].seen == []


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="broken JSON"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"tiny"', id="a string"),
        pytest.param(b"{}", id="no model"),
        pytest.param(b'{"model": null}', id="model null"),
        pytest.param(b'{"model": ["tiny"]}', id="model a list"),
        pytest.param(b"[" * 100_000, id="nested without end"),
    ],
)
async def test_a_body_without_a_model_is_a_400_that_openai_clients_understand(one: Front, content: bytes) -> None:
    async with aiohttp.ClientSession() as session, session.post(one.url + CHAT, data=content) as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "model")
    assert one.engines[0].seen == []


async def test_a_model_without_replica_is_a_503(one: Front) -> None:
    one.apply("resting")
    reply = await one.post(model="resting")
    assert reply.status == 503
    assert "'resting'" in reply.error["message"]


async def test_before_the_first_table_every_model_is_unknown_and_the_worker_is_well() -> None:
    async with front() as made:
        made.relay.apply(Table("", 0, False, (), ()))
        assert (await made.post()).status == 404
        assert (await made.get("/health")).status == 200


async def test_a_body_that_is_too_large_is_refused_in_openais_shape(one: Front) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(one.url + CHAT, data=b'{"model": "tiny", "prompt": "' + b"x" * (64 << 20) + b'"}') as answer,
    ):
        assert answer.status == 413
        assert "message" in (await answer.json())["error"]
    assert one.engines[0].seen == []


# Engines that die.


@pytest.mark.parametrize(
    ("die", "stream"),
    [
        pytest.param("before_head", True, id="a stream, before its head"),
        pytest.param("after_head", True, id="a stream, after its head"),
        pytest.param("before_head", False, id="a whole reply"),
    ],
)
async def test_an_engine_that_dies_before_the_first_byte_is_replaced_by_another(
    two: Front, die: str, stream: bool
) -> None:
    two.engines[0].manner = Manner(die=die)
    replies = [await two.post(stream=stream) for _ in range(6)]
    assert [reply.status for reply in replies] == [200] * 6
    assert [reply.body for reply in replies] == two.engines[1].sent
    assert two.engines[0].seen  # it was asked, and failed


@BOTH_KINDS
async def test_an_engine_that_refuses_connections_is_replaced_by_another(two: Front) -> None:
    await two.engines[0].stop()
    assert [(await two.post()).status for _ in range(4)] == [200] * 4


async def test_a_server_error_of_one_engine_is_tried_elsewhere(two: Front) -> None:
    """A dying engine says so itself before its connection breaks."""
    two.engines[0].manner = Manner(status=500, body='{"error": "dead"}')
    replies = [await two.post() for _ in range(4)]
    assert [reply.status for reply in replies] == [200] * 4
    assert two.engines[0].seen


async def test_when_every_engine_says_server_error_the_last_answer_is_passed_on(two: Front) -> None:
    for engine in two.engines:
        engine.manner = Manner(status=503, body='{"error": "overloaded"}', headers={"retry-after": "3"})
    reply = await two.post()
    assert (reply.status, reply.body, reply.headers["retry-after"]) == (503, b'{"error": "overloaded"}', "3")
    assert [len(engine.seen) for engine in two.engines] == [1, 1]


@BOTH_KINDS
async def test_a_clients_own_mistake_is_not_tried_elsewhere(two: Front) -> None:
    assert (await two.post(max_tokens=1_000_000, fake={"status": 400, "body": "{}"})).status == 400
    assert sum(len(engine.seen) for engine in two.engines) == 1


async def test_it_is_tried_once_more_and_not_for_ever(two: Front) -> None:
    for engine in two.engines:
        engine.manner = Manner(die="before_head")
    reply = await two.post()
    assert reply.status == 502
    assert reply.error["type"] == "engine_error"
    assert [len(engine.seen) for engine in two.engines] == [1, 1]


async def test_with_one_engine_its_death_is_a_502(one: Front) -> None:
    reply = await one.post(fake={"die": "before_head"})
    assert (reply.status, reply.error["code"]) == (502, 502)
    assert len(one.engines[0].seen) == 1


@pytest.mark.parametrize("events", [1, 4])
async def test_a_stream_that_breaks_ends_with_an_error_event(two: Front, events: int) -> None:
    wire = await two.raw({"stream": True, "fake": {"die": "after_events", "events": events}})
    await wire.head()
    content = unchunked(await wire.rest())
    parts = [part for part in content.split(b"\n\n") if part]
    assert len(parts) == events + 1
    assert json.loads(parts[-1].removeprefix(b"data: "))["error"]["type"] == "engine_error"
    assert content.endswith(b"\n\n")
    assert b"[DONE]" not in content
    assert sum(len(engine.seen) for engine in two.engines) == 1  # what has begun is not begun elsewhere


async def test_the_error_event_is_one_of_its_own_when_the_engine_died_inside_an_event(one: Front) -> None:
    wire = await one.raw({"stream": True, "fake": {"die": "in_event", "events": 2}})
    await wire.head()
    events = [part for part in unchunked(await wire.rest()).split(b"\n\n") if part]
    assert json.loads(events[-1].removeprefix(b"data: "))["error"]["type"] == "engine_error"


async def test_a_broken_stream_to_a_client_of_http_1_0_ends_with_an_error_event_too(one: Front) -> None:
    wire = await one.raw({"stream": True, "fake": {"die": "after_events", "events": 2}}, version="1.0")
    await wire.head()
    assert b"engine_error" in (await wire.rest()).split(b"\n\n")[-2]


async def test_a_compressed_stream_that_breaks_is_cut_off_as_plain_text_would_not_be_read(one: Front) -> None:
    headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}
    wire = await one.raw({"stream": True, "fake": {"die": "after_events", "events": 2, "headers": headers}})
    assert "content-encoding: gzip" in await wire.head()
    assert b"engine_error" not in await wire.rest()


async def test_engines_are_not_asked_to_compress_and_compressed_replies_pass_unchanged(one: Front) -> None:
    packed = "\x1f\x8b not really gzip"
    reply = {"body": packed, "headers": {"content-encoding": "gzip", "content-type": "application/json"}}
    wire = await one.raw({"fake": reply}, extra="accept-encoding: gzip\r\nconnection: close\r\n")
    assert "content-encoding: gzip" in await wire.head()
    assert await wire.rest() == packed.encode()
    assert "accept-encoding" not in one.engines[0].seen[0].headers


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "chunked"])
async def test_a_whole_reply_that_breaks_is_cut_off_so_that_nobody_takes_it_for_complete(
    one: Front, chunked: bool
) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await one.post(fake={"die": "after_events", "events": 2, "size_bytes": 500_000, "chunked": chunked})


@EITHER
async def test_a_kept_connection_that_the_engine_has_closed_is_replaced(one: Front) -> None:
    for round_ in range(3):
        assert (await one.post()).status == 200
        one.engines[0].drop()
        if round_:
            await asyncio.sleep(0.05)  # noticed before the next request, or only by it
    assert (await one.post()).status == 200
    assert one.engines[0].connections == 4


async def test_connections_that_the_engine_wants_closed_are_not_kept(one: Front) -> None:
    for _ in range(3):
        assert (await one.post(stream=True, fake={"close": True})).status == 200
    assert one.engines[0].connections == 3


@BOTH_KINDS
async def test_an_engine_that_left_the_table_loses_its_kept_connections(two: Front) -> None:
    for _ in range(4):
        await two.post()
    assert [engine.connections_open for engine in two.engines] == [1, 1]
    gone = two.engines.pop()
    two.apply()
    await until(lambda: gone.connections_open == 0)
    assert two.engines[0].connections_open == 1


@EITHER
async def test_a_stream_goes_on_when_its_replica_leaves_the_table_to_drain(one: Front) -> None:
    wire = await one.raw({"stream": True, **turn(20, each_s=0.02)}, extra="connection: close\r\n")
    await wire.head()
    one.relay.apply(Table("e", 2, True, ("tiny",), (), ("replica-0",)))
    assert unchunked(await wire.rest()).endswith(b"[DONE]\n\n")


# Clients that leave or are slow.


@pytest.mark.parametrize("stream", [True, False], ids=["in the stream", "before the head"])
async def test_a_client_that_closes_its_half_of_the_connection_has_left(one: Front, stream: bool) -> None:
    """It cannot be told from one that has closed both halves, whose engine would work in vain."""
    manner = turn(10_000, each_s=0.02) if stream else {"fake": {"first_s": 600.0}}
    wire = await one.raw({"stream": True, **manner})
    await until(lambda: one.engines[0].running == 1)
    wire.writer.write_eof()
    await until(lambda: one.engines[0].running == 0)
    assert one.engines[0].aborted == 1
    assert not (await wire.rest()).endswith(b"0\r\n\r\n")
    assert one.relay.traffic()["tiny"].cancelled == 1


@pytest.mark.parametrize(
    ("one", "asked"),
    [
        pytest.param("stub", turn(10_000, each_s=0.02), id="in the stream"),
        pytest.param("simulator", turn(10_000, each_s=0.02), id="in the stream of a simulator"),
        pytest.param("simulator", {"stream": False, "max_tokens": 8000}, id="before the head of a simulator"),
        pytest.param("stub", {"fake": {"first_s": 600.0}}, id="before the head"),
        pytest.param("stub", turn(1, each_s=600.0), id="between two tokens"),
    ],
    indirect=["one"],
)
async def test_a_client_that_leaves_ends_the_engines_work(one: Front, asked: dict[str, Any]) -> None:
    wire = await one.raw({"stream": True, **asked})
    await until(lambda: one.engines[0].running == 1)
    await asyncio.sleep(0.1)
    wire.vanish()
    await until(lambda: one.engines[0].running == 0)
    assert one.engines[0].aborted == 1
    await until(lambda: one.relay.open_requests == 0)
    assert one.engines[0].connections_open == 0


@EITHER
async def test_a_client_that_closes_politely_ends_the_engines_work_too(one: Front) -> None:
    wire = await one.raw({"stream": True, **turn(10_000, each_s=0.02)})
    await wire.head()
    wire.writer.close()
    await until(lambda: one.engines[0].aborted == 1)


async def stands_still(count: Callable[[], int]) -> int:
    """The count once it has not changed for half a second."""
    deadline_s = time.monotonic() + 15
    while True:
        before = count()
        await asyncio.sleep(0.5)
        if count() == before:
            return before
        assert time.monotonic() < deadline_s, "it never stands still"


async def test_a_slow_client_gets_everything_and_the_gateway_holds_little(one: Front) -> None:
    size_bytes = 32 << 20
    wire = await one.raw(
        {"fake": {"size_bytes": size_bytes, "chunked": True, "piece_bytes": 65_536}}, extra="connection: close\r\n"
    )
    await wire.head()
    most, received = 0, bytearray()
    assert await stands_still(lambda: one.engines[0].tokens)  # nobody reads, so the engine is made to wait
    assert one.engines[0].running == 1
    while data := await wire.reader.read(1 << 20):
        most = max(most, one.transports[-1].get_write_buffer_size())
        received += data
    assert most < 4 * HIGH_WATER_BYTES
    assert unchunked(bytes(received)) == pattern(size_bytes)


async def test_a_slow_client_does_not_hold_up_the_others(one: Front) -> None:
    slow = await one.raw({"fake": {"size_bytes": 32 << 20, "chunked": True, "piece_bytes": 65_536}})
    await until(lambda: bool(one.transports) and one.transports[0].get_write_buffer_size() > 100_000)
    for _ in range(5):
        assert (await asyncio.wait_for(one.post(stream=True), 10.0)).status == 200
    assert one.engines[0].running == 1
    slow.vanish()


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays and reads nothing"])
async def test_the_connection_of_a_slow_client_serves_the_next_one_at_once(one: Front, leaves: bool) -> None:
    """The engine's last bytes are those that make the gateway stop reading from it, for a client that does not read."""
    engine = one.engines[0]
    engine.gate = asyncio.Event()
    content = json.dumps({"model": "tiny", "fake": {"size_bytes": 65_536, "piece_bytes": 32_768, "chunked": True}})
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", one.port))
        slow.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(content)}\r\n\r\n{content}".encode())
        await until(lambda: engine.tokens == 1)
        await fill(one.transports[0], HIGH_WATER_BYTES - 16_384)
        engine.gate.set()
        await until(lambda: engine.sent != [])
        await asyncio.sleep(0.1)
        assert one.transports[0].get_write_buffer_size() > HIGH_WATER_BYTES
        if leaves:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            slow.close()
            await asyncio.sleep(0.2)
        engine.gate = None
        reply = await asyncio.wait_for(one.post(stream=True), 10.0)
        assert reply.status == 200


async def fill(transport: asyncio.Transport, size_bytes: int) -> None:
    """Write until so much is left waiting in the transport, steadily."""
    missing = size_bytes
    while missing > 0:
        transport.write(b"x" * missing)
        await asyncio.sleep(0.05)
        missing = size_bytes - transport.get_write_buffer_size()


# Spread.


@BOTH_KINDS
async def test_requests_that_stay_open_spread_over_the_replicas(two: Front) -> None:
    waiting = [asyncio.create_task(two.post(stream=True, **turn(10_000, each_s=0.02))) for _ in range(10)]
    await until(lambda: sum(engine.running for engine in two.engines) == 10)
    assert [engine.running for engine in two.engines] == [5, 5]
    assert two.relay.open_requests == 10
    for stream in waiting:
        stream.cancel()
    await until(lambda: two.relay.open_requests == 0)
    assert (await two.post()).status == 200
    await until(lambda: two.relay.open_requests == 0)


@BOTH_KINDS
async def test_a_busy_replica_gets_less(two: Front) -> None:
    """Three long streams are two on one replica and one on the other, which gets what comes next."""
    long = [asyncio.create_task(two.post(stream=True, **turn(10_000, each_s=0.02))) for _ in range(3)]
    await until(lambda: sum(engine.running for engine in two.engines) == 3)
    busy = [engine.running for engine in two.engines].index(2)
    for _ in range(5):
        assert (await two.post()).status == 200
    assert [len(engine.seen) for engine in two.engines] == ([2, 6] if busy == 0 else [6, 2])
    for stream in long:
        stream.cancel()
    await until(lambda: sum(engine.running for engine in two.engines) == 0)


# Pages and counts.


async def test_the_list_of_models(one: Front) -> None:
    one.apply("resting")
    reply = await one.get("/v1/models")
    listed = json.loads(reply.body)
    assert listed["object"] == "list"
    assert [(model["id"], model["object"], model["owned_by"]) for model in listed["data"]] == [
        ("tiny", "model", "raylane"),
        ("resting", "model", "raylane"),
    ]
    assert all(isinstance(model["created"], int) for model in listed["data"])


async def test_health_names_the_models(one: Front) -> None:
    reply = await one.get("/health")
    assert reply.status == 200
    assert json.loads(reply.body)["models"] == ["tiny"]


def samples(page: bytes) -> dict[str, float]:
    pairs = (line.rsplit(" ", 1) for line in page.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def test_metrics_count_every_outcome(two: Front) -> None:
    await two.post(stream=True)
    await two.post()
    await two.post(fake={"status": 400, "body": "{}"})
    await two.post(model="unknown-to-us")
    await two.post(stream=True, fake={"die": "after_events"})
    two.engines[0].manner = Manner(die="before_head")
    for _ in range(2):  # at least one of the two meets the dead one first
        await two.post()
    wire = await two.raw({"stream": True, "fake": {"first_s": 600.0, "die": None}})
    await until(lambda: sum(engine.running for engine in two.engines) == 1)
    wire.vanish()
    await until(lambda: two.relay.open_requests == 0)
    found = samples((await two.get("/metrics")).body)
    requests = {name: value for name, value in found.items() if name.startswith("raylane_gateway_requests_total")}
    label = 'raylane_gateway_requests_total{{model="{}",outcome="{}"}}'.format
    assert requests == {
        label("tiny", "200"): 4.0,
        label("tiny", "400"): 1.0,
        label("", "404"): 1.0,
        label("tiny", "cut"): 1.0,
        label("tiny", "cancelled"): 1.0,
    }
    assert found['raylane_gateway_retries_total{model="tiny"}'] in (1.0, 2.0)
    assert found['raylane_gateway_request_seconds_count{model="tiny"}'] == 7.0
    assert found['raylane_gateway_first_byte_seconds_count{model="tiny"}'] == 6.0


async def test_names_that_clients_make_up_do_not_fill_the_metrics_or_the_counters(one: Front) -> None:
    for number in range(20):
        await one.post(model=f"made-up-{number}")
    assert b"made-up" not in (await one.get("/metrics")).body
    assert one.relay.traffic() == {}


@EITHER
async def test_traffic_counts_what_the_autoscaler_reads(one: Front) -> None:
    running = asyncio.create_task(one.post(stream=True, **turn(3, each_s=1.0)))
    await until(lambda: one.engines[0].running == 1)
    await until(lambda: one.relay.traffic()["tiny"] == ModelTraffic(received=1, admitted=1, open=1))
    await running
    await until(lambda: one.relay.traffic()["tiny"] == ModelTraffic(received=1, admitted=1, completed=1))


async def test_traffic_counts_an_engines_failure(one: Front) -> None:
    await one.post(fake={"status": 500, "body": "{}"})
    await until(lambda: one.relay.traffic()["tiny"] == ModelTraffic(received=1, admitted=1, failed=1))
