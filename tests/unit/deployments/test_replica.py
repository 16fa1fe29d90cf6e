"""A replica's life with a real supervisor, a real (fake) engine process, real leases and the real directory object."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from raylane.cluster.allreduce import AllReduceSettings
from raylane.cluster.choose import Choice, Refusal
from raylane.cluster.errors import FailedError
from raylane.cluster.gpu_readings import GpuReading
from raylane.cluster.held_gpus import HeldGpu
from raylane.cluster.leases import Lease, holders, runtime_folder, take_lease
from raylane.cluster.processes import processes_with
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.directory.directory import Directory
from raylane.deployments.directory.reports import Endpoint, MoveResult, MoveState, ReplicaReport, ReplicaState, Table
from raylane.deployments.engines import progress as progress_module
from raylane.deployments.engines import seated as seated_module
from raylane.deployments.engines.base import Seat
from raylane.deployments.engines.load import EngineLoad, read_page
from raylane.deployments.engines.process import MARK, EngineFailed, Launch, log_tail
from raylane.deployments.engines.vllm.engine import NAMES
from raylane.deployments.replicas import replica as replica_module
from raylane.deployments.replicas.replica import Replica
from raylane.deployments.slo import SloLimits

SCRIPT = Path(__file__).parents[2] / "fixtures" / "engines" / "fake_engine.py"
GPUS = ("GPU-0", "GPU-1")


class FakeKind:
    """An engine kind whose server is the fake one."""

    kind = "fake"

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.fails_on: str | None = None  # engines on GPUs with this in their name do not start
        self.seat: Seat | None = None

    def read_load(self, page: str, limits: SloLimits | None = None) -> EngineLoad:
        return read_page(page, NAMES, limits)

    def change(self, **options: Any) -> None:
        """For engines that start from now on."""
        self._options |= options

    def launch(self, seat: Seat) -> Launch:
        self.seat = seat
        fails = self.fails_on is not None and self.fails_on in " ".join(seat.gpu_uuids)
        options = json.dumps(self._options | ({"fail_with": "no kernel image"} if fails else {}))
        command = (sys.executable, "-I", "-S", str(SCRIPT), seat.host, str(seat.port), options)
        return Launch(command, {"VLLM_API_KEY": seat.api_key}, seat.log_path)


class Watched(Directory):
    """The directory, keeping what was reported to it; it can be made slow or to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[ReplicaState] = []
        self.reports: list[ReplicaReport] = []
        self.report_gate = asyncio.Event()
        self.report_gate.set()
        self.withdraw_takes_s = 0.0
        self.away = False

    async def report(self, report: ReplicaReport) -> int:
        if self.away:
            raise ConnectionError("the directory restarts")
        self.reports.append(report)
        if self.states[-1:] != [report.state]:
            self.states.append(report.state)
        await self.report_gate.wait()
        return await super().report(report)

    async def withdraw(self, replica_id: str) -> None:
        await asyncio.sleep(self.withdraw_takes_s)
        if self.away:
            raise ConnectionError("the directory restarts")
        await super().withdraw(replica_id)

    async def table(self) -> Table:
        """What a gateway would be told, without becoming one that has to be waited for."""
        told = await super().poll("test", "", 0, 0.0, {})
        await super().goodbye("test")
        return told


