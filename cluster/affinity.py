"""On which CPUs an engine runs: those next to its GPUs. Pure."""

from collections.abc import Collection, Iterable
from itertools import groupby

from raylane.cluster.hosts import Gpu


def engine_cpus(gpus: Iterable[Gpu], allowed: Collection[int]) -> tuple[int, ...] | None:
    """The CPUs of all these GPUs' NUMA nodes that this process may use; None for no change.

    No change: without GPUs, when a GPU does not say its CPUs, when none of these may be used, and when all that may
    be used are among them.
    """
    near: set[int] = set()
    for gpu in gpus:
        if gpu.cpu_affinity is None:
            return None
        near.update(gpu.cpu_affinity)
    usable = near & set(allowed)
    return tuple(sorted(usable)) if usable and usable != set(allowed) else None


def cpu_list(cpus: Iterable[int]) -> str:
    """CPU numbers as the kernel writes them: 0-3,8."""
    runs = [[cpu for _, cpu in run] for _, run in groupby(enumerate(sorted(set(cpus))), lambda pair: pair[1] - pair[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
