"""What a replica takes from its machine, wired up: leases over the real GPUs, link settings, NVML readings."""

from collections.abc import Mapping

from raylane.cluster.choose import Choice, Refusal, choose
from raylane.cluster.gpu_readings import GpuReading, NvmlReader
from raylane.cluster.leases import Lease, runtime_folder, take_lease
from raylane.deployments.replica import Host

NO_GPU = Choice((), "no GPU needed", second_best=False)


def cpu_host(owner: str, address: str) -> Host:
    """A host for a replica without GPUs: it leases ports only."""
    folder = runtime_folder()

    def lease() -> Lease:
        return take_lease(owner, (), lambda free: NO_GPU, address, folder)

    return Host(address, folder / "logs", lease, link_env=lambda uuids: {}, read_gpus=lambda uuids: ())


def gpu_host(owner: str, address: str, gpus: int) -> Host:
    """A host for a replica on `gpus` GPUs of this machine."""
    from raylane.cluster.nvml import read_host

    folder = runtime_folder()
    readers: dict[tuple[str, ...], NvmlReader] = {}

    def lease() -> Lease:
        hardware = read_host()

        def pick(free: frozenset[str]) -> Choice | Refusal:
            return choose(free, hardware, gpus)

        return take_lease(owner, (gpu.uuid for gpu in hardware.gpus), pick, address, folder)

    def link_env(uuids: tuple[str, ...]) -> Mapping[str, str]:
        return {}

    def read_gpus(uuids: tuple[str, ...]) -> tuple[GpuReading, ...]:
        if uuids not in readers:
            readers[uuids] = NvmlReader(frozenset(uuids))
        return tuple(readers[uuids].read())

    return Host(address, folder / "logs", lease, link_env, read_gpus)
