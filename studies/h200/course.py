"""Watches the directory while a model is scaled: replicas by state, and what the truth check says of them."""

import threading
import time
from typing import NamedTuple

from raylane.deployments.directory.reports import ReplicaState, Snapshot
from raylane.deployments.rollout.rollout import snapshot

LOOK_EVERY_S = 0.2

Counts = tuple[int, int, int]
"""Replicas that start, that are ready, that drain."""


class Row(NamedTuple):
    """What changed at a Unix time; `held` requests wait for a replica."""

    at: float
    counts: Counts
    held: int


class Course(threading.Thread):
    """Looks five times a second until `done` is set."""

    def __init__(self, model: str) -> None:
        super().__init__(daemon=True)
        self._model = model
        self.rows: list[Row] = []
        self.wrong: set[str] = set()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(LOOK_EVERY_S):
            known = snapshot()
            if known is None:
                continue
            now = row(known, self._model, time.time())
            if not self.rows or differs(self.rows[-1], now):
                self.rows.append(now)
            self.wrong |= {report.gpu_problem for report in known.replicas if report.gpu_problem}

    def counts(self) -> Counts:
        """The newest; none of any before the first look."""
        return self.rows[-1].counts if self.rows else (0, 0, 0)

    def first(self, wanted: Counts, since_s: float) -> float | None:
        """When these counts were first seen after a Unix time."""
        return next((row.at for row in self.rows if row.at >= since_s and row.counts == wanted), None)

    def until(self, wanted: Counts, within_s: float) -> float:
        """Wait for these counts; seconds that took. Raises TimeoutError."""
        began_s = time.monotonic()
        while not self.rows or self.counts() != wanted:
            if time.monotonic() - began_s > within_s:
                raise TimeoutError(f"(starting, ready, draining) {wanted} not within {within_s:.0f} s: {self.counts()}")
            time.sleep(LOOK_EVERY_S / 2)
        return time.monotonic() - began_s


def differs(before: Row, now: Row) -> bool:
    """Whether there is news: other counts, or requests begin or cease to wait."""
    return before.counts != now.counts or bool(before.held) != bool(now.held)


def row(known: Snapshot, model: str, at: float) -> Row:
    """One look."""
    states = [report.state for report in known.replicas if report.model == model]
    counts = tuple(states.count(state) for state in (ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING))
    traffic = known.traffic().get(model)
    return Row(at, counts, 0 if traffic is None else traffic.held)  # type: ignore[arg-type]  # three states, three counts
