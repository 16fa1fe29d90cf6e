"""Where every engine is: soft state fed by replicas each second and followed by gateways through long polls.

Plain Python on one event loop; ray_actor.py makes it a Ray actor. It may die at any time: replicas report again within
a second, and gateways keep their last table meanwhile.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

from raylane.deployments.directory.reports import (
    Endpoint,
    ModelTraffic,
    MoveOrder,
    Receipt,
    ReplicaReport,
    ReplicaState,
    Snapshot,
    Table,
)

REPORT_EXPIRES_S = 10.0  # a replica that stays silent this long is taken out
GATEWAY_EXPIRES_S = 7.0  # a gateway that stays silent this long is not waited for
SETTLES_AFTER_S = 3.0  # replicas report every second, so all have by then


class Directory:
    """Replicas and gateways of one cluster."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic, models: tuple[str, ...] = ()) -> None:
        self._now_s = now_s
        self._born_s = now_s()
        self._epoch = uuid.uuid4().hex
        self._version = 1
        self._models = models  # deployed, replicas or not
        self._reports: dict[str, ReplicaReport] = {}
        self._reported_s: dict[str, float] = {}
        self._orders: dict[str, MoveOrder] = {}  # that the replica has not begun
        self._gone: dict[str, float] = {}  # withdrawn replicas, so that a late report does not revive them
        self._acknowledged: dict[str, int] = {}
        self._gateway_seen_s: dict[str, float] = {}
        self._traffic: dict[str, dict[str, ModelTraffic]] = {}
        self._wakes = 0
        self._woken: dict[str, int] = {}  # model -> count of its last wake
        self._changed = asyncio.Condition()

    async def set_models(self, names: tuple[str, ...]) -> None:
        """The models that are deployed, replicas or not."""
        if names != self._models:
            self._models = names
            await self._bump()

    async def report(self, report: ReplicaReport) -> int:
        """Take a replica's report; the version of the table from which on gateways know of it."""
        if report.replica_id in self._gone:
            return self._version
        before = self._reports.get(report.replica_id)
        self._reports[report.replica_id] = report
        self._reported_s[report.replica_id] = self._now_s()
        if before is None or (before.state, before.url) != (report.state, report.url):
            await self._bump()
        return self._version

    async def tell(self, report: ReplicaReport) -> Receipt:
        """Take a replica's report; from when on gateways know of it, and what the replica is asked to do."""
        version = await self.report(report)
        order = self._orders.get(report.replica_id)
        if order is not None and report.move is not None and report.move.order_id == order.order_id:
            del self._orders[report.replica_id]
            order = None
        return Receipt(version, order)

    async def order_move(self, replica_id: str, gpu_uuids: tuple[str, ...] | None = None) -> str | None:
        """Ask a replica to move to these GPUs, or to better ones; the order's id, None when there is no such replica.

        The replica reads it with its next report and tells in its reports what became of it (`ReplicaReport.move`). A
        directory that restarts forgets what was not read yet.
        """
        if replica_id not in self._reports:
            return None
        waiting = self._orders.get(replica_id)
        if waiting is None or waiting.gpu_uuids != gpu_uuids:
            waiting = self._orders[replica_id] = MoveOrder(uuid.uuid4().hex, gpu_uuids)
        return waiting.order_id

    async def withdraw(self, replica_id: str) -> None:
        """Take a replica out for good: its engine died or has stopped."""
        self._gone[replica_id] = self._now_s()
        self._reported_s.pop(replica_id, None)
        self._orders.pop(replica_id, None)
        if self._reports.pop(replica_id, None) is not None:
            await self._bump()

    async def poll(
        self, gateway_id: str, epoch: str, version: int, wait_s: float, traffic: Mapping[str, ModelTraffic]
    ) -> Table:
        """The table as soon as it differs from what the gateway has applied, at the latest after `wait_s`."""
        self._gateway_seen_s[gateway_id] = self._now_s()
        await self._take_traffic(gateway_id, traffic)
        if epoch == self._epoch:
            self._acknowledged[gateway_id] = version
            async with self._changed:
                self._changed.notify_all()
        settled_when_asked = self._settled()
        deadline_s = self._now_s() + wait_s
        while epoch == self._epoch and version == self._version and settled_when_asked == self._settled():
            left_s = deadline_s - self._now_s()
            if left_s <= 0:
                break
            await self._wait(min(left_s, 0.5))
            await self._expire()
        self._gateway_seen_s[gateway_id] = self._now_s()
        return self._table()

    async def goodbye(self, gateway_id: str) -> None:
        """A gateway stops: nobody waits for it any more."""
        for known in (self._gateway_seen_s, self._acknowledged, self._traffic):
            known.pop(gateway_id, None)
        async with self._changed:
            self._changed.notify_all()

    async def acknowledged(self, version: int, wait_s: float) -> bool:
        """Wait until every live gateway has applied this version; False when `wait_s` ran out first."""
        deadline_s = self._now_s() + wait_s
        while True:
            alive = [g for g, seen_s in self._gateway_seen_s.items() if self._now_s() - seen_s < GATEWAY_EXPIRES_S]
            if all(self._acknowledged.get(gateway, 0) >= version for gateway in alive):
                return True
            if self._now_s() >= deadline_s:
                return False
            await self._wait(0.25)

    async def wake(self, model: str) -> None:
        """A gateway has begun to hold requests for this model: whoever waits for that is told at once."""
        self._wakes += 1
        self._woken[model] = self._wakes
        async with self._changed:
            self._changed.notify_all()

    async def wait_for_wake(self, known: int, wait_s: float) -> tuple[int, tuple[str, ...]]:
        """The count of wakes, as soon as it is not `known`, at the latest after `wait_s`; and the models woken since.

        Begin with 0. A directory that restarted counts anew: its smaller count comes back at once.
        """
        deadline_s = self._now_s() + wait_s
        while known == self._wakes and (left_s := deadline_s - self._now_s()) > 0:
            await self._wait(left_s)
        since = known if known <= self._wakes else 0
        return self._wakes, tuple(model for model, count in self._woken.items() if count > since)

    async def snapshot(self) -> Snapshot:
        """Everything known now."""
        await self._expire()
        now_s = self._now_s()
        return Snapshot(
            epoch=self._epoch,
            models=self._known_models(),
            replicas=tuple(self._reports.values()),
            report_age_s={replica: now_s - self._reported_s[replica] for replica in self._reports},
            gateways={gateway: dict(traffic) for gateway, traffic in self._traffic.items()},
            gateway_age_s={gateway: now_s - self._gateway_seen_s[gateway] for gateway in self._traffic},
        )

    async def _take_traffic(self, gateway_id: str, traffic: Mapping[str, ModelTraffic]) -> None:
        """Keep it; a model that was not held before wakes, in case the gateway's own word of it was lost."""
        before = self._traffic.get(gateway_id, {})
        self._traffic[gateway_id] = dict(traffic)
        for model, now in traffic.items():
            if now.held and not (model in before and before[model].held):
                await self.wake(model)

    def _table(self) -> Table:
        reports = self._reports.values()
        endpoints = tuple(_endpoint(report) for report in reports if report.state is ReplicaState.READY)
        draining = tuple(report.replica_id for report in reports if report.state is ReplicaState.DRAINING)
        return Table(self._epoch, self._version, self._settled(), self._known_models(), endpoints, draining)

    def _known_models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self._models, *(report.model for report in self._reports.values())]))

    def _settled(self) -> bool:
        return self._now_s() - self._born_s >= SETTLES_AFTER_S

    async def _expire(self) -> None:
        now_s = self._now_s()
        silent = [replica for replica in self._reports if now_s - self._reported_s[replica] > REPORT_EXPIRES_S]
        for replica in silent:
            del self._reports[replica], self._reported_s[replica]
            self._orders.pop(replica, None)
        for gateway in [g for g, seen_s in self._gateway_seen_s.items() if now_s - seen_s > 10 * GATEWAY_EXPIRES_S]:
            await self.goodbye(gateway)
        self._gone = {replica: at_s for replica, at_s in self._gone.items() if now_s - at_s < 10 * REPORT_EXPIRES_S}
        if silent:
            await self._bump()

    async def _bump(self) -> None:
        self._version += 1
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, timeout_s: float) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait(), timeout_s)
            except TimeoutError:
                return


def _endpoint(report: ReplicaReport) -> Endpoint:
    load = (report.load.waiting or 0) + (report.load.running or 0)
    return Endpoint(report.replica_id, report.model, report.url or "", report.api_key or "", load)


def merge(known: Table, news: Table) -> Table:
    """The table a gateway goes by: the news, and while the directory is unsettled also what was known before."""
    if news.settled:
        return news
    fresh = {endpoint.replica_id for endpoint in news.endpoints} | set(news.draining)
    kept = tuple(endpoint for endpoint in known.endpoints if endpoint.replica_id not in fresh)
    models = tuple(dict.fromkeys([*known.models, *news.models]))
    return replace(news, endpoints=news.endpoints + kept, models=models)
