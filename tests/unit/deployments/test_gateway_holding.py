"""Requests that wait for a replica: order, limits, clients that leave, engines that die and come back.

Tests that take `engines` run against the fake engine and against raylane's simulator server process. The fake one alone
serves those that need a first byte at a given time, or a broken connection; the others ask no engine at all.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fake_engine import FakeEngine, serving
from simulated_engine import SimulatedEngine, simulators, tapped, turn

from raylane.deployments.directory.reports import Endpoint, ModelTraffic, Table
from raylane.deployments.gateway import asked, holding, upstream
from raylane.deployments.gateway import relay as relay_module
from raylane.deployments.gateway.api import build_app
from raylane.deployments.gateway.holding import HoldLimits
from raylane.deployments.gateway.metrics import GatewayMetrics
from raylane.deployments.gateway.relay import Relay

KEY = "key"
HELLO = {"prompt": "hello", "max_tokens": 1}
Engine = FakeEngine | SimulatedEngine
Engines = Callable[[int], AbstractAsyncContextManager[list[Engine]]]


class Front:
    """One worker's app on a socket of its own, its table written by the test."""

    def __init__(self, relay: Relay, begun: list[str], url: str, session: aiohttp.ClientSession) -> None:
        self.relay = relay
        self.begun = begun
        self.url = url
        self._session = session
        self._version = 0

    def ready(self, *engines: Engine, models: tuple[str, ...] = ("m",)) -> None:
        """These engines, and no others, are the replicas of model m."""
        self._version += 1
        endpoints = tuple(Endpoint(f"r{engine.port}", "m", engine.url, KEY, 0) for engine in engines)
        self.relay.apply(Table("e", self._version, True, models, endpoints))

    async def post(self, model: str = "m", **body: Any) -> "Reply":
        async with self._session.post(self.url, json={**HELLO, "model": model, **body}) as answer:
            return Reply(answer.status, dict(answer.headers), await answer.read())

    async def held(self, count: int, **body: Any) -> list["asyncio.Task[Reply]"]:
        """So many requests, numbered, each sent when the one before it waits."""
        tasks, before = [], self.traffic.held
        for number in range(count):
            tasks.append(asyncio.create_task(self.post(number=number, **body)))
            await until(lambda: self.traffic.held == before + len(tasks))
        return tasks

    @property
    def traffic(self) -> ModelTraffic:
        return self.relay.traffic().get("m", ModelTraffic())


class Reply:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def message(self) -> str:
        said: str = json.loads(self.body)["error"]["message"]
        return said


@asynccontextmanager
async def front(timeout_s: float = 5.0, requests: int = 100) -> AsyncIterator[Front]:
    metrics, begun = GatewayMetrics(), list[str]()
    relay = Relay(metrics, HoldLimits(timeout_s, requests), begun.append)
    runner = web.AppRunner(build_app(relay, metrics), handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    server = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, server).start()
    try:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1/completions"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            made = Front(relay, begun, url, session)
            made.ready()
            yield made
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
def simulator_ports() -> Iterator[tuple[int, ...]]:
    """Two simulator processes, started for the first test that asks for them."""
    with simulators(2, KEY, "m") as ports:
        yield ports


@pytest.fixture(params=["stub", "simulator"])
def engines(request: pytest.FixtureRequest) -> Engines:
    """Makes so many engines; beyond two, simulated ones are further addresses of the same two processes."""

    @asynccontextmanager
    async def some(count: int) -> AsyncIterator[list[Engine]]:
        ports = request.getfixturevalue("simulator_ports") if request.param == "simulator" else None
        async with AsyncExitStack() as stack:
            kinds = [serving(KEY) if ports is None else tapped(ports[i % len(ports)]) for i in range(count)]
            yield [await stack.enter_async_context(kind) for kind in kinds]

    return some


def late(seconds: float) -> dict[str, Any]:
    """Keys of a request for a whole reply, of which there is no byte before so many seconds."""
    return {**turn(1, seconds), "fake": {"first_s": seconds}}


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s} s"
        await asyncio.sleep(0.01)


