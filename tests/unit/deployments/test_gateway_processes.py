"""A gateway of two real worker processes on one port: tables, dead workers, stopping, and ports of others.

What involves streams of a well-behaved engine runs against the fake engine and against raylane's simulator server
process (`EITHER`); the rest asks no engine, or only for the shortest answer.
"""

import asyncio
import json
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from fake_engine import FakeEngine, serving
from simulated_engine import simulators, tapped, turn

from raylane.cluster.errors import FailedError
from raylane.cluster.processes import processes_with
from raylane.deployments.config.deployment import GatewayConfig
from raylane.deployments.directory.directory import Directory
from raylane.deployments.directory.reports import ModelTraffic, ReplicaReport, ReplicaState, Table
from raylane.deployments.gateway.gateway import Gateway, process_count

pytestmark = pytest.mark.process

KEY = "engine-key"
MARK = "RAYLANE_TEST_GATEWAY"
EITHER = pytest.mark.parametrize("engine_port", ["stub", "simulator"], indirect=True)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that nobody else gets meanwhile: bound, not listening, so that another may still bind and listen."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextmanager
def marked() -> Iterator[str]:
    """Processes started meanwhile carry this value of MARK in their environment."""
    os.environ[MARK] = mark = uuid.uuid4().hex
    try:
        yield mark
    finally:
        del os.environ[MARK]


def report(engine: FakeEngine, replica: str = "r", state: ReplicaState = ReplicaState.READY) -> ReplicaReport:
    return ReplicaReport(replica, "tiny", state, engine.url, KEY, "127.0.0.1")


class Running:
    """A started gateway, its directory and one engine."""

    def __init__(self, gateway: Gateway, directory: Directory, engine: FakeEngine, port: int, mark: str) -> None:
        self.mark = mark
        self.gateway = gateway
        self.directory = directory
        self.engine = engine
        self.url = f"http://127.0.0.1:{port}"

    def workers(self) -> list[int]:
        """Process ids of the workers that serve."""
        return [worker.pid for worker in self.gateway._workers.values() if worker.alive and worker.pid is not None]

    def processes(self) -> list[int]:
        """All processes that the gateway has started: workers, the spare one, the holder."""
        return processes_with(MARK, self.mark)

    async def models(self) -> list[str]:
        """One fresh connection, so the kernel picks a worker."""
        async with aiohttp.ClientSession() as session, session.get(self.url + "/health") as answer:
            listed: list[str] = (await answer.json())["models"]
            return listed

    async def on_every_worker(self) -> set[str]:
        """What 16 fresh connections see: all workers, but for a chance of 1 in 30,000."""
        return {json.dumps(await self.models()) for _ in range(16)}

    async def traffic(self) -> ModelTraffic:
        snapshot = await self.directory.snapshot()
        return next(iter(snapshot.gateways.values()), {}).get("tiny", ModelTraffic())

    async def post(self, events: int = 3, each_s: float = 0.0) -> tuple[int, bytes]:
        body = {"model": "tiny", "prompt": "hello", "stream": True, **turn(events, each_s)}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url + "/v1/completions", json=body) as answer,
        ):
            return answer.status, await answer.read()


async def until(condition: Callable[[], Any], within_s: float = 20.0) -> None:
    """Wait until a plain or awaitable condition holds."""
    deadline_s = time.monotonic() + within_s
    while True:
        held = condition()
        if await held if asyncio.iscoroutine(held) else held:
            return
        assert time.monotonic() < deadline_s, f"not within {within_s} s"
        await asyncio.sleep(0.05)


async def announced(running: Running) -> None:
    await running.directory.report(report(running.engine))

    async def known() -> bool:
        return await running.on_every_worker() == {'["tiny"]'}

    await until(known)


@pytest.fixture(scope="module")
def simulator_port() -> Iterator[int]:
    """A simulator process, started for the first test that asks for it."""
    with simulators(1, KEY) as (port,):
        yield port


