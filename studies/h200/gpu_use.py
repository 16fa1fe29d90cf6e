"""The GPUs of the autoscaling part, and a foreign process on one: real ones, or two recorded ones to try the script."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from raylane.cluster.hosts import Host
from raylane.cluster.nvml import read_host
from raylane.cluster.processes import processes_with
from raylane.cluster.recording import TOPOLOGY_VARIABLE, load_recording, save_recording
from raylane.deployments.directory.reports import ReplicaReport
from raylane.deployments.engines.process import MARK

COMMAND_WITHIN_S = 400.0
STARTS_WITHIN_S = 40.0
RECORDING = Path(__file__).resolve().parents[2] / "cluster" / "recordings" / "l40s-x12-six-switch-pairs.json"
HOLD_A_GPU = (
    "import time, torch; kept = torch.ones(1 << 20, device='cuda'); print('on it', flush=True); time.sleep(600)"
)


class Gpus(Protocol):
    """Two GPUs."""

    def uuids(self) -> tuple[str, ...]: ...
    def held(self, replica_id: str) -> list[str] | None:
        """GPUs that processes of a replica's engine are on by `nvidia-smi`; None where there is none to ask."""
        ...

    @contextmanager
    def foreign_process(self, uuid: str) -> Iterator[int]:
        """While it lasts, a process that is none of raylane's is on the GPU; its id."""
        ...


class RealGpus:
    """This machine's."""

    def uuids(self) -> tuple[str, ...]:
        return tuple(gpu.uuid for gpu in read_host().gpus)

    def held(self, replica_id: str) -> list[str] | None:
        command = ("nvidia-smi", "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader")
        found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        pids = {str(pid) for pid in processes_with(MARK, replica_id)}
        pairs = (line.split(", ") for line in found.splitlines() if ", " in line)
        return sorted({uuid for uuid, pid in pairs if pid in pids})

    @contextmanager
    def foreign_process(self, uuid: str) -> Iterator[int]:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": uuid}
        with subprocess.Popen(
            [sys.executable, "-c", HOLD_A_GPU], env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                if process.stdout is None or process.stdout.readline().strip() != "on it":
                    raise RuntimeError("the foreign process did not get its GPU")
                yield process.pid
            finally:
                process.kill()


class RecordedGpus:
    """Two of a recording, in a file of their own."""

    def __init__(self, file: Path) -> None:
        self._file = file.absolute()
        (whole,) = load_recording(RECORDING)
        gpus = whole.gpus[:2]
        uuids = {gpu.uuid for gpu in gpus}
        self._host = replace(
            whole, gpus=gpus, links=tuple(link for link in whole.links if {link.a, link.b} <= uuids), groups=()
        )
        self._save(self._host)
        os.environ[TOPOLOGY_VARIABLE] = str(self._file)

    def uuids(self) -> tuple[str, ...]:
        return tuple(gpu.uuid for gpu in self._host.gpus)

    def held(self, replica_id: str) -> list[str] | None:
        return None

    @contextmanager
    def foreign_process(self, uuid: str) -> Iterator[int]:
        with subprocess.Popen(["sleep", "600"]) as process:
            busy = [replace(gpu, processes=(process.pid,)) if gpu.uuid == uuid else gpu for gpu in self._host.gpus]
            self._save(replace(self._host, gpus=tuple(busy)))
            try:
                yield process.pid
            finally:
                self._save(self._host)
                process.kill()

    def _save(self, host: Host) -> None:
        part = self._file.with_suffix(".part")
        save_recording(part, [host], "two GPUs of the shipped recording")
        part.replace(self._file)  # replicas read it at any time


def raylane(*arguments: str) -> str:
    """What the command prints. Raises RuntimeError with its error when it fails."""
    command = [sys.executable, "-m", "raylane.cli.main", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=COMMAND_WITHIN_S)
    if done.returncode:
        raise RuntimeError(f"raylane {arguments[0]}: {done.stderr[-1500:]}")
    return done.stdout


def shown(address: str, uuid: str) -> dict[str, Any]:
    """A GPU in `raylane status`."""
    hosts = json.loads(raylane("status", "--json", "--address", address))["hosts"]
    gpus = (gpu for host in hosts for domain in host["domains"] for gpu in domain["gpus"])
    found: dict[str, Any] = next(gpu for gpu in gpus if gpu["uuid"] == uuid)
    return {key: found[key] for key in ("uuid", "use", "foreign_pids", "model", "replica_id", "problem")}


def checked(report: ReplicaReport, by_smi: list[str] | None) -> dict[str, Any]:
    """What raylane's check says of a replica's GPUs, and what `nvidia-smi` says."""
    held = None if report.held_gpus is None else [gpu.uuid for gpu in report.held_gpus]
    return {"leased": report.gpu_uuids, "held": held, "problem": report.gpu_problem, "by_nvidia_smi": by_smi}
