"""What a replica needs around it: the machine it is on, and the directory."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from raylane.cluster.allreduce import AllReduceSettings
from raylane.cluster.gpu_readings import GpuReading
from raylane.cluster.held_gpus import HeldGpu
from raylane.cluster.leases import Lease
from raylane.deployments.directory.reports import Receipt, ReplicaReport


class DirectoryLink(Protocol):
    """The directory as a replica sees it. Calls may fail while the directory restarts."""

    async def tell(self, report: ReplicaReport) -> Receipt: ...
    async def withdraw(self, replica_id: str) -> None: ...
    async def acknowledged(self, version: int, wait_s: float) -> bool: ...


class Host(Protocol):
    """What a replica needs from the machine it is on. Leases and `check_move` raise FailedError with the reason."""

    @property
    def address(self) -> str: ...
    @property
    def log_folder(self) -> Path: ...
    def lease(self) -> Lease:
        """Take GPUs and ports."""
        ...

    def check_move(self, held: Lease, to: tuple[str, ...] | None) -> None:
        """Look whether `lease_elsewhere` would do now."""
        ...

    def lease_elsewhere(self, held: Lease, to: tuple[str, ...] | None) -> Lease:
        """Take better GPUs than those of an open lease, or exactly `to`; what both hold stays held."""
        ...

    def links(self, uuids: tuple[str, ...]) -> AllReduceSettings:
        """What the links among leased GPUs ask for."""
        ...

    def cpus(self, uuids: tuple[str, ...]) -> tuple[int, ...] | None:
        """The CPUs next to leased GPUs; None for no preference."""
        ...

    def read_gpus(self, uuids: tuple[str, ...]) -> tuple[GpuReading, ...]:
        """What leased GPUs do now."""
        ...

    def held_gpus(self, uuids: tuple[str, ...], replica_id: str) -> tuple[HeldGpu, ...] | None:
        """The GPUs that processes of the replica's engine are on; None where that is not known."""
        ...


async def lease_in_thread(take: Callable[[], Lease]) -> Lease:
    """The lease that `take` brings, without holding up the event loop. Given back if nobody waits for it any more."""
    taking = asyncio.create_task(asyncio.to_thread(take))
    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        taking.add_done_callback(_give_back)  # the thread cannot be stopped
        raise


def _give_back(taking: asyncio.Task[Lease]) -> None:
    if not taking.cancelled() and taking.exception() is None:
        taking.result().close()
