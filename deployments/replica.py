"""One replica: takes its seat on the host, runs its engine, reports every second, drains before it stops.

Plain Python; deployments/app.py wraps it as a Ray Serve deployment.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import aiohttp

from raylane.cluster.allreduce import AllReduceSettings
from raylane.cluster.errors import FailedError
from raylane.cluster.gpu_readings import GpuReading
from raylane.cluster.leases import Lease
from raylane.deployments.config import ModelConfig
from raylane.deployments.engines.base import Engine, EngineLoad, Seat
from raylane.deployments.engines.client import EngineClient
from raylane.deployments.engines.process import EngineProcess
from raylane.deployments.reports import ReplicaReport, ReplicaState

log = logging.getLogger("raylane.replica")

REPORT_EVERY_S = 1.0
HEALTH_EVERY_S = 0.5
HEALTH_TIMEOUT_S = 5.0
SILENT_FOR_S = 30.0  # a server that answers /health this late is taken for dead
PROBE_AFTER_IDLE_S = 30.0  # an idle engine proves itself by a token this often
STALLED_FOR_S = 120.0  # requests running, no token for this long: the engine hangs
TOKEN_TIMEOUT_S = 300.0  # the first token may wait for a compilation
STOP_GRACE_S = 5.0
GATEWAYS_WAIT_S = 10.0
TELL_TIMEOUT_S = 2.0


class DirectoryLink(Protocol):
    """The directory as a replica sees it. Calls may fail while the directory restarts."""

    async def report(self, report: ReplicaReport) -> int: ...
    async def withdraw(self, replica_id: str) -> None: ...
    async def acknowledged(self, version: int, wait_s: float) -> bool: ...


@dataclass(frozen=True)
class Host:
    """What the replica needs from the machine it is on."""

    address: str
    log_folder: Path
    lease: Callable[[], Lease]  # takes GPUs and ports; raises FailedError
    links: Callable[[tuple[str, ...]], AllReduceSettings]  # what the links among the leased GPUs ask for
    read_gpus: Callable[[tuple[str, ...]], tuple[GpuReading, ...]]


class Replica:
    """The life of one replica: start(), then closed_after_death() if the engine dies, or drain() when it is to stop."""

    def __init__(
        self,
        replica_id: str,
        name: str,
        model: ModelConfig,
        engine: Engine,
        host: Host,
        directory: DirectoryLink,
    ) -> None:
        self._id = replica_id
        self._name = name
        self._model = model
        self._engine = engine
        self._host = host
        self._directory = directory
        self._process: EngineProcess | None = None
        self._client: EngineClient | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._progress_s = time.monotonic()
        self._report = ReplicaReport(replica_id, name, ReplicaState.STARTING, None, None, host.address)
        self._closed = False
        self._died = asyncio.Event()
        self.cause: str | None = None  # why the engine is dead; None while it lives

    async def start(self) -> None:
        """Bring the engine up and announce it. Raises EngineFailed with the end of its log, or FailedError."""
        try:
            await self._start()
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def _start(self) -> None:
        began_s = time.monotonic()
        lease = await self._take_lease()
        try:
            self._go_on()
            seat = self._seat(lease)
            self._process = EngineProcess(self._id, self._engine.launch(seat))
            self._report = replace(
                self._report,
                gpu_uuids=lease.choice.uuids,
                placement=lease.choice.reason,
                second_best=lease.choice.second_best,
                engine_kind=self._engine.kind,
                log_path=str(seat.log_path),
            )
            await self._tell()
            self._go_on()
            pid = await self._process.start(lease.lock_fds)
        finally:
            lease.close()  # the supervisor holds it now
        url = f"http://{seat.host}:{seat.port}"
        self._client = EngineClient(url, seat.api_key, self._name)
        await self._until_first_token()
        self._go_on()
        self._report = replace(
            self._report,
            state=ReplicaState.READY,
            url=url,
            api_key=seat.api_key,
            engine_pid=pid,
            started_s=time.monotonic() - began_s,
        )
        await self._tell()
        self._go_on()
        self._tasks = [asyncio.create_task(self._keep_reporting()), asyncio.create_task(self._keep_watching())]

    def _go_on(self) -> None:
        """Raises FailedError when Serve has stopped this replica while it was being constructed."""
        if self._closed or self._report.state is ReplicaState.DRAINING:
            raise FailedError(f"{self._id} was stopped while it started")

    async def _take_lease(self) -> Lease:
        taking = asyncio.create_task(asyncio.to_thread(self._host.lease))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(_give_back)  # the thread cannot be stopped
            raise

    def _seat(self, lease: Lease) -> Seat:
        return Seat(
            host=self._host.address,
            port=lease.ports.start,
            inner_ports=lease.ports[1:],
            gpu_uuids=lease.choice.uuids,
            api_key=secrets.token_urlsafe(32),
            log_path=self._host.log_folder / f"{self._name}-{self._id}.log",
            links=self._host.links(lease.choice.uuids),
        )

    async def _until_first_token(self) -> None:
        assert self._process is not None and self._client is not None  # noqa: S101, PT018 - set by start()
        limit_s = self._model.engine.start_timeout_s
        deadline_s = time.monotonic() + limit_s
        last_report_s = 0.0
        while not self._process.ended.is_set():
            if time.monotonic() > deadline_s:
                raise self._process.failure(f"gave no token within {limit_s:.0f} s")
            if time.monotonic() - last_report_s > REPORT_EVERY_S:
                last_report_s = time.monotonic()
                await self._tell()
            with suppress(aiohttp.ClientError, TimeoutError):
                if await self._client.health(HEALTH_TIMEOUT_S):
                    await self._first_token(min(TOKEN_TIMEOUT_S, max(0.0, deadline_s - time.monotonic())))
                    return
            await asyncio.sleep(0.2)
        raise self._process.failure("ended before it was ready")

    async def _first_token(self, limit_s: float) -> None:
        assert self._process is not None and self._client is not None  # noqa: S101, PT018
        token = asyncio.create_task(self._client.generate_token(limit_s))
        ended = asyncio.create_task(self._process.ended.wait())
        await asyncio.wait({token, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not token.done():
            token.cancel()
            raise self._process.failure("ended before its first token")
        try:
            token.result()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._process.failure(f"could not generate a token ({error or 'time limit'})") from error

    async def _tell(self) -> int | None:
        """Report to the directory; the table version, or None while the directory is away."""
        try:
            return await asyncio.wait_for(self._directory.report(self._report), TELL_TIMEOUT_S)
        except Exception as error:  # an edge: whatever Ray raises, the next report comes in a second
            log.warning("%s: the directory did not take a report: %s", self._id, error)
            return None

    async def _keep_reporting(self) -> None:
        while True:
            try:
                await self._observe()
            except Exception:  # a loop's edge: without reports the directory would take a healthy replica out
                log.exception("%s: could not be observed", self._id)
            await self._tell()
            await asyncio.sleep(REPORT_EVERY_S)

    async def _observe(self) -> None:
        load = await self._read_load()
        if load.output_tokens_total != self._report.load.output_tokens_total or not (load.running or load.waiting):
            self._progress_s = time.monotonic()
        gpus = await asyncio.to_thread(self._host.read_gpus, self._report.gpu_uuids)
        self._report = replace(self._report, load=load, gpus=gpus)

    async def _read_load(self) -> EngineLoad:
        assert self._client is not None  # noqa: S101
        try:
            return await self._client.load(self._engine.gauges, HEALTH_TIMEOUT_S)
        except (aiohttp.ClientError, TimeoutError):
            return EngineLoad()

    async def _keep_watching(self) -> None:
        """Ends when the engine is dead; then the replica is to be thrown away."""
        assert self._process is not None  # noqa: S101
        cause = await self._until_sick()
        log.error("%s: %s", self._id, cause)
        self.cause = cause
        self._died.set()

    async def _until_sick(self) -> str:
        assert self._process is not None and self._client is not None  # noqa: S101, PT018
        well_s = proven_s = time.monotonic()
        refused = tokenless = 0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.ended.wait(), HEALTH_EVERY_S)
                return str(self._process.failure("died"))
            try:
                if not await self._client.health(HEALTH_TIMEOUT_S):
                    return str(self._process.failure("says it is not well"))
                well_s, refused = time.monotonic(), 0
                if not self._report.load.running and well_s - proven_s > PROBE_AFTER_IDLE_S:
                    proven_s = well_s
                    problem = await self._token_problem()
                    tokenless = tokenless + 1 if problem else 0
                    if tokenless >= 2:
                        return str(self._process.failure(f"says it is well and gives no token ({problem})"))
                    well_s = time.monotonic()
            except TimeoutError:
                pass
            except aiohttp.ClientError as error:
                refused += 1
                if refused >= 2:
                    return str(self._process.failure(f"does not answer ({error})"))
            if time.monotonic() - well_s > SILENT_FOR_S:
                return str(self._process.failure(f"has been silent for {SILENT_FOR_S:.0f} s"))
            if time.monotonic() - self._progress_s > STALLED_FOR_S:
                return str(self._process.failure(f"has requests and gave no token for {STALLED_FOR_S:.0f} s"))

    async def _token_problem(self) -> str | None:
        assert self._client is not None  # noqa: S101
        try:
            await self._client.generate_token(STALLED_FOR_S)
        except TimeoutError:
            return f"time limit of {STALLED_FOR_S:.0f} s"
        except aiohttp.ClientError as error:
            return str(error)
        return None

    async def closed_after_death(self) -> None:
        """Returns when the engine has died and everything of it is gone."""
        await self._died.wait()
        await self.close()

    async def drain(self) -> None:
        """Take no new requests, finish the running ones (at most drain_timeout_s), stop the engine."""
        ready = self._report.state is ReplicaState.READY and not self._died.is_set()
        self._report = replace(self._report, state=ReplicaState.DRAINING)
        if ready:
            version = await self._tell()
            if version is not None:
                with suppress(Exception):  # an edge: without a directory there is nobody to wait for
                    acknowledged = self._directory.acknowledged(version, GATEWAYS_WAIT_S)
                    await asyncio.wait_for(acknowledged, GATEWAYS_WAIT_S + 1.0)
            await self._until_idle()
        await self.close()

    async def _until_idle(self) -> None:
        """Wait until the engine said three times in a row that it has nothing left."""
        assert self._process is not None  # noqa: S101
        deadline_s = time.monotonic() + self._model.drain_timeout_s
        calm = 0
        while calm < 3 and not self._process.ended.is_set() and time.monotonic() < deadline_s:
            load = await self._read_load()
            calm = calm + 1 if (load.waiting, load.running) == (0, 0) else 0
            await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Stop the engine at once and leave nothing behind."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        dead = self._died.is_set()
        with suppress(Exception):  # an edge: the directory notices by itself too
            await asyncio.wait_for(self._directory.withdraw(self._id), 2.0)
        if self._process is not None:
            await self._process.stop(0.0 if dead else STOP_GRACE_S)
        if self._client is not None:
            await self._client.close()


def _give_back(taking: asyncio.Task[Lease]) -> None:
    """Close a lease that came after its replica had given up waiting."""
    if not taking.cancelled() and taking.exception() is None:
        taking.result().close()
