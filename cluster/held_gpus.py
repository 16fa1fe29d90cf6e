"""Which GPUs an engine's processes really hold, by NVML, compared with its lease."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from raylane.cluster import sysfs
from raylane.cluster.errors import FailedError
from raylane.cluster.nvml import GpuGoneError, Reader

FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the pid namespace that the kernel boots with (PROC_PID_INIT_INO in linux/proc_ns.h)."""


@dataclass(frozen=True)
class HeldGpu:
    """A GPU that processes of an engine have a compute context on."""

    uuid: str
    pci_bus_id: str | None


@dataclass(frozen=True)
class GpuProcesses:
    """The processes with a compute context on one GPU; None where the driver does not tell."""

    gpu: HeldGpu
    pids: frozenset[int] | None


def held_gpus(
    leased: Collection[str], tree: frozenset[int], listed: Collection[GpuProcesses], *, host_pids: bool
) -> tuple[HeldGpu, ...] | None:
    """The GPUs that processes of `tree` are on; None where that is not known.

    Not known: NVML does not tell about a leased GPU. In a pid namespace of its own (`host_pids` False) NVML's pids may
    be the host's, so that only an answer that agrees with the lease is believed.
    """
    told = {each.gpu.uuid for each in listed if each.pids is not None}
    if not told.issuperset(leased):
        return None
    held = tuple(each.gpu for each in listed if each.pids is not None and each.pids & tree)
    return held if host_pids or {gpu.uuid for gpu in held} == set(leased) else None


def held_gpus_problem(leased: Collection[str], held: Collection[HeldGpu] | None) -> str | None:
    """What is wrong between a lease and what the engine holds; None when nothing is or when it is not known."""
    if held is None:
        return None
    on = {gpu.uuid for gpu in held}
    strange = [f"{gpu.uuid} ({gpu.pci_bus_id or 'bus unknown'})" for gpu in held if gpu.uuid not in leased]
    problems = []
    if strange:
        problems.append(f"the engine is on {', '.join(strange)}, which it did not lease")
    if missing := [uuid for uuid in leased if uuid not in on]:
        problems.append(f"the engine is not on {', '.join(missing)}, which it leased")
    return "; ".join(problems) or None


def pids_are_the_hosts() -> bool:
    """Whether this process counts processes as the kernel, and so NVML, does."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == FIRST_PID_NAMESPACE
    except OSError:
        return False


def read_gpu_processes(library: Any = pynvml, sysfs_root: Path = sysfs.SYSFS) -> tuple[GpuProcesses, ...]:
    """Every GPU that answers with its processes; empty where NVML does not work."""
    try:
        library.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        reader = Reader(library, sysfs_root)
        found = (_processes(reader, library, index) for index in range(reader.ask(library.nvmlDeviceGetCount) or 0))
        return tuple(each for each in found if each is not None)
    except FailedError:
        return ()
    finally:
        library.nvmlShutdown()


def _processes(reader: Reader, library: Any, index: int) -> GpuProcesses | None:
    try:
        handle = reader.ask(library.nvmlDeviceGetHandleByIndex, index)
        uuid = None if handle is None else reader.text(reader.ask(library.nvmlDeviceGetUUID, handle))
        if uuid is None:
            return None
        pids = reader.processes(handle)
        bus_id = reader.bus_id(reader.ask(library.nvmlDeviceGetPciInfo, handle))
    except GpuGoneError:
        return None
    return GpuProcesses(HeldGpu(uuid, bus_id), None if pids is None else frozenset(pids))