class Bench:
    """What one test needs: a host with leases in its own folder, and a directory."""

    def __init__(self, folder: Path) -> None:
        self.id = f"test-{uuid.uuid4().hex}"
        self.folder = folder
        self.directory = Watched()
        self.read_gpus: Callable[[tuple[str, ...]], tuple[GpuReading, ...]] = lambda uuids: ()
        self.held: Callable[[tuple[str, ...]], tuple[HeldGpu, ...] | None] = lambda uuids: None
        self.wanted_cpus: tuple[int, ...] | None = None
        self.alarms: list[bool | None] = []
        self.address = "127.0.0.1"
        self.log_folder = folder / "logs"

    def lease(self) -> Lease:
        def choose(free: frozenset[str]) -> Choice | Refusal:
            return Choice((min(free),), "the first one", second_best=False) if free else Refusal("none is free")

        return take_lease(self.id, GPUS, choose, "127.0.0.1", self.folder)

    def lease_elsewhere(self, held: Lease, to: tuple[str, ...] | None) -> Lease:
        def choose(free: frozenset[str]) -> Choice | Refusal:
            wanted = to or tuple(sorted(free - set(held.choice.uuids)))[:1]
            able = bool(wanted) and free.issuperset(wanted)
            return Choice(wanted, "elsewhere", second_best=True) if able else Refusal(f"{wanted or 'nothing'} not free")

        return take_lease(self.id, GPUS, choose, "127.0.0.1", self.folder, held)

    def check_move(self, held: Lease, to: tuple[str, ...] | None) -> None:
        self.lease_elsewhere(held, to).close()

    def links(self, uuids: tuple[str, ...]) -> AllReduceSettings:
        return AllReduceSettings((), custom_all_reduce=True, reason="test")

    def cpus(self, uuids: tuple[str, ...]) -> tuple[int, ...] | None:
        return self.wanted_cpus

    def held_gpus(self, uuids: tuple[str, ...], replica_id: str) -> tuple[HeldGpu, ...] | None:
        return self.held(uuids)

    def replica(self, kind: FakeKind, **model: Any) -> Replica:
        config = ModelConfig.from_data({"source": "org/m", **model}, "test")
        return Replica(self.id, "tiny", config, kind, self, self.directory, self.alarms.append)

    @asynccontextmanager
    async def started(self, kind: FakeKind | None = None, **model: Any) -> AsyncIterator[Replica]:
        replica = self.replica(kind or FakeKind(), **model)
        await asyncio.wait_for(replica.start(), 20)
        try:
            yield replica
        finally:
            await asyncio.wait_for(replica.close(), 20)

    async def report(self) -> ReplicaReport:
        (report,) = (await self.directory.snapshot()).replicas
        return report

    def moved(self) -> tuple[str, MoveState] | None:
        move = self.directory.reports[-1].move
        return None if move is None else (move.order_id, move.state)

    async def endpoint(self) -> Endpoint:
        (endpoint,) = (await self.directory.table()).endpoints
        return endpoint

    def processes(self) -> list[int]:
        return processes_with(MARK, self.id)

    def assert_nothing_left(self) -> None:
        assert self.processes() == []
        assert holders(self.folder) == []
        assert holders(self.folder, "ports") == []


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("RAYLANE_RUNTIME", str(tmp_path))
    for name, seconds in (("REPORT_EVERY_S", 0.1), ("GPU_CHECK_EVERY_S", 0.1), ("STOP_GRACE_S", 0.5)):
        monkeypatch.setattr(replica_module, name, seconds)
    monkeypatch.setattr(seated_module, "HEALTH_EVERY_S", 0.1)
    made = Bench(runtime_folder())
    yield made
    left = made.processes()
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == [], "processes left behind"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    def set_to(name: str, seconds: float) -> None:
        module = replica_module if hasattr(replica_module, name) else seated_module
        monkeypatch.setattr(module, name, seconds)

    return set_to


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s} s"
        await asyncio.sleep(0.02)


async def tell(endpoint: Endpoint, **changes: Any) -> dict[str, int]:
    """Change how the fake engine behaves; what it counts."""
    async with aiohttp.ClientSession() as session, session.post(f"{endpoint.url}/fake", json=changes) as answer:
        counted: dict[str, int] = await answer.json(content_type=None)
        return counted


async def stream(endpoint: Endpoint, events: int, each_s: float) -> bytes:
    """One stream straight from the engine."""
    body = {"model": "tiny", "stream": True, "fake": {"events": events, "each_s": each_s}}
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{endpoint.url}/v1/completions", json=body, headers=headers) as answer,
    ):
        return await answer.read()


def open_stream(endpoint: Endpoint) -> "asyncio.Task[bytes]":
    """A stream that goes on until the engine is told that it is enough."""
    return asyncio.create_task(stream(endpoint, 10_000, 0.05))


async def keep_polling(directory: Directory, gateway: str) -> None:
    """A gateway that applies every table at once."""
    seen = Table("", 0, False, (), ())
    while True:
        seen = await directory.poll(gateway, seen.epoch, seen.version, 2.0, {})


# Start.


async def test_it_is_announced_after_a_token_and_not_before(bench: Bench) -> None:
    engine = FakeKind(listen_after_s=0.2, well_after_s=0.3, token_first_s=0.6)
    async with bench.started(engine):
        assert bench.directory.states == [ReplicaState.STARTING, ReplicaState.READY]
        ready = bench.directory.reports[-1]
        assert ready.started_s is not None
        assert ready.started_s > 1.1
        assert (ready.engine_kind, ready.gpu_uuids, ready.placement) == ("fake", ("GPU-0",), "the first one")
        assert ready.engine_pid in bench.processes()
        assert log_tail(Path(ready.log_path)).startswith("fake engine listens")
    bench.assert_nothing_left()


async def test_while_it_starts_the_directory_hears_of_it_and_gateways_get_no_endpoint(bench: Bench) -> None:
    replica = bench.replica(FakeKind(well_after_s=1.0))
    starting = asyncio.create_task(replica.start())
    await until(lambda: len(bench.directory.reports) > 4)
    table = await bench.directory.table()
    assert (table.models, table.endpoints) == (("tiny",), ())
    await starting
    assert (await bench.endpoint()).model == "tiny"
    await replica.close()


