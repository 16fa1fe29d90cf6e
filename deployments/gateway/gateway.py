"""The gateway of one host: starts the worker processes, keeps them up, and carries the directory's table to them."""

import asyncio
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from raylane.cluster.errors import FailedError
from raylane.deployments.config.deployment import GatewayConfig
from raylane.deployments.directory.directory import merge
from raylane.deployments.directory.reports import ModelTraffic, Table, add_traffic
from raylane.deployments.gateway.listening import ListeningPort
from raylane.deployments.gateway.worker import WorkerSettings
from raylane.deployments.gateway.worker_process import WorkerProcess

log = logging.getLogger("raylane.gateway")

POLL_WAIT_S = 0.5  # each poll carries the traffic
LISTENS_WITHIN_S = 30.0
FIRST_TABLE_WITHIN_S = 5.0
FINISH_WITHIN_S = 600.0
CORES_PER_PROCESS = 8
FEWEST_PROCESSES = 2  # while one is replaced the other answers
MOST_PROCESSES = 8


class DirectoryLink(Protocol):
    """The directory as a gateway sees it. Calls may fail while the directory restarts."""

    async def poll(
        self, gateway_id: str, epoch: str, version: int, wait_s: float, traffic: Mapping[str, ModelTraffic]
    ) -> Table: ...
    async def wake(self, model: str) -> None: ...
    async def goodbye(self, gateway_id: str) -> None: ...


