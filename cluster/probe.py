"""Measure every pair of a host's GPUs, and the groups that larger tensor parallel sizes would take.

Each group is a set of processes of its own with a time limit, so that a link that hangs costs that long and no more.
Pairs that share no GPU start and are checked side by side; their timed part runs alone, one after the other. A pair
that hangs, fails or corrupts data is tried once more through host memory (NCCL_P2P_DISABLE=1): if that works it is
usable without peer access, otherwise it is broken.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raylane.cluster.domains import domains
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.hosts import GroupMeasurement, Host, LinkMeasurement, Verdict

WORKER = (sys.executable, "-m", "raylane.cluster.probe_worker")
POLL_S = 0.01
ORPHAN_S = 1800.0  # after so long a rank ends itself, should this process have failed to do it
HOST_MEMORY_ENVIRONMENT = {"NCCL_P2P_DISABLE": "1"}
LARGER_DOMAINS = (4, 8)

Uuids = tuple[str, ...]


@dataclass(frozen=True)
class ProbeLimits:
    """How long a group may take: to load torch, to check its data, and to be measured, each in seconds."""

    ready_s: float = 60.0
    check_s: float = 30.0
    measure_s: float = 20.0


@dataclass(frozen=True)
class Failure:
    """A group that did not pass, and why."""

    reason: str


Outcome = Mapping[str, Any] | Failure


class RankProcess:
    """The processes of one group, one a GPU, and the folder they share."""

    def __init__(self, uuids: Uuids, command: Sequence[str], limits: ProbeLimits, host_memory: bool) -> None:
        """Start loading; with `host_memory` the ranks stay away from peer access."""
        self.uuids = uuids
        self._folder = Path(tempfile.mkdtemp(prefix="raylane-probe-"))
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": ",".join(uuids),
            **(HOST_MEMORY_ENVIRONMENT if host_memory else {}),
        }
        shared = ["--folder", str(self._folder), "--size", str(len(uuids)), "--limit-s", str(ORPHAN_S)]
        extra = ["--no-direct"] if host_memory else []
        self._processes = [
            self._spawn([*command, *shared, *extra, "--rank", str(rank)], environment, rank)
            for rank in range(len(uuids))
        ]

    def _spawn(self, command: list[str], environment: dict[str, str], rank: int) -> "subprocess.Popen[bytes]":
        with (self._folder / f"rank{rank}.err").open("wb") as errors:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def allow(self, phase: str) -> None:
        """Let the ranks begin the phase `go` or `measure`."""
        (self._folder / phase).touch()

    def wait(self, event: str, limit_s: float) -> Outcome:
        """Rank 0's event once every rank has reported it, or why that did not happen within the limit."""
        end = time.monotonic() + limit_s
        while True:
            ended = [process.poll() for process in self._processes]
            events = [self._events(rank) for rank in range(len(self._processes))]
            if corrupt := [item for found in events for item in found if item["event"] == "corrupt"]:
                return Failure(f"corrupts data: {corrupt[0].get('detail', '')}")
            reached = [item for found in events for item in found if item["event"] == event]
            if len(reached) == len(self._processes):
                return next(item for item in events[0] if item["event"] == event)
            if (failed := self._failed(ended)) is not None:
                return failed
            if time.monotonic() > end:
                return Failure(f"hangs: not {event} within {limit_s:g} s")
            time.sleep(POLL_S)

    def _events(self, rank: int) -> list[dict[str, Any]]:
        """A rank's complete lines so far."""
        try:
            text = (self._folder / f"rank{rank}.events").read_text(encoding="utf-8")
        except OSError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def _failed(self, ended: list[int | None]) -> Failure | None:
        """The first rank that ended, unless it has just reported its last event."""
        for rank, status in enumerate(ended):
            if status is not None and not any(item["event"] in ("result", "corrupt") for item in self._events(rank)):
                lines = (self._folder / f"rank{rank}.err").read_text(encoding="utf-8", errors="replace").split("\n")
                last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
                return Failure(f"fails: rank {rank} ended with status {status}: {last[:300]}")
        return None

    def stop(self) -> None:
        """End all ranks and remove their folder."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5.0)
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True)
class Prober:
    """Runs groups of GPUs through the worker command. `progress` gets one line for each thing that begins."""

    command: Sequence[str] = WORKER
    limits: ProbeLimits = ProbeLimits()
    progress: Callable[[str], None] = lambda line: None

    def run(self, rounds: Sequence[Sequence[Uuids]], host_memory: bool = False) -> dict[Uuids, Outcome]:
        """Every group's result. The groups of a round share no GPU; the next round loads while one runs."""
        outcomes: dict[Uuids, Outcome] = {}
        workers: list[RankProcess] = []
        try:
            workers = self._start(rounds[0] if rounds else (), host_memory)
            for turn, members in enumerate(rounds):
                self.progress(f"round {turn + 1} of {len(rounds)}: {len(members)} groups side by side")
                current, workers = workers, self._start(rounds[turn + 1] if turn + 1 < len(rounds) else (), host_memory)
                try:
                    outcomes |= self._round(current)
                finally:
                    stop_all(current)
        finally:
            stop_all(workers)
        return outcomes

    def _start(self, members: Sequence[Uuids], host_memory: bool) -> list[RankProcess]:
        return [RankProcess(uuids, self.command, self.limits, host_memory) for uuids in members]

    def _round(self, workers: list[RankProcess]) -> dict[Uuids, Outcome]:
        """Check the groups together, then measure those that passed one by one. FailedError if one does not load."""
        for worker in workers:
            ready = worker.wait("ready", self.limits.ready_s)
            if isinstance(ready, Failure):  # says nothing about a link
                raise FailedError(
                    f"the probe's process for {', '.join(worker.uuids)} does not start: it {ready.reason}"
                )
        for worker in workers:
            worker.allow("go")
        outcomes = {worker.uuids: worker.wait("checked", self.limits.check_s) for worker in workers}
        for worker in workers:
            checked = outcomes[worker.uuids]
            if isinstance(checked, Failure):
                worker.stop()
                continue
            worker.allow("measure")
            result = worker.wait("result", self.limits.measure_s)
            outcomes[worker.uuids] = result if isinstance(result, Failure) else {**checked, **result}
        return outcomes


