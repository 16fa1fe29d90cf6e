"""kill -9 of an engine's core under load: how soon it is noticed, its GPU free, and a new one serving."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

from raylane.benchmarks.pairs import Load
from raylane.benchmarks.run_folder import load_run
from raylane.cluster.processes import processes_with
from raylane.deployments.directory.reports import ReplicaReport
from raylane.deployments.engines.process import MARK
from studies.h200.load import run_many

CONCURRENCY = 32
GIVE_UP_S = 300.0


def engine_core(replica: ReplicaReport) -> int:
    """The process id of vLLM's EngineCore, the process that holds the GPU; the server itself when there is none."""
    for pid in processes_with(MARK, replica.replica_id):
        if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    if replica.engine_pid is None:
        raise ValueError(f"{replica.replica_id} has no engine")
    return replica.engine_pid


def gpu_memory_used(uuids: tuple[str, ...]) -> int:
    """Bytes in use on these GPUs together; 0 without GPUs."""
    if not uuids:
        return 0
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    return sum(pynvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles)


def kill_under_load(
    model: str, url: str, replicas: Callable[[], list[ReplicaReport]], out_dir: Path, tiny: bool
) -> dict[str, Any]:
    """Kill one engine's core while all replicas are loaded, and follow what happens."""
    there = replicas()
    victim = there[0]
    load = Load(CONCURRENCY * len(there), 64 if tiny else 512, 32 if tiny else 256, duration_s=15.0)
    client = multiprocessing.get_context("spawn").Process(target=run_many, args=(model, url, load, 1, out_dir))
    client.start()
    time.sleep(12.0)
    killed_s = time.monotonic()
    os.kill(engine_core(victim), signal.SIGKILL)
    seen: dict[str, float] = {}
    while len(seen) < 3 and time.monotonic() - killed_s < GIVE_UP_S:
        now = {r.replica_id for r in replicas()}
        since_s = time.monotonic() - killed_s
        if victim.replica_id not in now:
            seen.setdefault("out_of_the_table_s", since_s)
        if gpu_memory_used(victim.gpu_uuids) < 2 << 30:
            seen.setdefault("gpu_memory_free_s", since_s)
        if now - {r.replica_id for r in there}:
            seen.setdefault("replacement_serving_s", since_s)
        time.sleep(0.05)
    client.join()
    return {"replicas": len(there), "concurrency": load.concurrency, **seen, "requests": _requests(out_dir)}


def _requests(out_dir: Path) -> dict[str, Any]:
    """How the client's requests ended: how many failed, and how many of those had streamed nothing yet."""
    run = load_run(max((out_dir / "0").iterdir()))
    failed = run.requests[run.requests["error"].notna()]
    nothing_yet = failed[failed["t_first_s"].isna()]
    return {
        "sent": len(run.requests),
        "failed": len(failed),
        "failed_before_their_first_token": len(nothing_yet),
        "errors": failed["error"].value_counts().to_dict(),
    }