async def test_the_endpoint_has_a_key_of_its_own_that_the_engine_asks_for(bench: Bench) -> None:
    async with bench.started():
        endpoint = await bench.endpoint()
        assert len(endpoint.api_key) >= 32
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{endpoint.url}/v1/completions", json={"model": "tiny"}) as answer,
        ):
            assert answer.status == 401
        assert b"[DONE]" in await stream(endpoint, 2, 0.0)


async def test_the_supervisor_holds_the_lease_while_the_engine_runs(bench: Bench) -> None:
    async with bench.started():
        assert [(holder.resource, holder.owner) for holder in holders(bench.folder)] == [("GPU-0", bench.id)]
        assert len(holders(bench.folder, "ports")) == 1
    bench.assert_nothing_left()


async def test_an_engine_that_cannot_load_is_explained_and_leaves_nothing(bench: Bench) -> None:
    replica = bench.replica(FakeKind(fail_with="RuntimeError: weights are missing"))
    with pytest.raises(EngineFailed, match=r"(?s)ended before it was ready \(exit status 3\).*weights are missing"):
        await replica.start()
    bench.assert_nothing_left()
    assert (await bench.directory.snapshot()).replicas == ()


async def test_an_engine_that_gives_no_token_in_time_is_stopped(bench: Bench) -> None:
    replica = bench.replica(FakeKind(well_after_s=600, child=True), engine={"start_timeout_s": 0.6})
    with pytest.raises(EngineFailed, match="gave no token within 1 s"):
        await replica.start()
    bench.assert_nothing_left()


async def test_an_engine_that_is_well_and_hangs_on_its_first_token_is_stopped_in_time(bench: Bench) -> None:
    replica = bench.replica(FakeKind(manner={"hang": True}), engine={"start_timeout_s": 1.0})
    with pytest.raises(EngineFailed, match="token"):
        await asyncio.wait_for(replica.start(), 20.0)
    bench.assert_nothing_left()


@pytest.mark.parametrize(
    "manner",
    [
        pytest.param({"status": 500}, id="an error"),
        pytest.param({"body": "{}"}, id="an answer without usage"),
        pytest.param({"body": "no JSON"}, id="an answer that is no JSON"),
        pytest.param({"die": "before_head"}, id="a broken connection"),
    ],
)
async def test_an_engine_that_answers_wrongly_is_explained_and_leaves_nothing(
    bench: Bench, manner: dict[str, Any]
) -> None:
    replica = bench.replica(FakeKind(manner=manner))
    with pytest.raises(EngineFailed, match="could not generate a token"):
        await asyncio.wait_for(replica.start(), 20.0)
    bench.assert_nothing_left()


async def test_without_free_gpus_it_fails_with_the_reason(bench: Bench) -> None:
    held = [bench.lease(), bench.lease()]
    try:
        with pytest.raises(FailedError, match="none is free"):
            await bench.replica(FakeKind()).start()
        assert bench.processes() == []
    finally:
        for lease in held:
            lease.close()


async def test_a_start_that_is_cancelled_leaves_nothing(bench: Bench) -> None:
    starting = asyncio.create_task(bench.replica(FakeKind(well_after_s=600, child=True)).start())
    await until(lambda: len(bench.processes()) == 2)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    bench.assert_nothing_left()


async def test_it_starts_without_a_directory_and_is_announced_when_there_is_one(bench: Bench) -> None:
    bench.directory.away = True
    async with bench.started():
        assert (await bench.directory.table()).endpoints == ()
        bench.directory.away = False
        await until(lambda: bool(bench.directory.reports))
        assert (await bench.endpoint()).replica_id == bench.id


# Running.


async def test_it_reports_the_engines_load(bench: Bench) -> None:
    async with bench.started():
        endpoint = await bench.endpoint()
        streams = [open_stream(endpoint) for _ in range(3)]
        await until(lambda: bench.directory.reports[-1].load.running == 3)
        await tell(endpoint, enough=True)
        sent = sum(text.count(b"data: {") for text in await asyncio.gather(*streams))
        await until(lambda: bench.directory.reports[-1].load.running == 0)
        assert (bench.directory.reports[-1].load.output_tokens_total or 0) >= sent >= 3


