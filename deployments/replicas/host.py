"""What a replica takes from its machine, wired up: leases over the real GPUs, link settings, NVML readings.

With $RAYLANE_TOPOLOGY the GPUs are those of a recording, for simulated engines: leases work as on real ones.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raylane.cluster.affinity import engine_cpus
from raylane.cluster.allreduce import AllReduceSettings, allreduce_settings
from raylane.cluster.choose import Choice, Refusal, choose
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.gpu_readings import GpuReading, NvmlReader
from raylane.cluster.held_gpus import GpuProcesses, HeldGpu, held_gpus, pids_are_the_hosts, read_gpu_processes
from raylane.cluster.hosts import Host as Hardware
from raylane.cluster.leases import Chooser, Lease, free_gpus, runtime_folder, take_lease
from raylane.cluster.moves import better_choice, exact_choice
from raylane.cluster.nvml import read_host
from raylane.cluster.probe_cache import with_measurements
from raylane.cluster.processes import processes_with
from raylane.cluster.recording import TOPOLOGY_VARIABLE, load_recording, recording_in_use
from raylane.deployments.engines.process import MARK

HOST_VARIABLE = "RAYLANE_HOST_NAME"  # which of its hosts this one plays; the first by default
NO_GPU = Choice((), "no GPU needed", second_best=False)
NO_LINKS = AllReduceSettings((), custom_all_reduce=True, reason="no GPU")


class CpuHost:
    """This machine for a replica without GPUs: it leases ports only, and has nowhere to move."""

    def __init__(self, owner: str, address: str) -> None:
        self.address = address
        self._owner = owner
        with only_failures():
            self._folder = runtime_folder()
        self.log_folder = self._folder / "logs"

    def lease(self) -> Lease:
        with only_failures():
            return take_lease(self._owner, (), lambda free: NO_GPU, self.address, self._folder)

    def check_move(self, held: Lease, to: tuple[str, ...] | None) -> None:
        raise FailedError("runs on no GPU: there is nothing to move")

    def lease_elsewhere(self, held: Lease, to: tuple[str, ...] | None) -> Lease:
        raise FailedError("runs on no GPU: there is nothing to move")

    def links(self, uuids: tuple[str, ...]) -> AllReduceSettings:
        return NO_LINKS

    def cpus(self, uuids: tuple[str, ...]) -> tuple[int, ...] | None:
        return None

    def read_gpus(self, uuids: tuple[str, ...]) -> tuple[GpuReading, ...]:
        return ()

    def held_gpus(self, uuids: tuple[str, ...], replica_id: str) -> tuple[HeldGpu, ...] | None:
        return None


def recorded_host(recording: Path) -> Hardware:
    """The host of a recording that this machine plays. FailedError when the file or the host is not there."""
    try:
        hosts = load_recording(recording)
    except UsageError as error:
        raise FailedError(f"{TOPOLOGY_VARIABLE}: {error}") from error
    name = os.environ.get(HOST_VARIABLE)
    for host in hosts:
        if name in (None, host.name):
            return host
    raise FailedError(
        f"{TOPOLOGY_VARIABLE}: {recording}: no host {name!r} ({HOST_VARIABLE}); "
        f"it has {', '.join(host.name for host in hosts) or 'none'}"
    )


def read_hardware(folder: Path) -> Hardware:
    """This machine's GPUs with what was measured of them, or those of the recording in use."""
    recording = recording_in_use()
    return with_measurements(folder, read_host()) if recording is None else recorded_host(recording)


