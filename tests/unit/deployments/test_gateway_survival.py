"""Sudden deaths under load: of a worker, of all workers, of the gateway, of the holder. No connection is refused."""

import asyncio
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from fake_engine import FakeEngine, serving
from gateway_process import GatewayProcess, gateway_process

from raylane.cluster.processes import processes_with

KEY = "engine-key"
MARK = "RAYLANE_TEST_GATEWAY"
WORKER, HOLDER = "raylane.deployments.gateway.worker", "raylane.deployments.gateway.holder"
WITHIN_S = 60.0


@dataclass
class Load:
    """Requests on fresh connections, some at a time, one after the other."""

    url: str
    answered: int = 0
    refused: int = 0
    cut: int = 0
    statuses: set[int] = field(default_factory=set)

    async def ask(self) -> None:
        body = {"model": "tiny", "prompt": "hello", "stream": True, "fake": {"events": 1}}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(WITHIN_S)) as session,
                session.post(self.url + "/v1/completions", json=body) as answer,
            ):
                await answer.read()
                self.statuses.add(answer.status)
                self.answered += 1
        except aiohttp.ClientConnectorError:
            self.refused += 1
        except aiohttp.ClientError:
            self.cut += 1

    async def keep_asking(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(0.01)


@dataclass
class Host:
    """What runs in a test."""

    port: int
    engine: FakeEngine
    mark: str
    load: Load

    def gateway(self, cluster: str = "", host_pid: int | None = None) -> AbstractContextManager[GatewayProcess]:
        return gateway_process(self.port, self.engine.url, KEY, cluster=cluster, host_pid=host_pid or os.getpid())

    def running(self, module: str) -> set[int]:
        """Process ids of the workers (spare ones too) or holders of this test."""
        found = set()
        for pid in processes_with(MARK, self.mark):
            with suppress(OSError), open(f"/proc/{pid}/cmdline") as words:  # noqa: PTH123
                if module in words.read() and os.getpgid(pid) == pid:  # not the first of its two forks
                    found.add(pid)
        return found

    def connected(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    async def answers(self, count: int) -> None:
        """Until the load has got so many more answers."""
        wanted = self.load.answered + count
        await until(lambda: self.load.answered >= wanted)


async def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


@contextmanager
def a_port() -> Iterator[int]:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.fixture
async def host(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    with a_port() as port:
        async with serving(KEY) as engine:
            made = Host(port, engine, mark, Load(f"http://127.0.0.1:{port}"))
            try:
                yield made
                await until(lambda: not processes_with(MARK, mark))
            finally:
                for pid in processes_with(MARK, mark):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


async def ready(gateway: GatewayProcess) -> None:
    assert await asyncio.to_thread(gateway.says) == "ready"


async def stopped(gateway: GatewayProcess, host: Host) -> None:
    """In order: then nothing is left of it, and its port is free."""
    await asyncio.to_thread(gateway.stop)
    await until(lambda: not processes_with(MARK, host.mark))
    assert not host.connected()


@asynccontextmanager
async def under_load(host: Host, clients: int = 4) -> AsyncIterator[Load]:
    """None of its requests may be refused, and those that are answered are answered well."""
    asking = [asyncio.create_task(host.load.keep_asking()) for _ in range(clients)]
    await host.answers(10)
    try:
        yield host.load
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    assert (host.load.refused, host.load.statuses) == (0, {200})


async def stream(host: Host, gate: asyncio.Event) -> bool:
    """A reply that goes on until the gate opens; whether it was whole."""
    body = {"model": "tiny", "prompt": "x", "stream": True, "fake": {"events": 100_000, "each_s": 0.05}}
    async with aiohttp.ClientSession() as session, session.post(host.load.url + "/v1/completions", json=body) as answer:
        try:
            async for _ in answer.content.iter_any():
                if gate.is_set():
                    return True
        except aiohttp.ClientError:
            pass
    return False


def sockets_of(pid: int) -> int:
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found += str(entry.readlink()).startswith("socket:")
    return found


async def test_killing_a_worker_cuts_its_own_streams_and_refuses_nobody(host: Host) -> None:
    with host.gateway() as gateway:
        await ready(gateway)
        await until(lambda: len(host.running(WORKER)) == 3)  # two that serve and a spare one
        gate = asyncio.Event()
        streams: list[asyncio.Task[bool]] = []
        before = {pid: sockets_of(pid) for pid in host.running(WORKER)}
        while sum(sockets_of(pid) >= count + 2 for pid, count in before.items()) < 2:  # each has a stream
            streams.append(asyncio.create_task(stream(host, gate)))
            await until(lambda: host.engine.running >= len(streams))
        victim = max(host.running(WORKER), key=sockets_of)
        async with under_load(host):
            os.kill(victim, signal.SIGKILL)
            await host.answers(50)
            await until(lambda: len(host.running(WORKER) - {victim}) == 3)
            await host.answers(10)
        gate.set()
        whole = await asyncio.gather(*streams)
        assert set(whole) == {True, False}
        await stopped(gateway, host)


async def test_killing_all_workers_at_once_refuses_nobody(host: Host) -> None:
    with host.gateway() as gateway:
        await ready(gateway)
        async with under_load(host):
            victims = host.running(WORKER)
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            await host.answers(50)
        await stopped(gateway, host)


async def test_killing_the_gateway_cuts_nothing_and_another_takes_over(host: Host) -> None:
    with host.gateway() as first, ExitStack() as stack:
        await ready(first)
        its_workers = host.running(WORKER)
        gate = asyncio.Event()
        streams = [asyncio.create_task(stream(host, gate)) for _ in range(4)]
        await until(lambda: host.engine.running >= 4)
        async with under_load(host) as load:
            first.kill()
            await host.answers(50)
            second = stack.enter_context(host.gateway())
            await ready(second)
            await host.answers(50)
            gate.set()
            assert await asyncio.gather(*streams) == [True] * 4
            await until(lambda: not its_workers & host.running(WORKER))
            assert len(host.running(HOLDER)) == 1
            await host.answers(10)
        assert load.cut == 0
        await stopped(second, host)


async def test_killing_the_holder_cuts_nothing_and_another_holds(host: Host) -> None:
    with host.gateway() as gateway:
        await ready(gateway)
        before = host.running(HOLDER)
        async with under_load(host) as load:
            os.kill(before.pop(), signal.SIGKILL)
            await until(lambda: len(host.running(HOLDER)) == 1)
            await host.answers(10)
        assert load.cut == 0
        await stopped(gateway, host)


async def test_orphans_end_with_the_host_and_the_port_is_free(host: Host) -> None:
    """The raylet is gone, so nobody will come for them."""
    raylet = await asyncio.create_subprocess_exec("sleep", "600")
    with host.gateway(host_pid=raylet.pid) as gateway:
        await ready(gateway)
        gateway.kill()
        await host.load.ask()
        assert (host.load.answered, host.load.statuses) == (1, {200})
        raylet.kill()
        await raylet.wait()
        await until(lambda: not processes_with(MARK, host.mark))
        assert not host.connected()


async def test_a_successor_shares_the_port_until_the_first_has_stopped(host: Host) -> None:
    with host.gateway() as first, host.gateway() as second:
        await ready(first)
        await ready(second)
        assert len(host.running(HOLDER)) == 1
        async with under_load(host) as load:
            await asyncio.to_thread(first.stop)
            await host.answers(20)
        assert load.cut == 0
        await stopped(second, host)


async def test_a_gateway_of_another_cluster_does_not_get_the_port(host: Host) -> None:
    with host.gateway("one") as first, host.gateway("two") as second:
        said = {await asyncio.to_thread(gateway.says) for gateway in (first, second)}
        assert said == {"ready", f"gateway cannot listen on 127.0.0.1:{host.port}: Address already in use"}
        await asyncio.gather(*(asyncio.to_thread(gateway.stop) for gateway in (first, second)))
        await until(lambda: not processes_with(MARK, host.mark))