async def test_a_killed_engine_is_noticed_withdrawn_and_cleaned_up(bench: Bench) -> None:
    async with bench.started(FakeKind(child=True)) as replica:
        closed = asyncio.create_task(replica.closed_after_death())
        os.kill(bench.directory.reports[-1].engine_pid or 0, signal.SIGKILL)
        await asyncio.wait_for(closed, 20.0)
        assert replica.cause is not None
        assert "died (exit status -9)" in replica.cause
        assert "fake engine listens" in replica.cause
        assert (await bench.directory.table()).endpoints == ()
        bench.assert_nothing_left()


async def test_an_engine_that_says_it_is_not_well_is_given_up(bench: Bench) -> None:
    async with bench.started() as replica:
        await tell(await bench.endpoint(), health_status=503)
        await asyncio.wait_for(replica.closed_after_death(), 20.0)
        assert "says it is not well" in (replica.cause or "")


async def test_an_engine_that_is_stopped_in_its_tracks_is_given_up(
    bench: Bench, short: Callable[[str, float], None]
) -> None:
    short("HEALTH_TIMEOUT_S", 0.3)
    short("SILENT_FOR_S", 0.6)
    async with bench.started() as replica:
        os.kill(bench.directory.reports[-1].engine_pid or 0, signal.SIGSTOP)
        await asyncio.wait_for(replica.closed_after_death(), 20.0)
        assert "silent" in (replica.cause or "")
        bench.assert_nothing_left()


async def test_an_engine_that_runs_requests_and_gives_no_token_is_given_up(
    bench: Bench, short: Callable[[str, float], None]
) -> None:
    short("STALLED_FOR_S", 0.8)
    async with bench.started() as replica:
        endpoint = await bench.endpoint()
        waiting = asyncio.create_task(stream(endpoint, 1, 600.0))
        await asyncio.wait_for(replica.closed_after_death(), 20.0)
        assert "gave no token" in (replica.cause or "")
        with suppress(aiohttp.ClientError):
            await waiting


async def test_a_slow_but_steady_engine_is_left_alone(bench: Bench, short: Callable[[str, float], None]) -> None:
    short("STALLED_FOR_S", 3.0)
    async with bench.started() as replica:
        assert b"[DONE]" in await stream(await bench.endpoint(), 5, 0.8)
        assert replica.cause is None


async def test_an_idle_engine_that_is_well_and_generates_nothing_any_more_is_given_up(
    bench: Bench, short: Callable[[str, float], None]
) -> None:
    """/health stays at 200; only the token it is asked for now and then tells."""
    short("PROBE_AFTER_IDLE_S", 0.2)
    async with bench.started() as replica:
        await tell(await bench.endpoint(), generates=False)
        await asyncio.wait_for(replica.closed_after_death(), 20.0)
        assert "token" in (replica.cause or "")


async def test_an_idle_engine_that_is_well_and_hangs_on_tokens_is_given_up_like_a_stalled_one(
    bench: Bench, short: Callable[[str, float], None]
) -> None:
    short("PROBE_AFTER_IDLE_S", 0.2)
    short("STALLED_FOR_S", 0.5)
    short("SILENT_FOR_S", 0.5)
    async with bench.started() as replica:
        await tell(await bench.endpoint(), manner={"hang": True})
        await asyncio.wait_for(replica.closed_after_death(), 20.0)
        assert replica.cause is not None


NOT_NUMBERS = "vllm:num_requests_waiting NaN\nvllm:num_requests_running +Inf\nvllm:generation_tokens_total {}\n"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(NOT_NUMBERS.format("NaN"), id="nothing is a number"),
        pytest.param(NOT_NUMBERS.format("7.0"), id="the total is one and stands still"),
        pytest.param("vllm:num_requests_running 1\nvllm:generation_tokens_total NaN\n", id="a request and no total"),
    ],
)
async def test_an_engine_that_tells_no_numbers_is_left_alone(
    bench: Bench, short: Callable[[str, float], None], page: str
) -> None:
    """It may be at work: no stall is concluded, nor that it is ill from a token that it does not give in time."""
    for name in ("PROBE_AFTER_IDLE_S", "STALLED_FOR_S"):
        short(name, 0.2)
    async with bench.started() as replica:
        await tell(await bench.endpoint(), metrics_page=page, manner={"hang": True})
        seen = len(bench.directory.reports)
        await until(lambda: len(bench.directory.reports) > seen + 10)
        assert bench.directory.reports[-1].load.output_tokens_total in (None, 7.0)
        assert (replica.cause, bench.directory.reports[-1].sick) == (None, None)


async def test_a_gpu_that_cannot_be_read_once_does_not_end_the_reports(bench: Bench) -> None:
    async with bench.started():
        failures = iter([True])

        def read(uuids: tuple[str, ...]) -> tuple[GpuReading, ...]:
            if next(failures, False):
                raise RuntimeError("NVML: unknown error")
            return ()

        bench.read_gpus = read
        await asyncio.sleep(0.3)
        seen = len(bench.directory.reports)
        await until(lambda: len(bench.directory.reports) > seen + 2)