def stop_all(workers: Sequence[RankProcess]) -> None:
    for worker in workers:
        worker.stop()


def probe(
    host: Host,
    prober: Prober | None = None,
    leased: Mapping[str, str] = MappingProxyType({}),
    keep: Callable[[Host], object] = lambda host: None,
) -> Host:
    """The host with its links and larger groups measured.

    GPUs that are `leased` (uuid to holder), that other processes use or that are in MIG mode are left out and named in
    `problems`; earlier measurements of their links are kept. `keep` gets the host when its pairs are measured, so that
    they outlast groups that fail. UsageError if fewer than two GPUs are left, FailedError if the workers do not load
    (no torch, say).
    """
    prober = prober or Prober()
    idle, problems = idle_gpus(host, leased)
    if len(idle) < 2:
        there = f"there are {len(idle)}{because(problems)}"
        raise UsageError(f"{host.name}: a probe needs two GPUs that nothing else uses, {there}")
    rounds = tournament([uuid for uuid in idle if comparable(host, uuid, idle)])
    measured = measure_pairs(prober, rounds)
    links = tuple(replace(link, measured=measured.get((link.a, link.b), link.measured)) for link in host.links)
    linked = replace(host, links=links, problems=(*host.problems, *problems))
    keep(linked)
    fresh = measure_groups(prober, linked, set(idle))
    kept = tuple(group for group in host.groups if group.uuids not in {new.uuids for new in fresh})
    return replace(linked, groups=(*kept, *fresh))


def measure_pairs(prober: Prober, rounds: Sequence[Sequence[Uuids]]) -> dict[Uuids, LinkMeasurement]:
    """Every pair of the rounds, those that failed once more through host memory."""
    first = prober.run(rounds)
    failed = {pair for pair, outcome in first.items() if isinstance(outcome, Failure)}
    retries = [[pair for pair in members if pair in failed] for members in rounds]
    again = prober.run([members for members in retries if members], host_memory=True)
    return {pair: pair_measurement(outcome, again.get(pair)) for pair, outcome in first.items()}


