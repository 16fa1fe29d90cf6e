"""One replica: takes its seat on the host, runs its engine, reports every second, moves when asked, drains at its end.

Plain Python; deployments/app.py wraps it as a Ray Serve deployment.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from raylane.cluster.errors import FailedError
from raylane.cluster.held_gpus import held_gpus_problem
from raylane.cluster.leases import Lease
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.directory.reports import MoveOrder, MoveResult, MoveState, ReplicaReport, ReplicaState
from raylane.deployments.engines.base import Engine, Seat
from raylane.deployments.engines.load import EngineLoad
from raylane.deployments.engines.seated import SeatedEngine
from raylane.deployments.replicas.surroundings import DirectoryLink, Host, lease_in_thread
from raylane.deployments.slo import SloLimits

log = logging.getLogger("raylane.replica")

REPORT_EVERY_S = 1.0
GPU_CHECK_EVERY_S = 10.0
STOP_GRACE_S = 5.0
GATEWAYS_WAIT_S = 10.0
TELL_TIMEOUT_S = 2.0


class Replica:
    """The life of one replica: start(), then closed_after_death() if the engine dies, or drain() when it is to stop.

    `on_gpu_check` is told after every check whether the engine is on other GPUs than the leased ones; None: not known.
    `limits` is asked again and again, in a thread, for the SLO that misses are counted against. It may block.
    """

    def __init__(
        self,
        replica_id: str,
        name: str,
        model: ModelConfig,
        engine: Engine,
        host: Host,
        directory: DirectoryLink,
        on_gpu_check: Callable[[bool | None], None] = lambda wrong: None,
        limits: Callable[[], SloLimits | None] = lambda: None,
    ) -> None:
        self._id = replica_id
        self._name = name
        self._model = model
        self._engine = engine
        self._limits = limits
        self._known_limits: SloLimits | None = None
        self._host = host
        self._directory = directory
        self._on_gpu_check = on_gpu_check
        self._lease: Lease | None = None
        self._seated: SeatedEngine | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._report = ReplicaReport(replica_id, name, ReplicaState.STARTING, None, None, host.address)
        self._stopping = False
        self._died = asyncio.Event()
        self.cause: str | None = None  # why the engine is dead; None while it lives

    async def start(self) -> None:
        """Bring the engine up and announce it. Raises EngineFailed with the end of its log, or FailedError."""
        try:
            await self._sit_down(await lease_in_thread(self._host.lease))
        except BaseException:
            await asyncio.shield(self.close())
            raise
        self._tasks.append(asyncio.create_task(self._keep_checking_gpus()))

    async def _sit_down(self, lease: Lease) -> None:
        """Start the engine on this lease and announce it."""
        began_s = time.monotonic()
        if self._lease is not None and self._lease is not lease:
            self._lease.close()
        self._lease = lease
        self._go_on()
        seat, cpus = self._seat(lease), await asyncio.to_thread(self._host.cpus, lease.choice.uuids)
        self._seated = seated = SeatedEngine(self._id, self._name, self._engine, seat, cpus)
        self._report = replace(
            self._report,
            state=ReplicaState.STARTING,
            url=None,
            api_key=None,
            load=EngineLoad(),
            gpus=(),
            gpu_uuids=lease.choice.uuids,
            placement=lease.choice.reason,
            second_best=lease.choice.second_best,
            engine_kind=self._engine.kind,
            log_path=str(seat.log_path),
            held_gpus=None,
            gpu_problem=None,
        )
        await self._tell()
        self._go_on()
        if not self._tasks:
            self._tasks += [asyncio.create_task(self._keep_reporting()), asyncio.create_task(self._keep_limits())]
        await seated.start(lease.lock_fds, self._model.engine.start_timeout_s)
        self._go_on()
        self._report = replace(
            self._report,
            state=ReplicaState.READY,
            url=seated.url,
            api_key=seat.api_key,
            engine_pid=seated.pid,
            engine_cpus=seated.cpus(),
            started_s=time.monotonic() - began_s,
        )
        await self._tell()
        self._go_on()
        self._watching = asyncio.create_task(self._keep_watching(seated))

    def _go_on(self) -> None:
        """Raises FailedError when Serve has stopped this replica while its engine was being started."""
        if self._stopping:
            raise FailedError(f"{self._id} was stopped while it started")

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

    async def _tell(self) -> int | None:
        """Report to the directory; the table version, or None while the directory is away."""
        try:
            receipt = await asyncio.wait_for(self._directory.tell(self._report), TELL_TIMEOUT_S)
        except Exception as error:  # an edge: whatever Ray raises, the next report comes in a second
            log.warning("%s: the directory did not take a report: %s", self._id, error)
            return None
        if receipt.order is not None:
            self._take_order(receipt.order)
        return receipt.version

    async def _keep_reporting(self) -> None:
        while True:
            try:
                await self._observe()
            except Exception:  # a loop's edge: without reports the directory would take a healthy replica out
                log.exception("%s: could not be observed", self._id)
            await self._tell()
            await asyncio.sleep(REPORT_EVERY_S)

    async def _keep_limits(self) -> None:
        """Apart from the reports: without the head Ray's store blocks for a minute, and who is silent is taken out."""
        while True:
            self._known_limits = await asyncio.to_thread(self._limits)
            await asyncio.sleep(REPORT_EVERY_S)

    async def _observe(self) -> None:
        if self._seated is not None and self._seated.ready:
            self._seated.limits = self._known_limits
            await self._seated.observe()
            gpus = await asyncio.to_thread(self._host.read_gpus, self._report.gpu_uuids)
            self._report = replace(self._report, load=self._seated.load, gpus=gpus, sick=self._seated.sick)

    async def _keep_checking_gpus(self) -> None:
        while self._report.gpu_uuids:
            await asyncio.sleep(GPU_CHECK_EVERY_S)
            try:
                await self._check_gpus()
            except Exception:  # a loop's edge: the next check comes
                log.exception("%s: what its engine holds could not be read", self._id)

    async def _check_gpus(self) -> None:
        """Compare what the engine's processes are on with the lease."""
        seated, leased = self._seated, self._report.gpu_uuids
        held = await asyncio.to_thread(self._host.held_gpus, leased, self._id)
        if seated is None or seated is not self._seated or not seated.ready:
            return  # stopped or moved meanwhile
        problem = held_gpus_problem(leased, held)
        if problem is not None and problem != self._report.gpu_problem:
            log.error("%s: %s", self._id, problem)
        self._report = replace(self._report, held_gpus=held, gpu_problem=problem)
        self._on_gpu_check(None if held is None else problem is not None)

    async def _keep_watching(self, seated: SeatedEngine) -> None:
        """Ends when the engine is dead; then the replica is to be thrown away."""
        self._give_up(await seated.until_sick())

    def _give_up(self, cause: str) -> None:
        log.error("%s: %s", self._id, cause)
        self.cause = cause
        self._died.set()

    def _take_order(self, order: MoveOrder) -> None:
        known = self._report.move is not None and self._report.move.order_id == order.order_id
        if not known and not self._stopping and (self._moving is None or self._moving.done()):
            self._moving = asyncio.create_task(self._obey(order))

    async def _obey(self, order: MoveOrder) -> None:
        """Move, and say in the reports what becomes of it."""

        def told(state: MoveState, message: str = "") -> None:
            self._report = replace(self._report, move=MoveResult(order.order_id, state, message))

        told(MoveState.RUNNING)
        try:
            before = await self._checked_move(order.gpu_uuids)
        except FailedError as error:
            told(MoveState.REFUSED, str(error))
            return
        try:
            told(MoveState.DONE, await self._move(before, order.gpu_uuids))
        except Exception as error:  # an edge: whatever it was, it must be told
            log.exception("%s: could not move", self._id)
            told(MoveState.FAILED, str(error))

    async def move(self, to: tuple[str, ...] | None = None) -> str:
        """Drain the engine and start it again on better GPUs of this host, or on exactly `to`; what was done, in words.

        Raises FailedError when nothing better is free (then nothing was disturbed), and when the engine does not start
        there: then it serves where it was, or is dead.
        """
        return await self._move(await self._checked_move(to), to)

    async def _checked_move(self, to: tuple[str, ...] | None) -> Lease:
        """The lease to move away from. Raises FailedError when there is no reason to move or no way."""
        if self._report.state is not ReplicaState.READY or self._lease is None or self._died.is_set():
            raise FailedError(f"{self._id} is not ready ({self._report.state}); only a ready replica moves")
        await asyncio.to_thread(self._host.check_move, self._lease, to)
        return self._lease

    async def _move(self, before: Lease, to: tuple[str, ...] | None) -> str:
        old = before.choice.uuids
        await self._finish_requests()
        await self._stop_engine(STOP_GRACE_S)
        try:
            lease = await lease_in_thread(lambda: self._host.lease_elsewhere(before, to))
            await self._sit_down(lease)
        except Exception as error:  # whatever kept it from starting there, it started here before
            await self._go_back(self._lease or before, old, error)
            raise
        return f"moved from {', '.join(old)} to {', '.join(lease.choice.uuids)}: {lease.choice.reason}"

    async def _go_back(self, now: Lease, old: tuple[str, ...], reason: Exception) -> None:
        """Serve on the old GPUs again; give up, for Serve to start another replica, when that fails too."""
        self._go_on()
        try:
            await self._stop_engine(0.0)
            lease = now
            if lease.choice.uuids != old:
                lease = await lease_in_thread(lambda: self._host.lease_elsewhere(now, old))
            await self._sit_down(lease)
        except Exception as error:
            self._give_up(f"could not move ({reason}) and could not go back ({error})")
            raise

    async def closed_after_death(self) -> None:
        """Returns when the engine has died and everything of it is gone."""
        await self._died.wait()
        await self.close()

    async def drain(self) -> None:
        """Take no new requests, finish the running ones (at most drain_timeout_s), stop the engine."""
        self._stopping = True
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.wait({self._moving})
        if not self._died.is_set():
            await self._finish_requests()
        await self.close()

    async def _finish_requests(self) -> None:
        """Have gateways send nothing more, and wait until the engine has nothing left."""
        ready = self._seated is not None and self._seated.ready
        self._report = replace(self._report, state=ReplicaState.DRAINING)
        if self._watching is not None:
            self._watching.cancel()
        if self._seated is None or not ready:
            return
        version = await self._tell()
        if version is not None:
            with suppress(Exception):  # an edge: without a directory there is nobody to wait for
                acknowledged = self._directory.acknowledged(version, GATEWAYS_WAIT_S)
                await asyncio.wait_for(acknowledged, GATEWAYS_WAIT_S + 1.0)
        await self._seated.until_idle(self._model.drain_timeout_s)

    async def _stop_engine(self, grace_s: float) -> None:
        if self._seated is not None:
            await self._seated.stop(grace_s)

    async def close(self) -> None:
        """Stop the engine at once and leave nothing behind."""
        self._stopping = True
        for task in (*self._tasks, self._watching, self._moving):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        with suppress(Exception):  # an edge: the directory notices by itself too
            await asyncio.wait_for(self._directory.withdraw(self._id), 2.0)
        await self._stop_engine(0.0 if self._died.is_set() else STOP_GRACE_S)
        if self._lease is not None:
            self._lease.close()
            self._lease = None