async def test_a_store_that_blocks_does_not_hold_up_the_reports(bench: Bench) -> None:
    """As Ray's does for a minute when the head is lost."""
    answers = threading.Event()

    def limits() -> None:
        answers.wait(20.0)

    config = ModelConfig.from_data({"source": "org/m"}, "test")
    replica = Replica(bench.id, "tiny", config, FakeKind(), bench, bench.directory, limits=limits)
    try:
        await asyncio.wait_for(replica.start(), 20)
        seen = len(bench.directory.reports)
        await until(lambda: len(bench.directory.reports) > seen + 2, within_s=10.0)
        assert bench.directory.reports[-1].state is ReplicaState.READY
    finally:
        answers.set()
        await asyncio.wait_for(replica.close(), 20)


async def test_a_metrics_page_that_is_an_error_page_does_not_end_the_reports(bench: Bench) -> None:
    async with bench.started():
        await tell(await bench.endpoint(), metrics_page="Internal Server Error")
        await asyncio.sleep(0.3)
        seen = len(bench.directory.reports)
        await until(lambda: len(bench.directory.reports) > seen + 2)


async def test_an_engine_that_does_not_get_on_with_what_waits_is_reported_sick(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "SICK_AFTER_S", 0.3)
    page = "vllm:num_requests_waiting 2.0\nvllm:num_requests_running 1.0\nvllm:generation_tokens_total {}\n"
    async with bench.started():
        endpoint = await bench.endpoint()
        await tell(endpoint, metrics_page=page.format(7.0))
        await until(lambda: "2 requests wait" in (bench.directory.reports[-1].sick or ""))
        await tell(endpoint, metrics_page=page.format(8.0))
        await until(lambda: bench.directory.reports[-1].sick is None)


async def test_it_comes_back_after_the_directory_was_away(bench: Bench) -> None:
    async with bench.started():
        bench.directory.away = True
        await asyncio.sleep(0.4)
        bench.directory.away = False
        seen = len(bench.directory.reports)
        await until(lambda: len(bench.directory.reports) > seen)


# Drain.


async def test_running_streams_finish_before_the_engine_stops(bench: Bench) -> None:
    async with bench.started() as replica:
        endpoint = await bench.endpoint()
        streams = [open_stream(endpoint) for _ in range(5)]
        await until(lambda: bench.directory.reports[-1].load.running == 5)
        draining = asyncio.create_task(replica.drain())
        await until(lambda: bench.directory.states[-1] is ReplicaState.DRAINING)
        await tell(endpoint, enough=True)
        await asyncio.wait_for(draining, 20.0)
        assert [text.endswith(b"[DONE]\n\n") for text in await asyncio.gather(*streams)] == [True] * 5
        assert bench.directory.states[-1] is ReplicaState.DRAINING
        bench.assert_nothing_left()


async def test_a_stream_longer_than_the_drain_may_last_is_cut_off(bench: Bench) -> None:
    async with bench.started(drain_timeout_s=0.6) as replica:
        endless = asyncio.create_task(stream(await bench.endpoint(), 10_000, 0.05))
        await until(lambda: bench.directory.reports[-1].load.running == 1)
        began_s = time.monotonic()
        await replica.drain()
        assert 0.5 < time.monotonic() - began_s < 20.0
        bench.assert_nothing_left()
        with pytest.raises(aiohttp.ClientError):
            await endless


async def test_the_engine_runs_until_every_gateway_knows_that_it_drains(bench: Bench) -> None:
    async with bench.started() as replica:
        endpoint = await bench.endpoint()
        quick = asyncio.create_task(keep_polling(bench.directory, "quick"))
        before = await bench.directory.poll("slow", "", 0, 0.0, {})  # a gateway busy with something else for a while
        draining = asyncio.create_task(replica.drain())
        await asyncio.sleep(1.0)
        assert not draining.done()
        assert b"[DONE]" in await stream(endpoint, 1, 0.0)  # what the slow gateway still sends is served
        news = await bench.directory.poll("slow", before.epoch, before.version, 0.0, {})
        assert (news.endpoints, news.draining) == ((), (bench.id,))
        await bench.directory.poll("slow", news.epoch, news.version, 0.0, {})
        await asyncio.wait_for(draining, 20.0)
        quick.cancel()


async def test_a_gateway_that_never_answers_is_waited_for_only_so_long(
    bench: Bench, short: Callable[[str, float], None]
) -> None:
    short("GATEWAYS_WAIT_S", 0.3)
    async with bench.started() as replica:
        await bench.directory.poll("deaf", "", 0, 0.0, {})
        await asyncio.wait_for(replica.drain(), 20.0)
        bench.assert_nothing_left()