class GpuHost:
    """This machine for a replica on `gpus` of its GPUs, placed by their links as they are known."""

    def __init__(self, owner: str, address: str, gpus: int) -> None:
        self.address = address
        self._owner = owner
        self._gpus = gpus
        with only_failures():
            self._folder = runtime_folder()
        self.log_folder = self._folder / "logs"
        self._recorded = recording_in_use() is not None
        self._readers: dict[tuple[str, ...], NvmlReader] = {}

    def lease(self) -> Lease:
        hardware = read_hardware(self._folder)
        return self._take(hardware, lambda free: choose(free, hardware, self._gpus), None)

    def check_move(self, held: Lease, to: tuple[str, ...] | None) -> None:
        hardware = read_hardware(self._folder)
        with only_failures():
            free = free_gpus((gpu.uuid for gpu in hardware.gpus), self._folder)
        careful = without_busy(hardware, elsewhere(hardware, held, to), held.choice.uuids, self._read_processes)
        choice = careful(free | set(held.choice.uuids))
        if isinstance(choice, Refusal):
            raise FailedError(f"does not move: {choice.reason}")

    def lease_elsewhere(self, held: Lease, to: tuple[str, ...] | None) -> Lease:
        hardware = read_hardware(self._folder)
        return self._take(hardware, elsewhere(hardware, held, to), held)

    def _take(self, hardware: Hardware, pick: Chooser, own: Lease | None) -> Lease:
        uuids = (gpu.uuid for gpu in hardware.gpus)
        careful = without_busy(hardware, pick, () if own is None else own.choice.uuids, self._read_processes)
        with only_failures():
            return take_lease(self._owner, uuids, careful, self.address, self._folder, own)

    def _read_processes(self) -> tuple[GpuProcesses, ...]:
        return () if self._recorded else read_gpu_processes()

    def links(self, uuids: tuple[str, ...]) -> AllReduceSettings:
        return allreduce_settings(read_hardware(self._folder), uuids)

    def cpus(self, uuids: tuple[str, ...]) -> tuple[int, ...] | None:
        if self._recorded:
            return None  # the CPUs of another machine
        hardware = read_hardware(self._folder)
        return engine_cpus((hardware.gpu(uuid) for uuid in uuids), os.sched_getaffinity(0))

    def read_gpus(self, uuids: tuple[str, ...]) -> tuple[GpuReading, ...]:
        if self._recorded:
            return ()
        if uuids not in self._readers:
            self._readers[uuids] = NvmlReader(frozenset(uuids))
        return tuple(self._readers[uuids].read())

    def held_gpus(self, uuids: tuple[str, ...], replica_id: str) -> tuple[HeldGpu, ...] | None:
        if self._recorded:
            return None  # simulated engines hold nothing
        tree = frozenset(processes_with(MARK, replica_id))
        return held_gpus(uuids, tree, read_gpu_processes(), host_pids=pids_are_the_hosts())


def elsewhere(hardware: Hardware, held: Lease, to: tuple[str, ...] | None) -> Chooser:
    """Choose better GPUs than those of a lease, whose own count as free, or exactly `to`."""
    now = held.choice.uuids

    def pick(free: frozenset[str]) -> Choice | Refusal:
        others = free - set(now)
        return better_choice(others, now, hardware) if to is None else exact_choice(others, now, to, hardware)

    return pick


def without_busy(
    hardware: Hardware, pick: Chooser, own: tuple[str, ...], read: Callable[[], Iterable[GpuProcesses]]
) -> Chooser:
    """The same choice among GPUs that no foreign process uses; a refusal names those processes. `own` are not busy.

    The processes are read when it is chosen: whoever waits for a turn must not go by what was true before.
    """

    def careful(unlocked: frozenset[str]) -> Choice | Refusal:
        foreign = {
            uuid: pids
            for uuid, pids in processes_by_gpu(hardware, read()).items()
            if pids and uuid in unlocked and uuid not in own
        }
        choice = pick(unlocked - foreign.keys())
        if isinstance(choice, Refusal) and foreign:
            used = "; ".join(f"{uuid} by process {', '.join(map(str, pids))}" for uuid, pids in foreign.items())
            return Refusal(f"{choice.reason}; in use by others: {used}")
        return choice

    return careful


def processes_by_gpu(hardware: Hardware, listed: Iterable[GpuProcesses]) -> dict[str, tuple[int, ...] | None]:
    """The processes on each GPU as they are listed now; where nothing is told now, as they were read before."""
    now = {each.gpu.uuid: tuple(sorted(each.pids)) for each in listed if each.pids is not None}
    return {gpu.uuid: now.get(gpu.uuid, gpu.processes) for gpu in hardware.gpus}


@contextmanager
def only_failures() -> Iterator[None]:
    """FailedError also where the runtime folder cannot be used: for a replica that is no wrong input."""
    try:
        yield
    except UsageError as error:
        raise FailedError(str(error)) from error