def measure_groups(prober: Prober, host: Host, idle: set[str]) -> tuple[GroupMeasurement, ...]:
    """The domains of 4 and 8 idle GPUs, each with or without peer access as its pairs allow."""
    found: dict[Uuids, Outcome] = {}
    for size in LARGER_DOMAINS:
        groups = [group for group in candidate_groups(host, size) if idle.issuperset(group)]
        for host_memory in (False, True):
            members = [group for group in groups if lacks_peer_access(host, group) is host_memory]
            found |= prober.run([members] if members else [], host_memory)
    return tuple(group_measurement(uuids, outcome) for uuids, outcome in found.items())


def lacks_peer_access(host: Host, group: Uuids) -> bool:
    """True if the probe found peer access wrong between two GPUs of the group."""
    return any(
        link.measured is not None and link.measured.peer_access is False
        for link in host.links
        if {link.a, link.b} <= set(group)
    )


def idle_gpus(host: Host, leased: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The uuids that can be probed, and a sentence for each GPU that cannot."""
    idle, problems = [], []
    for gpu in host.gpus:
        if gpu.mig:
            problems.append(f"GPU {gpu.index} was not probed: it is in MIG mode")
        elif gpu.uuid in leased:
            problems.append(f"GPU {gpu.index} was not probed: it is leased by {leased[gpu.uuid]}")
        elif gpu.processes:
            pids = ", ".join(str(pid) for pid in gpu.processes)
            problems.append(f"GPU {gpu.index} was not probed: process {pids} uses it")
        else:
            idle.append(gpu.uuid)
    return idle, problems


def because(problems: Sequence[str]) -> str:
    return f" ({'; '.join(problems)})" if problems else ""


def comparable(host: Host, uuid: str, idle: Sequence[str]) -> bool:
    """True if another idle GPU is of the same model: only equal GPUs share a replica."""
    return any(host.gpu(other).name == host.gpu(uuid).name for other in idle if other != uuid)


def tournament(uuids: Sequence[str]) -> list[list[Uuids]]:
    """Every pair once, in rounds whose pairs share no GPU (the circle method of round-robin tournaments)."""
    seats: list[str | None] = [*uuids, *([None] if len(uuids) % 2 else [])]
    order = {uuid: i for i, uuid in enumerate(uuids)}
    rounds = []
    for _ in range(len(seats) - 1):
        facing = [(seats[i], seats[-1 - i]) for i in range(len(seats) // 2)]
        rounds.append(
            [tuple(sorted((a, b), key=order.__getitem__)) for a, b in facing if a is not None and b is not None]
        )
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def candidate_groups(host: Host, size: int) -> list[Uuids]:
    """The domains of this size: what a replica of that tensor parallel size would take on an empty host."""
    return [domain.uuids for domain in domains(host, size) if len(domain.uuids) == size]


TIMES = ("allreduce_8kb_s", "allreduce_256kb_s", "allreduce_32mb_s")
RATES = ("a_to_b_bytes_per_s", "b_to_a_bytes_per_s", "latency_s", *TIMES)


def pair_measurement(first: Outcome, again: Outcome | None) -> LinkMeasurement:
    """What is known of a pair from its probe and, if that failed, from the one through host memory."""
    if not isinstance(first, Failure):
        return LinkMeasurement(
            Verdict.OK, peer_access=first.get("peer_access"), **{name: first.get(name) for name in RATES}
        )
    if again is None or isinstance(again, Failure):
        reason = first.reason if again is None else f"{first.reason}; through host memory it {again.reason}"
        return LinkMeasurement(Verdict.BROKEN, reason=reason)
    reason = f"with peer access it {first.reason}; measured through host memory"
    return LinkMeasurement(Verdict.OK, reason, peer_access=False, **{name: again.get(name) for name in RATES})


def group_measurement(uuids: Uuids, outcome: Outcome) -> GroupMeasurement:
    if isinstance(outcome, Failure):
        return GroupMeasurement(uuids, Verdict.BROKEN, outcome.reason)
    return GroupMeasurement(uuids, Verdict.OK, **{name: outcome.get(name) for name in TIMES})