async def test_a_drain_without_a_directory_still_lets_streams_finish(bench: Bench) -> None:
    async with bench.started() as replica:
        endpoint = await bench.endpoint()
        running = open_stream(endpoint)
        await until(lambda: bench.directory.reports[-1].load.running == 1)
        bench.directory.away = True
        draining = asyncio.create_task(replica.drain())
        await asyncio.sleep(0.5)
        await tell(endpoint, enough=True)
        await asyncio.wait_for(draining, 20.0)
        assert (await running).endswith(b"[DONE]\n\n")
        bench.assert_nothing_left()


async def test_a_drain_with_a_directory_that_never_answers_ends(
    bench: Bench, short: Callable[[str, float], None]
) -> None:
    short("GATEWAYS_WAIT_S", 0.3)
    short("TELL_TIMEOUT_S", 0.3)
    async with bench.started(drain_timeout_s=0.2) as replica:
        bench.directory.report_gate.clear()
        bench.directory.withdraw_takes_s = 600.0
        await asyncio.wait_for(replica.drain(), 20.0)
        bench.assert_nothing_left()


async def test_a_drain_ends_soon_when_the_engine_dies_meanwhile(bench: Bench) -> None:
    async with bench.started() as replica:
        running = asyncio.create_task(stream(await bench.endpoint(), 10_000, 0.05))
        await until(lambda: bench.directory.reports[-1].load.running == 1)
        draining = asyncio.create_task(replica.drain())
        await asyncio.sleep(0.3)
        os.kill(bench.directory.reports[-1].engine_pid or 0, signal.SIGKILL)
        await asyncio.wait_for(draining, 20.0)
        bench.assert_nothing_left()
        with pytest.raises(aiohttp.ClientError):
            await running


async def test_a_drain_during_an_error_page_of_metrics_still_stops_the_engine(bench: Bench) -> None:
    async with bench.started(drain_timeout_s=1.0) as replica:
        await tell(await bench.endpoint(), metrics_page="Internal Server Error")
        await asyncio.wait_for(replica.drain(), 20.0)
        bench.assert_nothing_left()


async def test_a_dead_engine_is_not_drained(bench: Bench) -> None:
    async with bench.started() as replica:
        os.kill(bench.directory.reports[-1].engine_pid or 0, signal.SIGKILL)
        await replica.closed_after_death()
        await asyncio.wait_for(replica.drain(), 10.0)
        assert ReplicaState.DRAINING not in bench.directory.states


async def test_draining_while_the_engine_loads_stops_it_and_fails_the_start(bench: Bench) -> None:
    replica = bench.replica(FakeKind(well_after_s=600, child=True))
    starting = asyncio.create_task(replica.start())
    await until(lambda: len(bench.processes()) == 2)
    await asyncio.wait_for(replica.drain(), 20.0)
    with pytest.raises(FailedError):
        await asyncio.wait_for(starting, 20.0)
    bench.assert_nothing_left()


async def test_draining_before_the_engine_is_started_starts_none(bench: Bench) -> None:
    """The start hangs on its first report to the directory, between lease and engine."""
    bench.directory.report_gate.clear()
    replica = bench.replica(FakeKind())
    starting = asyncio.create_task(replica.start())
    await until(lambda: bool(bench.directory.reports))
    await asyncio.wait_for(replica.drain(), 20.0)
    bench.directory.report_gate.set()
    try:
        with pytest.raises(FailedError):
            await asyncio.wait_for(starting, 20.0)
        bench.assert_nothing_left()
    finally:
        await replica.close()


async def test_draining_before_the_lease_is_taken_gives_it_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()
    take = bench.lease

    def late() -> Lease:
        asked.set()
        go_on.wait(20.0)
        return take()

    monkeypatch.setattr(bench, "lease", late)
    replica = bench.replica(FakeKind())
    starting = asyncio.create_task(replica.start())
    await until(asked.is_set)
    await replica.drain()
    go_on.set()
    with pytest.raises(FailedError, match="stopped while it started"):
        await starting
    bench.assert_nothing_left()


async def test_a_start_cancelled_while_the_lease_is_taken_gives_it_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on, taken = threading.Event(), threading.Event(), threading.Event()
    take = bench.lease

    def late() -> Lease:
        asked.set()
        go_on.wait(20.0)
        lease = take()
        taken.set()
        return lease

    monkeypatch.setattr(bench, "lease", late)
    starting = asyncio.create_task(bench.replica(FakeKind()).start())
    await until(asked.is_set)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    go_on.set()
    await until(lambda: taken.is_set() and holders(bench.folder) == [])
    bench.assert_nothing_left()


