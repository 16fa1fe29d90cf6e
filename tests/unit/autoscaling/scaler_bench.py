"""A cluster of plain values for the autoscaler's loop, and a bench that runs the loop on it."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from live_values import config, snapshot

from raylane.autoscaling.decision import ReplicaMove
from raylane.autoscaling.live.decider import FleetGpus
from raylane.autoscaling.live.scaler import Scaler
from raylane.autoscaling.live.status import ScalerStatus
from raylane.cluster.errors import FailedError
from raylane.cluster.hosts import Host
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory.reports import ModelTraffic, ReplicaReport, Snapshot
from raylane.deployments.engines.load import EngineLoad

FAST = {"decide_every_s": 1, "warm_up_s": 0}
HOUR_S = 3600.0


class FakeCluster:
    """A cluster whose readings the test writes; what was asked of it can be read. An exception stands for a failure."""

    def __init__(self, deployed: DeploymentConfig | None, targets: dict[str, int], gpus: int = 12) -> None:
        self.deployed: DeploymentConfig | Exception | None = deployed
        self.counts: dict[str, int] | Exception = dict(targets)
        self.seen: Snapshot | Exception = snapshot()
        self.gpus = gpus
        self.gpus_of: dict[str, int] = {}
        self.asked: list[tuple[str, int]] = []
        self.machines: tuple[Host, ...] = ()
        self.moved: list[ReplicaMove] = []
        self.refuses = False
        self.text: str | None = None
        self.clock_s = 1000.0
        self.wakes: list[tuple[int, tuple[str, ...]]] = []

    def now_s(self) -> float:
        return self.clock_s

    async def config(self) -> DeploymentConfig | None:
        return good(self.deployed)

    async def snapshot(self) -> Snapshot:
        return good(self.seen)

    async def targets(self) -> Mapping[str, int]:
        return dict(good(self.counts))

    async def fleet(self) -> FleetGpus:
        return FleetGpus(self.gpus, "L40S", gpus_of=self.gpus_of)

    async def hosts(self) -> tuple[Host, ...]:
        return self.machines

    async def scale(self, model: str, replicas: int) -> None:
        if self.refuses:
            raise FailedError("503")
        self.asked.append((model, replicas))
        good(self.counts)[model] = replicas

    async def move(self, move: ReplicaMove) -> None:
        self.moved.append(move)

    async def wait_for_wake(self, known: int, wait_s: float) -> tuple[int, tuple[str, ...]]:
        self.clock_s += 0.01
        if self.wakes:
            return self.wakes.pop(0)
        await asyncio.sleep(1e9)
        raise AssertionError

    async def keep(self, text: str) -> None:
        self.text = text

    async def kept(self) -> str | None:
        return self.text


T = TypeVar("T")


def good(value: T | Exception) -> T:
    if isinstance(value, Exception):
        raise value
    return value


class Bench:
    """A scaler on such a cluster, one second between its decisions."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.log: list[Mapping[str, Any]] = []
        self.measured: list[ScalerStatus] = []
        self.scaler = self.start()

    def start(self) -> Scaler:
        clock = self.cluster.now_s
        return Scaler(self.cluster, self.log.append, lambda status, _: self.measured.append(status), clock, clock)

    async def tick(self, times: int = 1, woken: Iterable[str] = (), every_s: float = 1.0) -> None:
        for _ in range(times):
            await self.scaler.tick(woken)
            self.cluster.clock_s += every_s

    async def loaded(self, seconds: int, rps: float, replicas: Callable[[], tuple[ReplicaReport, ...]]) -> None:
        """Requests of 500 prompt and 200 output tokens arrive and finish at this rate."""
        for _ in range(seconds):
            done = int(self.cluster.clock_s * rps)
            reports = replicas()
            loads = [
                EngineLoad(0, 5, 0.2, 500.0 * done, 200.0 * done),
                *[EngineLoad(0, 5, 0.2, 0.0, 0.0)] * len(reports),
            ]
            now = {"gw": {"m": ModelTraffic(received=done, completed=done, admitted=done)}}
            loaded = (replace(one, load=load) for one, load in zip(reports, loads, strict=False))
            self.cluster.seen = snapshot(*loaded, gateways=now)
            await self.tick()


def bench(targets: dict[str, int], scaling: dict[str, Any] | None = None, **models: dict[str, Any]) -> Bench:
    return Bench(FakeCluster(config({**FAST, **(scaling or {})}, **models), targets))
