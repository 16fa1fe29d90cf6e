"""The gateway of one host: starts the worker processes, keeps them up, and carries the directory's table to them."""

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Protocol

from raylane.cluster.errors import FailedError
from raylane.deployments.config.deployment import GatewayConfig
from raylane.deployments.directory.directory import merge
from raylane.deployments.directory.reports import ModelTraffic, Table, add_traffic
from raylane.deployments.gateway.worker import WorkerSettings

log = logging.getLogger("raylane.gateway")

POLL_WAIT_S = 0.5  # each poll carries the traffic
LISTENS_WITHIN_S = 30.0
FINISH_WITHIN_S = 600.0
CORES_PER_PROCESS = 8
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
        return max(1, min(MOST_PROCESSES, cores // CORES_PER_PROCESS))
    return config.processes_per_host


class Worker:
    """One worker process as its parent sees it."""

    def __init__(self, process: asyncio.subprocess.Process, on_hold: Callable[[str], None]) -> None:
        self.process = process
        self._on_hold = on_hold
        self.applied: tuple[str, int] = ("", 0)
        self.traffic: dict[str, ModelTraffic] = {}
        self.listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def send(self, message: dict[str, Any]) -> None:
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def follow(self) -> None:
        """Take in what the worker says until it is gone."""
        assert self.process.stdout is not None  # noqa: S101
        problem = "gateway worker ended at its start"
        while line := await self.process.stdout.readline():
            said = json.loads(line)
            if "listening" in said:
                self.listening.set_result(said["listening"])
            elif "applied" in said:
                self.applied = (said["applied"][0], said["applied"][1])
            elif "traffic" in said:
                self.traffic = {model: ModelTraffic(**counters) for model, counters in said["traffic"].items()}
            elif "holding" in said:
                self._on_hold(said["holding"])
            else:
                problem = said["failed"]
        await self.process.wait()
        if not self.listening.done():
            self.listening.set_exception(FailedError(problem))


class Gateway:
    """start() listens; run() follows the directory and replaces dead workers until stop()."""

    def __init__(self, config: GatewayConfig, directory: DirectoryLink, cores: int | None = None) -> None:
        self._config = config
        self._directory = directory
        self._count = process_count(config, cores or len(os.sched_getaffinity(0)))
        self._id = f"gateway-{uuid.uuid4().hex[:8]}"
        self._workers: dict[int, Worker] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._table = Table("", 0, False, (), ())
        self._cold: set[str] = set()  # asked for, and no replica was ready
        self._tellings: set[asyncio.Task[None]] = set()
        self._ended_traffic: dict[str, ModelTraffic] = {}  # of workers that died
        self._metrics_folder = tempfile.mkdtemp(prefix="raylane-metrics-")

    async def start(self) -> None:
        """Start the workers. Raises FailedError when the port cannot be had."""
        try:
            for slot in range(self._count):
                await self._start_worker(slot)
        except BaseException:
            await self.stop(0.0)
            raise
        self._tasks += [asyncio.create_task(self._keep_following())]
        self._tasks += [asyncio.create_task(self._keep_up(slot)) for slot in range(self._count)]

    async def _start_worker(self, slot: int) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "raylane.deployments.gateway.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": self._metrics_folder},
        )
        worker = Worker(process, self._wake)
        self._workers[slot] = worker
        self._tasks.append(asyncio.create_task(worker.follow()))
        config = self._config
        settings = WorkerSettings(config.host, config.port, FINISH_WITHIN_S, config.hold_timeout_s, config.hold_limit)
        worker.send(asdict(settings))
        if self._table.version:
            worker.send({"table": self._table.to_json()})
        await asyncio.wait_for(asyncio.shield(worker.listening), LISTENS_WITHIN_S)

    async def _keep_up(self, slot: int) -> None:
        while True:
            worker = self._workers[slot]
            status = await worker.process.wait()
            log.error("gateway worker %s ended with status %s; starting another", worker.process.pid, status)
            ended = {model: _ended(traffic) for model, traffic in worker.traffic.items()}
            self._ended_traffic, worker.traffic = add_traffic((self._ended_traffic, ended)), {}
            with suppress(FailedError, TimeoutError):
                await self._start_worker(slot)
                continue
            await asyncio.sleep(1.0)

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
        lagging = [w for w in self._workers.values() if w.applied != newest and w.process.returncode is None]
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
        alive = next((w for w in self._workers.values() if w.process.returncode is None), None)
        if alive is not None:
            for model in started:
                alive.send({"cold_start": model})

    def _traffic(self) -> dict[str, ModelTraffic]:
        return add_traffic([self._ended_traffic, *(worker.traffic for worker in self._workers.values())])

    def check(self) -> None:
        """Raises FailedError when no worker is up."""
        if all(worker.process.returncode is not None for worker in self._workers.values()):
            raise FailedError("no gateway worker is up")

    async def stop(self, within_s: float) -> None:
        """Stop listening, let open streams end (at most `within_s`), end the workers."""
        for task in [*self._tasks, *self._tellings]:
            task.cancel()
        with suppress(Exception):  # an edge: the directory forgets silent gateways by itself
            await asyncio.wait_for(self._directory.goodbye(self._id), 2.0)
        for worker in self._workers.values():
            if worker.process.stdin is not None:
                worker.process.stdin.close()
        ends = [asyncio.create_task(worker.process.wait()) for worker in self._workers.values()]
        if ends:
            _, late = await asyncio.wait(ends, timeout=within_s)
            for worker in self._workers.values():
                if late and worker.process.returncode is None:
                    worker.process.kill()
            await asyncio.wait(ends)
        shutil.rmtree(self._metrics_folder, ignore_errors=True)


def _ended(traffic: ModelTraffic) -> ModelTraffic:
    """What is left to count of a worker that died: its open requests died with it."""
    counters = traffic.counters()
    return replace(counters, failed=counters.failed + traffic.open)