async def test_a_replica_that_drains_is_never_announced_as_ready_afterwards(bench: Bench) -> None:
    """Its engine gives the first token while the drain waits for a slow directory."""
    bench.directory.withdraw_takes_s = 1.2
    replica = bench.replica(FakeKind(well_after_s=0.6))
    starting = asyncio.create_task(replica.start())
    await until(lambda: len(bench.processes()) == 1)
    await replica.drain()
    with pytest.raises(FailedError):
        await asyncio.wait_for(starting, 20.0)
    assert ReplicaState.READY not in bench.directory.states
    seen = len(bench.directory.reports)
    await asyncio.sleep(0.4)
    assert len(bench.directory.reports) == seen
    bench.assert_nothing_left()


async def test_closing_twice_and_after_a_drain_is_harmless(bench: Bench) -> None:
    async with bench.started() as replica:
        await replica.drain()
        await replica.close()
        await replica.close()
        bench.assert_nothing_left()


async def test_two_replicas_of_a_host_share_nothing(bench: Bench, tmp_path: Path) -> None:
    one, two = FakeKind(), FakeKind()
    other = Bench(bench.folder)
    async with bench.started(one), other.started(two):
        assert one.seat is not None
        assert two.seat is not None
        assert {one.seat.gpu_uuids, two.seat.gpu_uuids} == {("GPU-0",), ("GPU-1",)}
        assert {one.seat.port, *one.seat.inner_ports}.isdisjoint({two.seat.port, *two.seat.inner_ports})
        assert one.seat.api_key != two.seat.api_key
        assert one.seat.log_path != two.seat.log_path


# What the engine holds, and where it runs.


async def test_an_engine_on_a_gpu_that_it_did_not_lease_is_reported_and_alarmed(bench: Bench) -> None:
    bench.held = lambda uuids: (HeldGpu("GPU-1", "0000:41:00.0"),)
    async with bench.started():
        await until(lambda: bench.directory.reports[-1].gpu_problem is not None)
        told = await bench.report()
        assert told.held_gpus == (HeldGpu("GPU-1", "0000:41:00.0"),)
        assert told.gpu_problem == (
            "the engine is on GPU-1 (0000:41:00.0), which it did not lease; the engine is not on GPU-0, which it leased"
        )
        assert bench.alarms[0] is True
        bench.held = lambda uuids: (HeldGpu("GPU-0", "0000:21:00.0"),)
        await until(lambda: bench.directory.reports[-1].gpu_problem is None)
        assert bench.alarms[-1] is False


async def test_what_nvml_does_not_tell_is_no_problem(bench: Bench) -> None:
    async with bench.started():
        await until(lambda: len(bench.alarms) > 1)
        assert (await bench.report()).gpu_problem is None
        assert set(bench.alarms) == {None}


async def test_a_check_that_fails_once_does_not_end_the_checks(bench: Bench) -> None:
    def fail(uuids: tuple[str, ...]) -> tuple[HeldGpu, ...] | None:
        raise RuntimeError("NVML: unknown error")

    bench.held = fail
    async with bench.started():
        await asyncio.sleep(0.3)
        assert bench.alarms == []
        bench.held = lambda uuids: None
        await until(lambda: bool(bench.alarms))


async def test_the_engine_runs_on_the_cpus_of_its_gpus_and_says_so(bench: Bench) -> None:
    one = min(os.sched_getaffinity(0))
    bench.wanted_cpus = (one,)
    async with bench.started():
        ready = await bench.report()
        assert ready.engine_cpus == str(one)
        assert os.sched_getaffinity(ready.engine_pid or 0) == {one}


# Move.


async def test_a_move_lets_streams_finish_and_serves_from_the_other_gpu(bench: Bench) -> None:
    async with bench.started() as replica:
        before = await bench.endpoint()
        streams = [open_stream(before) for _ in range(3)]
        await until(lambda: bench.directory.reports[-1].load.running == 3)
        moving = asyncio.create_task(replica.move())
        await until(lambda: bench.directory.states[-1] is ReplicaState.DRAINING)
        await tell(before, enough=True)
        said = await asyncio.wait_for(moving, 20.0)
        assert said == "moved from GPU-0 to GPU-1: elsewhere"
        assert [text.endswith(b"[DONE]\n\n") for text in await asyncio.gather(*streams)] == [True] * 3
        after = await bench.endpoint()
        assert (after.replica_id, after.url != before.url) == (bench.id, True)
        assert b"[DONE]" in await stream(after, 2, 0.0)
        assert [holder.resource for holder in holders(bench.folder)] == ["GPU-1"]
        assert len(holders(bench.folder, "ports")) == 1
        told = await bench.report()
        assert (told.gpu_uuids, told.placement, told.second_best) == (("GPU-1",), "elsewhere", True)
        ready, draining, starting = ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.STARTING
        assert bench.directory.states == [starting, ready, draining, starting, ready]
    bench.assert_nothing_left()


