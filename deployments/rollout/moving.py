"""Have a replica move to other GPUs of its host: order it in the directory, follow its reports until it is done."""

import time
from collections.abc import Callable

import ray

from raylane.cluster.errors import FailedError, UsageError
from raylane.deployments.directory.ray_actor import running_directory
from raylane.deployments.directory.reports import MoveResult, MoveState, ReplicaReport, Snapshot
from raylane.deployments.rollout.rollout import snapshot

POLL_S = 0.5
GONE_AFTER_S = 15.0  # a directory that restarts needs a moment to hear of all replicas again


def find_replica(known: Snapshot | None, wanted: str) -> ReplicaReport:
    """The replica with this id, or the only one whose id begins so. Raises UsageError naming what there is."""
    replicas = known.replicas if known is not None else ()
    found = [r for r in replicas if r.replica_id == wanted] or [r for r in replicas if r.replica_id.startswith(wanted)]
    if len(found) != 1 or not wanted:
        ids = ", ".join(f"{r.replica_id} ({r.model})" for r in found or replicas) or "none"
        raise UsageError(f"{'several replicas begin' if found else 'no replica begins'} with {wanted!r}: {ids}")
    return found[0]


def move(wanted: str, to: tuple[str, ...] | None, timeout_s: float, progress: Callable[[str], None]) -> MoveResult:
    """Move a replica (its id or how it begins) and wait until it serves again.

    Raises UsageError for an unknown replica, FailedError when it does not move and why.
    """
    replica = find_replica(snapshot(), wanted)
    deadline_s = time.monotonic() + timeout_s
    known_s, order, epoch = time.monotonic(), None, ""
    told = replica.state
    while time.monotonic() < deadline_s:
        known = snapshot()
        now = next((r for r in known.replicas if r.replica_id == replica.replica_id), None) if known else None
        if known is None or now is None:
            if time.monotonic() - known_s > GONE_AFTER_S:
                raise FailedError(f"{replica.replica_id} is gone; Serve starts another in its place")
        else:
            known_s = time.monotonic()
            if order is not None and now.move is not None and now.move.order_id == order:
                if now.move.state is MoveState.DONE:
                    return now.move
                if now.move.state is not MoveState.RUNNING:
                    raise FailedError(f"{now.model} {now.replica_id}: {now.move.message}")
            elif epoch != known.epoch:  # not ordered yet, or the directory restarted and forgot it
                order = _order(replica.replica_id, to)
                epoch = known.epoch if order is not None else ""
            if told != now.state:
                told = now.state
                progress(f"{now.model} {now.replica_id}: {now.state}")
        time.sleep(POLL_S)
    raise FailedError(f"{replica.replica_id} has not moved after {timeout_s:.0f} s; it goes on, see `raylane status`")


def _order(replica_id: str, to: tuple[str, ...] | None) -> str | None:
    directory = running_directory()
    if directory is None:
        return None
    order: str | None = ray.get(directory.order_move.remote(replica_id, to))
    return order