def process_count(config: GatewayConfig, cores: int) -> int:
    """Worker processes for a host with this many cores."""
    if config.processes_per_host == "auto":
        return max(FEWEST_PROCESSES, min(MOST_PROCESSES, cores // CORES_PER_PROCESS))
    return config.processes_per_host


class Gateway:
    """start() listens; run() follows the directory and replaces dead workers until stop().

    `cluster` is any name that tells this cluster from others on this host. The port is given up when no gateway has it
    and the process `host_pid` (the host's raylet) is gone.
    """

    def __init__(
        self,
        config: GatewayConfig,
        directory: DirectoryLink,
        cores: int | None = None,
        cluster: str = "",
        host_pid: int | None = None,
    ) -> None:
        self._config = config
        self._directory = directory
        self._count = process_count(config, cores or len(os.sched_getaffinity(0)))
        self._id = f"gateway-{uuid.uuid4().hex[:8]}"
        self._port = ListeningPort(config.host, config.port, cluster, self._id, host_pid or os.getppid())
        self._workers: dict[int, WorkerProcess] = {}
        self._spare: WorkerProcess | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._table = Table("", 0, False, (), ())
        self._cold: set[str] = set()  # asked for, and no replica was ready
        self._tellings: set[asyncio.Task[None]] = set()
        self._ended_traffic: dict[str, ModelTraffic] = {}  # of workers that died
        self._metrics_folder = tempfile.mkdtemp(prefix="raylane-metrics-")

    async def start(self) -> None:
        """Start the workers. Raises FailedError when the port cannot be had."""
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        try:
            try:
                await asyncio.to_thread(self._port.take)
            except OSError as error:
                raise FailedError(
                    f"gateway cannot listen on {host}:{self._config.port}: {error.strerror or error}"
                ) from error
            await self._read_first_table()
            async with asyncio.TaskGroup() as starts:
                for slot in range(self._count):
                    starts.create_task(self._start_worker(slot))
        except BaseException as error:
            self._port.leave(orderly=False)  # those of a gateway that died serve on
            await self.stop(0.0)
            raise (error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error) from None
        self._port.serving()
        self._tasks += [asyncio.create_task(self._keep_following()), asyncio.create_task(self._port.keep_held())]
        self._tasks += [asyncio.create_task(self._keep_up(slot)) for slot in range(self._count)]
        self._tasks += [asyncio.create_task(self._keep_spare())]

    async def _read_first_table(self) -> None:
        """So that no worker takes a request for a deployed model as one for none. Without a directory: later."""
        try:
            polled = self._directory.poll(self._id, "", 0, POLL_WAIT_S, {})
            self._table = await asyncio.wait_for(polled, FIRST_TABLE_WITHIN_S)
        except Exception as error:  # an edge: whatever Ray raises, it is asked again once the workers listen
            log.warning("the directory cannot be asked yet: %s", error)

    async def _start_worker(self, slot: int) -> None:
        """With the spare one, if there is one, which takes no time."""
        if self._spare is not None and self._spare.launched:
            worker, self._spare = self._spare, None
            self._workers[slot] = worker
        else:
            worker = self._workers[slot] = WorkerProcess(self._wake)
            await worker.launch(self._metrics_folder)
        settings = WorkerSettings(
            finish_within_s=FINISH_WITHIN_S,
            hold_timeout_s=self._config.hold_timeout_s,
            hold_limit=self._config.hold_limit,
            cors_origins=self._config.cors_origins,
            gateway_id=self._id,
            holder=self._port.holder,
            table=self._table.to_json() if self._table.version else None,
        )
        await worker.serve(self._port.sock, settings, LISTENS_WITHIN_S)

    async def _keep_up(self, slot: int) -> None:
        while True:
            worker = self._workers[slot]
            await worker.ended.wait()
            log.error("gateway worker %s ended; another takes its place", worker.pid)
            ended = {model: _ended(traffic) for model, traffic in worker.traffic.items()}
            self._ended_traffic, worker.traffic = add_traffic((self._ended_traffic, ended)), {}
            with suppress(FailedError, TimeoutError):
                await self._start_worker(slot)
                continue
            await asyncio.sleep(1.0)

    async def _keep_spare(self) -> None:
        while True:
            if self._spare is None or not self._spare.alive:
                self._spare = WorkerProcess(self._wake)
                await self._spare.launch(self._metrics_folder)
            await asyncio.sleep(0.5)

    async def _keep_following(self) -> None:
        while True:
            epoch, version = self._applied_by_all()
            try:
                news = await self._directory.poll(self._id, epoch, version, POLL_WAIT_S, self._traffic())
            except Exception as error:  # an edge: whatever Ray raises, the last table serves on
                log.warning("the directory cannot be asked, serving on by the last table: %s", error)
                await asyncio.sleep(0.5)
                continue
            before = (self._table.epoch, self._table.version, self._table.settled)
            self._table = merge(self._table, news)
            if before != (news.epoch, news.version, news.settled):
                for worker in self._workers.values():
                    worker.send({"table": self._table.to_json()})
                self._count_cold_starts()
            await self._until_applied()

    def _applied_by_all(self) -> tuple[str, int]:
        """What every worker has applied: the newest table, or nothing while one lags."""
        newest = (self._table.epoch, self._table.version)
        lagging = [w for w in self._workers.values() if w.applied != newest and w.alive]
        return ("", 0) if lagging else newest

    async def _until_applied(self) -> None:
        """Give the workers a moment: an acknowledgement counts for all of them."""
        for _ in range(50):
            if self._applied_by_all()[1]:
                return
            await asyncio.sleep(0.01)

    def _wake(self, model: str) -> None:
        """A worker has begun to hold requests for this model: the directory is told at once."""
        if not self._serves(model):
            self._cold.add(model)
        telling = asyncio.create_task(self._tell_wake(model))
        self._tellings.add(telling)
        telling.add_done_callback(self._tellings.discard)

    async def _tell_wake(self, model: str) -> None:
        try:
            await self._directory.wake(model)
        except Exception as error:  # an edge: whatever Ray raises, the next poll carries the held requests
            log.warning("the directory was not told that %s is asked for: %s", model, error)

    def _serves(self, model: str) -> bool:
        return any(endpoint.model == model for endpoint in self._table.endpoints)

    def _count_cold_starts(self) -> None:
        """Each once for this host: one worker counts it, and the metrics page adds the workers up."""
        started = {model for model in self._cold if self._serves(model)}
        self._cold -= started
        alive = next((w for w in self._workers.values() if w.alive), None)
        if alive is not None:
            for model in started:
                alive.send({"cold_start": model})

    def _traffic(self) -> dict[str, ModelTraffic]:
        return add_traffic([self._ended_traffic, *(worker.traffic for worker in self._workers.values())])

    def check(self) -> None:
        """Raises FailedError when no worker is up."""
        if not any(worker.alive for worker in self._workers.values()):
            raise FailedError("no gateway worker is up")

    async def stop(self, within_s: float) -> None:
        """Stop listening, let open streams end (at most `within_s`), end the workers."""
        for task in [*self._tasks, *self._tellings]:
            task.cancel()
        with suppress(Exception):  # an edge: the directory forgets silent gateways by itself
            await asyncio.wait_for(self._directory.goodbye(self._id), 2.0)
        if self._spare is not None:
            self._spare.discard()
        for worker in self._workers.values():
            worker.stop()
        self._port.leave(orderly=True)
        ends = [asyncio.create_task(worker.ended.wait()) for worker in self._workers.values()]
        if ends:
            await asyncio.wait(ends, timeout=within_s)
            for worker in self._workers.values():
                worker.kill()
            await asyncio.wait(ends)
        shutil.rmtree(self._metrics_folder, ignore_errors=True)


def _ended(traffic: ModelTraffic) -> ModelTraffic:
    """What is left to count of a worker that died: its open requests died with it."""
    counters = traffic.counters()
    return replace(counters, failed=counters.failed + traffic.open)