@pytest.fixture
def engine_port(request: pytest.FixtureRequest) -> int | None:
    """What `gateway` wants for the kind of engine that the test is for."""
    port: int | None = request.getfixturevalue("simulator_port") if request.param == "simulator" else None
    return port


@asynccontextmanager
async def gateway(
    processes: int = 2, hold_timeout_s: float = 0.0, engine_port: int | None = None
) -> AsyncIterator[Running]:
    """`engine_port` is that of a simulator process; without it there is a fake engine."""
    kind: Any = serving(KEY) if engine_port is None else tapped(engine_port)
    with reserved_port() as port, marked() as mark:
        async with kind as engine:
            directory = Directory()
            config = GatewayConfig(port=port, processes_per_host=processes, hold_timeout_s=hold_timeout_s)
            made = Gateway(config, directory)
            await made.start()
            running = Running(made, directory, engine, port, mark)
            try:
                yield running
            finally:
                await asyncio.wait_for(made.stop(0.0), 20)
                await until(lambda: running.processes() == [])


@EITHER
async def test_tables_reach_every_worker_and_requests_reach_the_engine(engine_port: int | None) -> None:
    async with gateway(engine_port=engine_port) as running:
        assert len(running.workers()) == 2
        await announced(running)
        answers = await asyncio.gather(*(running.post() for _ in range(10)))
        assert {status for status, _ in answers} == {200}
        assert sorted(content for _, content in answers) == sorted(running.engine.sent)
        assert {seen.headers["authorization"] for seen in running.engine.seen} == {f"Bearer {KEY}"}
        await running.directory.withdraw("r")
        await running.directory.set_models(("other",))

        async def changed() -> bool:
            return await running.on_every_worker() == {'["other"]'}

        await until(changed)


@EITHER
async def test_a_drain_is_acknowledged_once_every_worker_knows(engine_port: int | None) -> None:
    async with gateway(engine_port=engine_port) as running:
        await announced(running)
        version = await running.directory.report(report(running.engine, state=ReplicaState.DRAINING))
        began_s = time.monotonic()
        assert await running.directory.acknowledged(version, 10.0)
        assert time.monotonic() - began_s < 5.0
        assert {(await running.post())[0] for _ in range(16)} == {503}


async def test_a_stopped_worker_keeps_a_drain_waiting() -> None:
    async with gateway() as running:
        await announced(running)
        asleep = running.workers()[0]
        os.kill(asleep, signal.SIGSTOP)
        try:
            version = await running.directory.report(report(running.engine, state=ReplicaState.DRAINING))
            assert not await running.directory.acknowledged(version, 1.5)
        finally:
            os.kill(asleep, signal.SIGCONT)
        assert await running.directory.acknowledged(version, 20.0)


async def test_a_killed_worker_is_replaced_and_knows_the_table() -> None:
    async with gateway() as running:
        await announced(running)
        before = set(running.workers())
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len(set(running.workers()) - {victim}) == 2)
        await asyncio.sleep(1.0)  # it starts to listen

        async def known() -> bool:
            return await running.on_every_worker() == {'["tiny"]'}

        await until(known)
        running.gateway.check()
        version = await running.directory.report(report(running.engine, state=ReplicaState.DRAINING))
        assert await running.directory.acknowledged(version, 20.0)


@EITHER
async def test_requests_are_counted_over_all_workers_and_neither_lost_nor_doubled_when_one_dies(
    engine_port: int | None,
) -> None:
    async with gateway(engine_port=engine_port) as running:
        await announced(running)
        await asyncio.gather(*(running.post() for _ in range(12)))

        async def counted(received: int) -> bool:
            return (await running.traffic()).completed == received

        await until(lambda: counted(12))
        victim = running.workers()[0]
        os.kill(victim, signal.SIGKILL)
        seen = set()
        while len(set(running.workers()) - {victim}) < 2:
            seen.add((await running.traffic()).completed)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert seen | {(await running.traffic()).completed} == {12}
        async with aiohttp.ClientSession() as session, session.get(running.url + "/metrics") as answer:
            page = await answer.text()
        assert 'raylane_gateway_requests_total{model="tiny",outcome="200"} 12.0' in page