def numbers(engine: Engine) -> list[int]:
    """The requests in the order in which their connections came."""
    return [json.loads(seen.body)["number"] for seen in sorted(engine.seen, key=lambda seen: seen.connection)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole replies", "streams"])
async def test_requests_that_waited_go_to_the_first_ready_replica_in_order_of_arrival(
    engines: Engines, stream: bool
) -> None:
    async with front() as made, engines(1) as (engine,):
        waiting = await made.held(8, stream=stream)
        assert engine.seen == []
        made.ready(engine)
        replies = await asyncio.gather(*waiting)
        assert [reply.status for reply in replies] == [200] * 8
        assert sorted(reply.body for reply in replies) == sorted(engine.sent)
        assert numbers(engine) == list(range(8))
        assert made.traffic == ModelTraffic(received=8, admitted=8, completed=8)
        assert made.begun == ["m"]


async def test_they_spread_over_the_replicas_that_are_ready(engines: Engines) -> None:
    async with front() as made, engines(2) as (one, two):
        waiting = await made.held(6, **late(0.2))
        made.ready(one, two)
        assert {reply.status for reply in await asyncio.gather(*waiting)} == {200}
        assert (numbers(one), numbers(two)) in (([0, 2, 4], [1, 3, 5]), ([1, 3, 5], [0, 2, 4]))


async def test_another_models_replica_sets_nobody_free() -> None:
    async with front(timeout_s=0.4) as made, serving(KEY) as engine:
        (waiting,) = await made.held(1)
        other = Endpoint("o", "other", engine.url, KEY, 0)
        made.relay.apply(Table("e", 9, True, ("m", "other"), (other,)))
        assert (await waiting).status == 503
        assert engine.seen == []


async def test_who_waited_too_long_is_told_to_come_again() -> None:
    async with front(timeout_s=0.3) as made:
        began_s = time.monotonic()
        reply = await made.post()
        assert 0.28 < time.monotonic() - began_s < 4.5
        assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
        assert "no replica became ready within" in reply.message
        assert made.traffic == ModelTraffic(received=1, rejected=1)


async def test_with_a_timeout_of_zero_nobody_waits() -> None:
    async with front(timeout_s=0.0) as made:
        reply = await asyncio.wait_for(made.post(), 10.0)
        assert (reply.status, made.begun) == (503, [])


async def test_one_more_than_may_wait_is_refused_at_once_and_the_others_wait_on(engines: Engines) -> None:
    async with front(timeout_s=60.0, requests=2) as made, engines(1) as (engine,):
        waiting = await made.held(2)
        reply = await asyncio.wait_for(made.post(), 10.0)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
        assert "2 requests wait" in reply.message
        made.ready(engine)
        assert [one.status for one in await asyncio.gather(*waiting)] == [200, 200]


async def test_large_bodies_cannot_fill_the_memory(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "MOST_BYTES", 3 << 20)
    async with front(timeout_s=60.0) as made, engines(1) as (engine,):
        waiting = await made.held(2, user="x" * (1 << 20))
        assert (await asyncio.wait_for(made.post(user="x" * (1 << 20)), 10.0)).status == 503
        made.ready(engine)
        assert [one.status for one in await asyncio.gather(*waiting)] == [200, 200]
        made.ready()
        waiting = await made.held(2, user="x" * (1 << 20))  # what has left takes no room
        made.ready(engine)
        assert [one.status for one in await asyncio.gather(*waiting)] == [200, 200]


async def test_a_client_that_leaves_frees_its_place(engines: Engines) -> None:
    async with front(requests=1) as made, engines(1) as (engine,):
        (waiting,) = await made.held(1)
        waiting.cancel()
        await until(lambda: made.traffic.held == 0)
        assert made.traffic == ModelTraffic(received=1, cancelled=1)
        (waiting,) = await made.held(1)
        made.ready(engine)
        assert (await waiting).status == 200
        assert len(engine.seen) == 1
        assert made.begun == ["m", "m"]


async def test_a_model_that_is_taken_off_is_a_404_also_for_those_who_wait() -> None:
    async with front(timeout_s=60.0) as made:
        (waiting,) = await made.held(1)
        made.ready(models=("other",))
        assert (await asyncio.wait_for(waiting, 10.0)).status == 404
        assert (await asyncio.wait_for(made.post(), 10.0)).status == 404


async def test_a_gateway_that_stops_sends_those_who_wait_elsewhere() -> None:
    async with front() as made:
        waiting = await made.held(2)
        made.relay.stop_holding()
        replies = [*await asyncio.gather(*waiting), await made.post()]
        assert [(reply.status, "stopping" in reply.message) for reply in replies] == [(503, True)] * 3


async def test_gauges_tell_how_many_wait_and_how_long() -> None:
    async with front() as made:
        waiting = await made.held(2)
        await asyncio.sleep(0.2)
        waiting += await made.held(1)
        seen = made.traffic
        assert (seen.held, seen.open, seen.received) == (3, 3, 3)
        assert seen.oldest_held_age_s is not None
        assert 0.2 <= seen.oldest_held_age_s < 4.5
        assert seen.oldest_first_byte_wait_s is None
        made.relay.stop_holding()
        await asyncio.gather(*waiting)


# Engines that die and come back.


async def test_the_restart_of_a_models_only_replica_costs_nobody_an_error(engines: Engines) -> None:
    async with front() as made, engines(2) as (before, after):
        made.ready(before)
        begun = [asyncio.create_task(made.post(**late(1.0))) for _ in range(3)]  # none has a first byte
        await until(lambda: before.running == 3)
        await before.stop()
        after_it = [asyncio.create_task(made.post()) for _ in range(3)]  # still listed
        await until(lambda: made.traffic.held == 6)
        made.ready()
        after_it.append(asyncio.create_task(made.post()))
        await until(lambda: made.traffic.held == 7)
        made.ready(after)
        assert [reply.status for reply in await asyncio.gather(*begun, *after_it)] == [200] * 7
        assert made.traffic == ModelTraffic(received=7, admitted=7, completed=7)


async def test_a_request_that_breaks_a_living_engine_is_an_error_at_once() -> None:
    async with front(timeout_s=60.0) as made, serving(KEY) as engine:
        made.ready(engine)
        reply = await asyncio.wait_for(made.post(fake={"die": "before_head"}), 10.0)
        assert (reply.status, len(engine.seen)) == (502, 1)
        assert made.traffic == ModelTraffic(received=1, admitted=1, failed=1)


async def test_a_replica_that_stays_listed_and_cannot_be_reached_is_an_error_in_the_end(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "LISTED_FOR_S", 0.5)
    async with front() as made, engines(1) as (engine,):
        made.ready(engine)
        await engine.stop()
        began_s = time.monotonic()
        reply = await made.post()
        assert (reply.status, "cannot be reached" in reply.message) == (502, True)
        assert 0.45 < time.monotonic() - began_s < 4.5


async def test_a_replica_that_can_be_reached_again_gets_what_waited_for_it(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "AVOIDED_FOR_S", 0.2)
    monkeypatch.setattr(relay_module, "LOOK_AGAIN_S", 0.1)
    async with front() as made, engines(1) as (engine,):
        made.ready(engine)
        await engine.stop()
        waiting = [asyncio.create_task(made.post()) for _ in range(5)]
        await until(lambda: made.traffic.held == 5)
        await engine.listen(port=engine.port)
        assert [reply.status for reply in await asyncio.gather(*waiting)] == [200] * 5


async def test_an_engine_with_a_full_accept_queue_answers_everybody_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 s of patience with a lost replica, 6 s of work for one that takes a connection each half a second."""
    monkeypatch.setattr(relay_module, "LISTED_FOR_S", 3.0)
    monkeypatch.setattr(relay_module, "LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(asked, "AVOIDED_FOR_S", 0.1)
    monkeypatch.setattr(upstream, "CONNECT_TIMEOUT_S", 0.2)
    with slow_to_accept(0.5) as port:
        async with front(timeout_s=60.0) as made:
            made.relay.apply(Table("e", 9, True, ("m",), (Endpoint("slow", "m", f"http://127.0.0.1:{port}", KEY, 0),)))
            replies = await asyncio.gather(*(made.post() for _ in range(12)))
            assert [reply.status for reply in replies] == [200] * 12
            assert made.relay.traffic()["m"].failed == 0


async def test_an_engine_that_answers_over_kept_connections_alone_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 s of patience with a lost replica, 4.8 s of work for one whose only connection is an old one."""
    monkeypatch.setattr(relay_module, "LISTED_FOR_S", 3.0)
    monkeypatch.setattr(relay_module, "LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(asked, "AVOIDED_FOR_S", 0.05)

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(0.6)
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    site = web.SockSite(runner, listening)
    await site.start()
    try:
        async with front(timeout_s=60.0) as made:
            made.relay.apply(Table("e", 9, True, ("m",), (Endpoint("kept", "m", url, KEY, 0),)))
            assert (await made.post()).status == 200
            await site.stop()
            assert [one.status for one in await asyncio.gather(*(made.post() for _ in range(8)))] == [200] * 8
    finally:
        await runner.cleanup()


@contextmanager
def slow_to_accept(each_s: float) -> Iterator[int]:
    """A server that answers one connection after another and lets no more than two wait; its port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)

    def serve() -> None:
        with suppress(OSError):
            while True:
                time.sleep(each_s)
                taken, _ = listening.accept()
                with taken, suppress(OSError):  # a client may reset its connection
                    while (data := taken.recv(65536)) and b"\r\n\r\n" not in data:
                        pass
                    taken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@pytest.fixture
def knocks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses to which new connections were tried."""
    tried: list[str] = []
    connect = upstream.UpstreamPool._connect

    async def counted(self: upstream.UpstreamPool, url: str) -> upstream.Upstream:
        tried.append(url)
        return await connect(self, url)

    monkeypatch.setattr(upstream.UpstreamPool, "_connect", counted)
    return tried


async def test_a_replica_that_could_not_be_reached_is_left_alone_for_a_while(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, knocks: list[str]
) -> None:
    monkeypatch.setattr(asked, "AVOIDED_FOR_S", 60.0)
    async with front() as made, engines(2) as (dead, alive):
        await dead.stop()
        made.ready(dead, alive)
        assert [(await made.post()).status for _ in range(10)] == [200] * 10
        assert knocks.count(dead.url) == 1
        monkeypatch.setattr(asked, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 61.0))
        assert [(await made.post()).status for _ in range(4)] == [200] * 4
        assert knocks.count(dead.url) == 2


async def test_any_number_of_vanished_replicas_leaves_the_living_one(engines: Engines, knocks: list[str]) -> None:
    async with front() as made, engines(4) as (*gone, alive):
        for engine in gone:
            await engine.stop()
        made.ready(*gone, alive)
        assert [(await made.post()).status for _ in range(8)] == [200] * 8
        assert len(knocks) == 4


# Queue age.


async def test_the_queue_age_of_a_replica_is_that_of_its_oldest_stream_without_a_byte() -> None:
    async with front() as made, serving(KEY) as engine:
        made.ready(engine)
        whole = asyncio.create_task(made.post(fake={"first_s": 600.0}))
        await until(lambda: engine.running == 1)
        assert made.traffic.first_byte_wait_s == {}  # its first byte is its end: that says nothing of a queue
        before_first_s = time.monotonic()
        first = asyncio.create_task(made.post(stream=True, fake={"first_s": 3.0}))
        await until(lambda: engine.running == 2)
        after_first_s = time.monotonic()
        await asyncio.sleep(0.2)
        before_second_s = time.monotonic()
        second = asyncio.create_task(made.post(stream=True, fake={"first_s": 600.0}))
        await until(lambda: engine.running == 3)
        after_second_s = time.monotonic()
        waits = made.traffic.first_byte_wait_s
        assert list(waits) == [f"r{engine.port}"]
        assert after_second_s - after_first_s <= waits[f"r{engine.port}"] <= time.monotonic() - before_first_s
        await first
        now_s = time.monotonic()
        younger = made.traffic.oldest_first_byte_wait_s
        assert younger is not None
        assert now_s - after_second_s <= younger <= time.monotonic() - before_second_s
        for task in (whole, second):
            task.cancel()
        await until(lambda: made.traffic.oldest_first_byte_wait_s is None)
