"""What a replica takes from its machine, wired up: leases over the real GPUs, link settings, NVML readings."""

from functools import cache

from raylane.cluster.allreduce import AllReduceSettings, allreduce_settings
from raylane.cluster.choose import Choice, Refusal, choose
from raylane.cluster.gpu_readings import GpuReading, NvmlReader
from raylane.cluster.hosts import Host as Hardware
from raylane.cluster.leases import Lease, runtime_folder, take_lease
from raylane.cluster.nvml import read_host
from raylane.cluster.probe_cache import with_measurements
from raylane.deployments.replica import Host

NO_GPU = Choice((), "no GPU needed", second_best=False)
NO_LINKS = AllReduceSettings((), custom_all_reduce=True, reason="no GPU")


def cpu_host(owner: str, address: str) -> Host:
    """A host for a replica without GPUs: it leases ports only."""
    folder = runtime_folder()

    def lease() -> Lease:
        return take_lease(owner, (), lambda free: NO_GPU, address, folder)

    return Host(address, folder / "logs", lease, links=lambda uuids: NO_LINKS, read_gpus=lambda uuids: ())


def gpu_host(owner: str, address: str, gpus: int) -> Host:
    """A host for a replica on `gpus` GPUs of this machine, placed by its links as they are known."""
    folder = runtime_folder()

    def hardware() -> Hardware:
        return with_measurements(folder, read_host())

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
        return tuple(reader(uuids).read())

    return Host(address, folder / "logs", lease, links, read_gpus)