@EITHER
async def test_requests_that_a_worker_took_into_its_death_are_not_open_for_ever(engine_port: int | None) -> None:
    async with gateway(processes=1, engine_port=engine_port) as running:
        await announced(running)
        streams = [asyncio.create_task(running.post(events=10_000, each_s=0.05)) for _ in range(3)]

        async def open_now(count: int) -> bool:
            return (await running.traffic()).open == count

        await until(lambda: open_now(3))
        os.kill(running.workers()[0], signal.SIGKILL)
        ended = await asyncio.gather(*streams, return_exceptions=True)
        assert [isinstance(error, aiohttp.ClientError) for error in ended] == [True] * 3
        await until(lambda: open_now(0))
        assert (await running.traffic()).received == 3


@EITHER
async def test_stop_lets_open_streams_finish_and_takes_no_new_connections(engine_port: int | None) -> None:
    async with gateway(engine_port=engine_port) as running:
        await announced(running)
        streams = [asyncio.create_task(running.post(events=40, each_s=0.1)) for _ in range(6)]
        await until(lambda: running.engine.running == 6)
        stopping = asyncio.create_task(running.gateway.stop(30.0))

        async def refused() -> bool:
            seen = await asyncio.gather(*(running.models() for _ in range(16)), return_exceptions=True)
            return all(isinstance(one, aiohttp.ClientError) for one in seen)

        await until(refused)
        assert not any(task.done() for task in (stopping, *streams))
        done = await asyncio.gather(*streams)
        assert [(status, text.endswith(b"[DONE]\n\n")) for status, text in done] == [(200, True)] * 6
        await asyncio.wait_for(stopping, 20.0)
        assert running.workers() == []
        assert (await running.directory.snapshot()).gateways == {}


@EITHER
async def test_stop_does_not_wait_longer_than_told(engine_port: int | None) -> None:
    async with gateway(engine_port=engine_port) as running:
        await announced(running)
        endless = asyncio.create_task(running.post(events=100_000, each_s=0.05))
        await until(lambda: running.engine.running == 1)
        began_s = time.monotonic()
        await running.gateway.stop(0.5)
        assert time.monotonic() - began_s < 10.0
        assert running.workers() == []
        with pytest.raises(aiohttp.ClientError):
            await endless


@EITHER
async def test_a_client_that_keeps_its_connection_busy_does_not_hold_up_the_stop(engine_port: int | None) -> None:
    """Its next request belongs to another gateway: a stopping worker closes the connection with the reply."""
    async with gateway(processes=1, engine_port=engine_port) as running:
        await announced(running)
        asking = True

        async def keep_asking(session: aiohttp.ClientSession) -> None:
            body = {"model": "tiny", "prompt": "hello", "stream": True, **turn(2, each_s=0.1)}
            while asking:
                async with session.post(running.url + "/v1/completions", json=body) as answer:
                    await answer.read()

        async with aiohttp.ClientSession() as session:
            clients = [asyncio.create_task(keep_asking(session)) for _ in range(12)]
            await asyncio.sleep(0.5)
            began_s = time.monotonic()
            await running.gateway.stop(20.0)
            took_s = time.monotonic() - began_s
            asking = False
            await asyncio.gather(*clients, return_exceptions=True)
        assert took_s < 10.0


