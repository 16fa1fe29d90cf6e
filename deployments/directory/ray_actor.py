"""The directory as a Ray actor, and a link to it that finds it again after a restart."""

from collections.abc import Mapping
from typing import Any

import ray

from raylane.deployments.directory.deployed import deployed_names
from raylane.deployments.directory.directory import Directory
from raylane.deployments.directory.reports import ModelTraffic, Receipt, ReplicaReport, Snapshot, Table

NAMESPACE = "raylane"
NAME = "directory-2"  # the number is that of the protocol: a detached actor keeps the code it was started with
MAX_CALLS = 10_000  # long polls wait inside the actor


class DirectoryActor(Directory):
    """The directory as the actor runs it: it knows from its start what is deployed, also after its death."""

    def __init__(self) -> None:
        super().__init__(models=deployed_names())


def directory_actor() -> Any:
    """The cluster's directory, started on first use."""
    options = ray.remote(DirectoryActor).options(
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=MAX_CALLS,
    )
    return options.remote()


def running_directory() -> Any | None:
    """The cluster's directory, or None when raylane has not been deployed here."""
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return None


class RayDirectory:
    """Calls the directory actor; errors of Ray pass to the caller."""

    def __init__(self) -> None:
        self._actor = directory_actor()

    async def tell(self, report: ReplicaReport) -> Receipt:
        receipt: Receipt = await self._actor.tell.remote(report)
        return receipt

    async def withdraw(self, replica_id: str) -> None:
        await self._actor.withdraw.remote(replica_id)

    async def acknowledged(self, version: int, wait_s: float) -> bool:
        done: bool = await self._actor.acknowledged.remote(version, wait_s)
        return done

    async def poll(
        self, gateway_id: str, epoch: str, version: int, wait_s: float, traffic: Mapping[str, ModelTraffic]
    ) -> Table:
        table: Table = await self._actor.poll.remote(gateway_id, epoch, version, wait_s, dict(traffic))
        return table

    async def goodbye(self, gateway_id: str) -> None:
        await self._actor.goodbye.remote(gateway_id)

    async def wake(self, model: str) -> None:
        await self._actor.wake.remote(model)

    async def wait_for_wake(self, known: int, wait_s: float) -> tuple[int, tuple[str, ...]]:
        woken: tuple[int, tuple[str, ...]] = await self._actor.wait_for_wake.remote(known, wait_s)
        return woken

    async def snapshot(self) -> Snapshot:
        snapshot: Snapshot = await self._actor.snapshot.remote()
        return snapshot
