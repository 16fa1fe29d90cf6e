"""What a replica takes from its machine, wired up: leases over the real GPUs, link settings, NVML readings.

With $RAYLANE_TOPOLOGY the GPUs are those of a recording, for simulated engines: leases work as on real ones.
"""

import os
from functools import cache
from pathlib import Path

from raylane.cluster.allreduce import AllReduceSettings, allreduce_settings
from raylane.cluster.choose import Choice, Refusal, choose
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.gpu_readings import GpuReading, NvmlReader
from raylane.cluster.hosts import Host as Hardware
from raylane.cluster.leases import Lease, runtime_folder, take_lease
from raylane.cluster.nvml import read_host
from raylane.cluster.probe_cache import with_measurements
from raylane.cluster.recording import load_recording
from raylane.deployments.replica import Host

TOPOLOGY_VARIABLE = "RAYLANE_TOPOLOGY"  # a recording to take GPUs from instead of NVML
HOST_VARIABLE = "RAYLANE_HOST_NAME"  # which of its hosts this one plays; the first by default
NO_GPU = Choice((), "no GPU needed", second_best=False)
NO_LINKS = AllReduceSettings((), custom_all_reduce=True, reason="no GPU")


def cpu_host(owner: str, address: str) -> Host:
    """A host for a replica without GPUs: it leases ports only."""
    folder = runtime_folder()

    def lease() -> Lease:
        return take_lease(owner, (), lambda free: NO_GPU, address, folder)

    return Host(address, folder / "logs", lease, links=lambda uuids: NO_LINKS, read_gpus=lambda uuids: ())


def recording_in_use() -> Path | None:
    """The recording whose GPUs stand for this machine's; None where the GPUs are real."""
    path = os.environ.get(TOPOLOGY_VARIABLE)
    return Path(path) if path else None


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


def gpu_host(owner: str, address: str, gpus: int) -> Host:
    """A host for a replica on `gpus` GPUs of this machine, placed by its links as they are known."""
    folder = runtime_folder()
    recording = recording_in_use()

    def hardware() -> Hardware:
        return with_measurements(folder, read_host()) if recording is None else recorded_host(recording)

    def lease() -> Lease:
        seen = hardware()
        busy = {gpu.uuid: gpu.processes for gpu in seen.gpus if gpu.processes}

        def pick(unlocked: frozenset[str]) -> Choice | Refusal:
            choice = choose(unlocked - busy.keys(), seen, gpus)
            foreign = {uuid: pids for uuid, pids in busy.items() if uuid in unlocked}
            if isinstance(choice, Refusal) and foreign:
                used = "; ".join(f"{uuid} by process {', '.join(map(str, pids))}" for uuid, pids in foreign.items())
                return Refusal(f"{choice.reason}; in use by others: {used}")
            return choice

        return take_lease(owner, (gpu.uuid for gpu in seen.gpus), pick, address, folder)

    @cache
    def reader(uuids: tuple[str, ...]) -> NvmlReader:
        return NvmlReader(frozenset(uuids))

    def links(uuids: tuple[str, ...]) -> AllReduceSettings:
        return allreduce_settings(hardware(), uuids)

    def read_gpus(uuids: tuple[str, ...]) -> tuple[GpuReading, ...]:
        return () if recording is not None else tuple(reader(uuids).read())

    return Host(address, folder / "logs", lease, links, read_gpus)