async def test_a_port_that_another_program_listens_on_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        made = Gateway(GatewayConfig(port=port, processes_per_host=2), Directory())
        with pytest.raises(FailedError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            await made.start()
    assert made._workers == {}


async def test_an_address_that_is_not_this_hosts_is_named() -> None:
    made = Gateway(GatewayConfig(host="192.0.2.1", processes_per_host=1), Directory())
    with pytest.raises(FailedError, match=r"192\.0\.2\.1:8000: Cannot assign requested address"):
        await made.start()


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(("host", "clients"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
async def test_addresses_of_ipv6_for_gateway_and_engine(host: str, clients: list[str]) -> None:
    engine = FakeEngine(KEY)
    await engine.listen("::1")
    engine.url = f"http://[::1]:{engine.port}"
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        port = probe.getsockname()[1]
    made = Gateway(GatewayConfig(host=host, port=port), Directory(), cores=1)
    await made.start()
    try:
        await made._directory.report(report(engine))  # type: ignore[attr-defined]
        for client in clients:
            address = f"[{client}]" if ":" in client else client
            running = Running(made, Directory(), engine, port, "")
            running.url = f"http://{address}:{port}"

            async def known(running: Running = running) -> bool:
                return await running.on_every_worker() == {'["tiny"]'}

            await until(known)
            assert (await running.post())[0] == 200
        with pytest.raises(FailedError, match=rf"cannot listen on \[{host}\]:{port}: Address already in use"):
            await Gateway(GatewayConfig(host=host, port=port), Directory(), cluster="other").start()
    finally:
        await made.stop(0.0)
        await engine.stop()


@EITHER
async def test_a_gateway_serves_on_by_its_last_table_while_the_directory_is_away(engine_port: int | None) -> None:
    async with gateway(engine_port=engine_port) as running:
        await announced(running)

        async def away(*_: object) -> None:
            raise ConnectionError("the directory restarts")

        running.directory.poll = away  # type: ignore[assignment]
        await asyncio.sleep(1.0)
        assert {(await running.post())[0] for _ in range(8)} == {200}


async def test_it_says_when_no_worker_is_left() -> None:
    async with gateway(processes=1) as running:
        running.gateway.check()
        await running.gateway.stop(0.0)
        with pytest.raises(FailedError, match="no gateway worker"):
            running.gateway.check()


@pytest.mark.parametrize(
    ("asked", "cores", "processes"),
    [
        pytest.param("auto", 2, 2, id="at least two"),
        pytest.param("auto", 16, 2, id="one for every eight cores"),
        pytest.param("auto", 31, 3, id="whole eights only"),
        pytest.param("auto", 384, 8, id="at most eight"),
        pytest.param(5, 2, 5, id="what the config says"),
    ],
)
def test_how_many_processes(asked: Any, cores: int, processes: int) -> None:
    assert process_count(GatewayConfig(processes_per_host=asked), cores) == processes


# From zero.


async def asked_for(running: Running, model: str) -> tuple[float, asyncio.Task[int]]:
    """Seconds from the first request for a resting model to the directory's word of it, and that request."""
    known, _ = await running.directory.wait_for_wake(0, 0.0)
    waking = asyncio.create_task(running.directory.wait_for_wake(known, 20.0))
    await asyncio.sleep(0)

    async def ask() -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.post(running.url + "/v1/completions", json={"model": model}) as answer,
        ):
            return answer.status

    began_s = time.monotonic()
    request = asyncio.create_task(ask())
    _, woken = await waking
    assert woken == (model,)
    return time.monotonic() - began_s, request


async def resting(running: Running, *models: str) -> None:
    await running.directory.set_models(models)

    async def known() -> bool:
        return await running.on_every_worker() == {json.dumps(list(models))}

    await until(known)


async def test_the_first_request_for_a_resting_model_wakes_it_at_once() -> None:
    async with gateway(hold_timeout_s=0.5) as running:
        await resting(running, "a", "b", "c")
        poll = running.directory.poll

        async def without_traffic(gateway: str, epoch: str, version: int, wait_s: float, _: Any) -> Table:
            return await poll(gateway, epoch, version, wait_s, {})

        running.directory.poll = without_traffic  # type: ignore[method-assign, assignment]
        woken = [await asked_for(running, model) for model in ("a", "b", "c")]
        assert min(took_s for took_s, _ in woken) < 0.2
        assert await asyncio.gather(*(request for _, request in woken)) == [503] * 3


async def test_requests_that_wait_are_told_of_also_when_the_wake_itself_is_lost() -> None:
    async with gateway(hold_timeout_s=30.0) as running:
        await resting(running, "a")
        lost = asyncio.Event()

        async def away(_: str) -> None:
            lost.set()
            raise ConnectionError("the directory restarts")

        wake, running.directory.wake = running.directory.wake, away  # type: ignore[method-assign, assignment]
        async with aiohttp.ClientSession() as session:
            ask = asyncio.create_task(session.post(running.url + "/v1/completions", json={"model": "a"}))
            await asyncio.wait_for(lost.wait(), 20.0)
            running.directory.wake = wake  # type: ignore[method-assign]
            assert (await running.directory.wait_for_wake(0, 20.0))[1] == ("a",)
            seen = (await running.directory.snapshot()).traffic()["a"]
            assert (seen.held, seen.received) == (1, 1)
            assert seen.oldest_held_age_s is not None
            ask.cancel()


async def page(running: Running) -> str:
    async with aiohttp.ClientSession() as session, session.get(running.url + "/metrics") as answer:
        return await answer.text()


@EITHER
async def test_a_cold_start_is_counted_once_however_many_workers_waited_for_it(engine_port: int | None) -> None:
    async with gateway(hold_timeout_s=20.0, engine_port=engine_port) as running:
        await resting(running, "tiny")
        waiting = [asyncio.create_task(running.post()) for _ in range(16)]

        async def all_held() -> bool:
            return (await running.traffic()).held == 16

        await until(all_held)
        await running.directory.report(report(running.engine))
        assert {status for status, _ in await asyncio.gather(*waiting)} == {200}

        async def counted() -> bool:
            return 'raylane_gateway_cold_starts_total{model="tiny"} 1.0' in await page(running)

        await until(counted)
        assert 'raylane_gateway_hold_seconds_count{model="tiny"} 16.0' in await page(running)
        await until(lambda: told(running, completed=16, held=0, open=0))


async def told(running: Running, **fields: int) -> bool:
    seen = await running.traffic()
    return {name: getattr(seen, name) for name in fields} == fields


async def test_a_stop_does_not_wait_for_requests_that_wait() -> None:
    async with gateway(processes=1, hold_timeout_s=60.0) as running:
        await resting(running, "tiny")
        waiting = [asyncio.create_task(running.post()) for _ in range(3)]
        await until(lambda: told(running, held=3))
        began_s = time.monotonic()
        await running.gateway.stop(30.0)
        assert time.monotonic() - began_s < 10.0
        assert [status for status, _ in await asyncio.gather(*waiting)] == [503] * 3


async def test_requests_that_a_worker_took_into_its_death_wait_no_longer() -> None:
    async with gateway(processes=1, hold_timeout_s=60.0) as running:
        await resting(running, "tiny")
        waiting = [asyncio.create_task(running.post()) for _ in range(3)]
        await until(lambda: told(running, held=3))
        os.kill(running.workers()[0], signal.SIGKILL)
        await asyncio.gather(*waiting, return_exceptions=True)
        await until(lambda: told(running, held=0, open=0, received=3, failed=3))


async def test_traffic_is_never_older_than_a_second() -> None:
    async with gateway(processes=1) as running:
        await announced(running)
        ages: list[float] = []
        looked_s: list[float] = []
        for _ in range(30):
            ages += (await running.directory.snapshot()).gateway_age_s.values()
            looked_s.append(time.monotonic())
            await asyncio.sleep(0.05)
        longest_gap_s = max(b - a for a, b in pairwise(looked_s))  # the gateway stood still as long as this test did
        assert len(ages) == 30
        assert max(ages) < 0.9 + longest_gap_s