async def test_a_moved_engine_is_watched_like_the_first(bench: Bench) -> None:
    async with bench.started() as replica:
        await replica.move(("GPU-1",))
        os.kill((await bench.report()).engine_pid or 0, signal.SIGKILL)
        await asyncio.wait_for(replica.closed_after_death(), 20.0)
        bench.assert_nothing_left()


async def test_a_move_with_nothing_better_free_disturbs_nothing(bench: Bench) -> None:
    async with bench.started() as replica:
        before = await bench.endpoint()
        other = bench.lease()
        with pytest.raises(FailedError, match="not free"):
            await replica.move()
        other.close()
        assert await bench.endpoint() == before
        assert bench.directory.states == [ReplicaState.STARTING, ReplicaState.READY]


async def test_a_gpu_that_is_taken_while_it_drains_lets_it_serve_on_where_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.started() as replica:
        monkeypatch.setattr(bench, "check_move", lambda held, to: None)
        other = bench.lease()
        with pytest.raises(FailedError, match="not free"):
            await replica.move()
        other.close()
        assert (await bench.report()).gpu_uuids == ("GPU-0",)
        assert b"[DONE]" in await stream(await bench.endpoint(), 2, 0.0)


async def test_an_engine_that_does_not_start_elsewhere_serves_on_where_it_was(bench: Bench) -> None:
    engine = FakeKind()
    engine.fails_on = "GPU-1"
    async with bench.started(engine) as replica:
        with pytest.raises(EngineFailed, match="no kernel image"):
            await asyncio.wait_for(replica.move(), 20.0)
        assert (await bench.report()).gpu_uuids == ("GPU-0",)
        assert replica.cause is None
        assert [holder.resource for holder in holders(bench.folder)] == ["GPU-0"]
        assert b"[DONE]" in await stream(await bench.endpoint(), 2, 0.0)


async def test_an_engine_that_starts_neither_there_nor_where_it_was_is_given_up(bench: Bench) -> None:
    engine = FakeKind()
    async with bench.started(engine) as replica:
        engine.fails_on = "GPU"
        with pytest.raises(EngineFailed):
            await asyncio.wait_for(replica.move(), 20.0)
        await asyncio.wait_for(replica.closed_after_death(), 20.0)
        assert "could not go back" in (replica.cause or "")
        bench.assert_nothing_left()


async def test_a_drain_in_the_middle_of_a_move_ends_both_and_lets_streams_finish(bench: Bench) -> None:
    async with bench.started() as replica:
        endpoint = await bench.endpoint()
        running = open_stream(endpoint)
        await until(lambda: bench.directory.reports[-1].load.running == 1)
        await bench.directory.order_move(bench.id)
        await until(lambda: bench.directory.states[-1] is ReplicaState.DRAINING)
        draining = asyncio.create_task(replica.drain())
        await asyncio.sleep(0.3)
        await tell(endpoint, enough=True)
        await asyncio.wait_for(draining, 20.0)
        assert (await running).endswith(b"[DONE]\n\n")
        bench.assert_nothing_left()


async def test_a_drain_while_the_moved_engine_starts_leaves_nothing(bench: Bench) -> None:
    engine = FakeKind()
    async with bench.started(engine) as replica:
        engine.change(well_after_s=600)
        await bench.directory.order_move(bench.id)
        await until(lambda: bench.directory.reports[-1].gpu_uuids == ("GPU-1",) and len(bench.processes()) == 1)
        await asyncio.wait_for(replica.drain(), 20.0)
        bench.assert_nothing_left()


async def test_an_order_is_carried_out_once_and_its_outcome_reported(bench: Bench) -> None:
    async with bench.started():
        order = await bench.directory.order_move(bench.id)
        assert order is not None
        await until(lambda: bench.moved() == (order, MoveState.DONE))
        assert (await bench.report()).gpu_uuids == ("GPU-1",)
        await asyncio.sleep(0.5)
        assert bench.directory.states.count(ReplicaState.DRAINING) == 1
        again = await bench.directory.order_move(bench.id, ("GPU-1", "GPU-7"))
        assert again is not None
        await until(lambda: bench.moved() == (again, MoveState.REFUSED))
        assert "GPU-7" in ((await bench.report()).move or MoveResult("", MoveState.DONE)).message
        assert bench.directory.states[-1] is ReplicaState.READY
