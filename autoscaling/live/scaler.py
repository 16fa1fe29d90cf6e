"""The autoscaler's loop: look at all models, decide, ask Serve. Plain Python; ray_scaler.py makes it an actor.

Whatever it reads, it goes on: readings that are missing, late or wrong leave the counts as they are. It begins with the
counts that Serve has, and its own death changes none of them.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from raylane.autoscaling.decision import ReplicaMove
from raylane.autoscaling.live.decider import ClusterReading, Decided, Decider, FleetGpus
from raylane.autoscaling.live.idle import (
    EmptyHost,
    GpuWatch,
    IdleHost,
    Idleness,
    IdleReplica,
    Who,
    empty_from_json,
    empty_to_json,
    idle_hosts,
    idle_replicas,
    watch,
    watch_hosts,
    watches_from_json,
    watches_to_json,
)
from raylane.autoscaling.live.shadow import Ledger, gpus_held
from raylane.autoscaling.live.status import ReplicaChange, ScalerStatus, Trouble, model_statuses, newest
from raylane.cluster.hosts import Host
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.config.scaling import ScalingConfig
from raylane.deployments.directory.directory import SETTLES_AFTER_S
from raylane.deployments.directory.reports import Snapshot

log = logging.getLogger("raylane.autoscaler")

READ_TIMEOUT_S = 10.0
SHORTEST_PAUSE_S = 0.2
LOOK_FOR_WORK_EVERY_S = 5.0
KEEP_EVERY_S = 60.0
Write = Callable[[Mapping[str, Any]], None]
Measure = Callable[[ScalerStatus, Iterable[ReplicaChange]], None]


class ScalableCluster(Protocol):
    """What the loop asks of the cluster. Every call may fail or be late."""

    async def config(self) -> DeploymentConfig | None: ...
    async def snapshot(self) -> Snapshot: ...
    async def targets(self) -> Mapping[str, int]: ...
    async def fleet(self) -> FleetGpus: ...
    async def hosts(self) -> tuple[Host, ...]: ...
    async def scale(self, model: str, replicas: int) -> None: ...
    async def move(self, move: ReplicaMove) -> None: ...
    async def wait_for_wake(self, known: int, wait_s: float) -> tuple[int, tuple[str, ...]]: ...
    async def keep(self, text: str) -> None: ...
    async def kept(self) -> str | None:
        """What `keep` was last given, by this autoscaler or the one before it."""
        ...


class Scaler:
    """run() goes on for ever; tick() is one decision. `write` gets every change, and whatever is idle once."""

    def __init__(
        self,
        cluster: ScalableCluster,
        write: Write,
        measure: Measure = lambda status, changes: None,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._write = write
        self._measure = measure
        self._now_s = now_s
        self._wall_s = wall_s
        self._decider = Decider()
        self._epoch: str | None = None
        self._unsettled_until_s = float("-inf")
        self._said: dict[str, tuple[int, int, bool]] = {}
        self._named: set[tuple[Who, Idleness]] = set()
        self._watches: dict[str, GpuWatch] = {}
        self._empty: dict[str, EmptyHost] = {}
        self._ledger: Ledger | None = None
        self._ledger_s: float | None = None
        self._remembered = False
        self._kept_s = float("-inf")
        self.status = ScalerStatus(problem=Trouble.NOT_YET)

    async def run(self) -> None:
        """Decide at the configured pace, and at once when a model is asked for that has no replica."""
        known: int | None = None
        woken: tuple[str, ...] = ()
        while True:
            began_s = self._now_s()
            every_s = await self.tick(woken)
            await asyncio.sleep(SHORTEST_PAUSE_S)
            if known is None:  # the wakes of before: those requests are answered, or held still
                known, _ = await self._wait(0, 0.0)
            known, woken = await self._wait(known or 0, max(0.0, began_s + every_s - self._now_s()))

    async def _wait(self, known: int, wait_s: float) -> tuple[int | None, tuple[str, ...]]:
        try:
            return await asyncio.wait_for(self._cluster.wait_for_wake(known, wait_s), wait_s + READ_TIMEOUT_S)
        except Exception as error:  # an edge: while the directory is away the pace alone counts
            log.warning("the directory cannot be waited for: %s", error)
            await asyncio.sleep(min(1.0, wait_s))
            return None, ()

    async def tick(self, woken: Iterable[str] = ()) -> float:
        """One decision about all models; seconds until the next is due."""
        every_s = LOOK_FOR_WORK_EVERY_S
        try:
            config = await asyncio.wait_for(self._cluster.config(), READ_TIMEOUT_S)
            if config is None or config.scaling is None or not config.wants_scaling:
                self._rest()
                return every_s
            every_s = config.scaling.decide_every_s
            await self._look(config, config.scaling, tuple(woken))
        except Exception as error:  # the loop's edge: the counts stay as they are
            problem = f"{type(error).__name__}: {error}"
            if problem != self.status.problem:
                log.warning("nothing decided", exc_info=True)
            self._trouble(problem)
        return every_s

    def _rest(self) -> None:
        """Nothing to scale; begin anew when there is."""
        self._decider, self._said, self._ledger = Decider(), {}, None
        self.status = ScalerStatus(problem=Trouble.RESTS)
        self._measure(self.status, ())

    def _trouble(self, problem: Trouble | str) -> None:
        self.status = replace(self.status, problem=problem)
        self._measure(self.status, ())

    async def _look(self, config: DeploymentConfig, scaling: ScalingConfig, woken: tuple[str, ...]) -> None:
        await self._remember()
        reads = (self._cluster.snapshot(), self._cluster.targets(), self._cluster.fleet())
        snapshot, targets, fleet = await asyncio.wait_for(asyncio.gather(*reads), READ_TIMEOUT_S)
        if scaling.moves:
            fleet = fleet._replace(hosts=await asyncio.wait_for(self._cluster.hosts(), READ_TIMEOUT_S))
        self._watches = watch(self._watches, snapshot, self._wall_s())
        if not self._settled(snapshot):
            self._trouble(Trouble.DIRECTORY_RESTARTED)
            return
        self._empty = watch_hosts(self._empty, snapshot, fleet.gpus_of, self._wall_s())
        decided = self._decider.decide(config, ClusterReading(self._now_s(), snapshot, targets, fleet, woken))
        shadow = scaling.mode == "shadow"
        self._account(config, decided, shadow)
        changes = [] if shadow else await self._carry_out(decided)
        if shadow:
            changes = [self._said_now(name, targets[name], decided, applied=False) for name in decided.targets]
        self._tell(scaling, decided, dict(targets), [change for change in changes if change is not None])
        await self._keep()

    def _settled(self, snapshot: Snapshot) -> bool:
        """A directory that restarted knows some of the replicas: wait until all have had time to report."""
        if self._epoch not in (None, snapshot.epoch):
            self._unsettled_until_s = self._now_s() + SETTLES_AFTER_S
        self._epoch = snapshot.epoch
        return self._now_s() >= self._unsettled_until_s

    async def _carry_out(self, decided: Decided) -> list[ReplicaChange | None]:
        """Ask Serve for what differs, models that shrink first: their GPUs are what the others wait for."""
        have = {model.name: model.target for model in decided.seen.models}
        changes = []
        for name in sorted(decided.targets, key=lambda name: decided.targets[name].replicas - have[name]):
            applied = True
            if decided.targets[name].replicas != have[name]:
                applied = await self._scaled(name, decided.targets[name].replicas)
            changes.append(self._said_now(name, have[name], decided, applied))
        for move in decided.moves:
            try:
                await asyncio.wait_for(self._cluster.move(move), READ_TIMEOUT_S)
            except Exception as error:  # an edge: it is decided again
                log.warning("%s was not asked to move: %s", move.replica_id, error)
        return changes

    async def _scaled(self, name: str, replicas: int) -> bool:
        try:
            await asyncio.wait_for(self._cluster.scale(name, replicas), READ_TIMEOUT_S)
        except Exception as error:  # an edge: it is decided again
            log.warning("Serve did not take %s replicas of %s: %s", replicas, name, error)
            return False
        return True

    def _said_now(self, name: str, have: int, decided: Decided, applied: bool) -> ReplicaChange | None:
        """What to log: the first decision, then what differs from what is there. None when it was said already."""
        target = decided.targets[name]
        now = (have, target.replicas, applied)
        before = self._said.get(name)
        self._said[name] = now
        if before == now or (have == target.replicas and before is not None):
            return None
        return ReplicaChange(self._time(), name, have, target.replicas, str(target.reason), target.words(), applied)

    def _account(self, config: DeploymentConfig, decided: Decided, shadow: bool) -> None:
        """Add up what a shadow would have saved."""
        before_s, self._ledger_s = self._ledger_s, self._now_s()
        if not shadow:
            self._ledger = None
            return
        ledger = self._ledger or Ledger(self._wall_s())
        wanted = sum(target.replicas * config.models[name].gpus for name, target in decided.targets.items())
        for_s = 0.0 if before_s is None else self._ledger_s - before_s
        self._ledger = ledger.after(gpus_held(decided.seen, decided.specs), wanted, for_s)

    def _tell(
        self, scaling: ScalingConfig, decided: Decided, targets: dict[str, int], changes: Iterable[ReplicaChange]
    ) -> None:
        changes = tuple(changes)
        after = (self._wall_s(), scaling.idle_after_s, scaling.gpu_hour_usd)
        idle, hosts = idle_replicas(self._watches, *after), idle_hosts(self._empty, *after)
        for change in changes:
            self._write(change.to_json())
        self._name((*idle, *hosts))
        ledger = self._ledger
        self.status = ScalerStatus(
            policy=scaling.policy,
            mode=scaling.mode,
            decided=self._time(),
            models=model_statuses(decided, targets),
            changes=newest((*self.status.changes, *changes)),
            idle=idle,
            idle_hosts=hosts,
            shadow_since=None if ledger is None else iso(ledger.since_s),
            saved_gpu_hours=None if ledger is None else ledger.saved_gpu_hours(),
            saved_usd=None if ledger is None else ledger.saved_usd(scaling.gpu_hour_usd),
        )
        self._measure(self.status, changes)

    def _name(self, idle: Sequence[IdleReplica | IdleHost]) -> None:
        """Log what is idle, once for as long as it is for the same reason."""
        for one in idle:
            if (one.who, one.reason) not in self._named:
                log.warning("%s: %s", " ".join(name for _, name in one.who), one.problem)
                self._write({"time": self._time(), **dict(one.who), "detail": one.problem})
        self._named = {(one.who, one.reason) for one in idle}

    async def _remember(self) -> None:
        """Take up what the autoscaler before this one had kept: idle times and savings span its death."""
        if self._remembered:
            return
        text = await asyncio.wait_for(self._cluster.kept(), READ_TIMEOUT_S)
        self._remembered = True
        try:
            data = json.loads(text or "{}")
            self._watches = watches_from_json(data.get("watches", {}))
            self._empty = empty_from_json(data.get("empty_hosts", {}))
            self._ledger = Ledger(**data["ledger"]) if data.get("ledger") else None
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # of another version
            log.warning("what an autoscaler had kept cannot be read: %s", error)

    async def _keep(self) -> None:
        if self._now_s() - self._kept_s < KEEP_EVERY_S:
            return
        self._kept_s = self._now_s()
        data = {
            "watches": watches_to_json(self._watches),
            "empty_hosts": empty_to_json(self._empty),
            "ledger": None if self._ledger is None else asdict(self._ledger),
        }
        await asyncio.wait_for(self._cluster.keep(json.dumps(data)), READ_TIMEOUT_S)

    def _time(self) -> str:
        return iso(self._wall_s())


def iso(wall_s: float) -> str:
    """UTC, to the millisecond."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")
