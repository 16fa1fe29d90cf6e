"""One 8B model on two GPUs: from zero, up and down with the load, moved under load, and kept off a GPU in use.

Six stages, each with what the one before left. Each one's result is written when it ends; one that fails says so, and
the next goes on.
"""

import time
from dataclasses import asdict
from typing import Any

from raylane.deployments.rollout.applications import MODEL_PREFIX
from raylane.deployments.rollout.rollout import delete, tidy
from studies.h200.gpu_use import raylane, shown
from studies.h200.live import INPUT_TOKENS, MODEL, ONE_READY, OUTPUT_TOKENS, Live, cold_starts, stop
from studies.h200.seen import answers, first_change, grown, missed, open_across, ttft_over, unix_s
from studies.h200.session import Proof

STEADY, MORE, CROWD, OVERLOAD = 0.6, 0.8, 1.2, 3.0  # times what one replica carries by its profile
DECIDED_WITHIN_S = 60.0
OVERLOAD_S = 20.0
DRAINS = (0, 0, 1)
REFUSED_WITHIN_S = 30.0
STREAMS = 8
LONG_TOKENS, MOVE_TOKENS = 5000, 3000  # 26 s and 16 s on an H200
FOREIGN_NEEDS_S, SHRINK_KEEPS_S = 60.0, 20.0


def autoscaling(proof: Proof) -> None:
    run = Live(proof)
    try:
        run.deploy()
        for stage in STAGES:
            if not proof.stages or stage.__name__ in proof.stages:
                run.stage(stage)
    finally:
        run.course.done.set()
        run.keep_logs()
        delete(proof.api, [])


def wake(run: Live) -> dict[str, Any]:
    """To zero, and one request."""
    zero_s = run.course.until((0, 0, 0), 150.0)
    before, asked_at = cold_starts(), time.time()
    (one,) = run.send(OUTPUT_TOKENS, streams=1).stop(run.left_s())
    change = first_change(run.log(), 1, asked_at)
    return {
        "at_zero_after_s": zero_s,
        "first_token_s": one.ttft_s,
        "error": one.error,
        "decided_after_s": None if change is None else unix_s(change["time"]) - one.sent_at_s,
        "replica_started_s": [replica.started_s for replica in run.replicas()],
        "cold_starts": cold_starts() - before,
    }


def crowd(run: Live) -> dict[str, Any]:
    """To zero, then a full replica's load until there is one: all that waited is let go to it at once."""
    zero_s = run.course.until((0, 0, 0), min(150.0, run.left_s()))
    senders = run.load(CROWD)
    began_at, until_s = senders[0].began_at_s, time.monotonic() + min(180.0, run.left_s(FOREIGN_NEEDS_S))
    try:
        while not run.replicas() and time.monotonic() < until_s:
            time.sleep(0.2)
        ready_at = time.time()
        time.sleep(5.0)
    finally:
        ended = stop(senders)
    return {
        "at_zero_after_s": zero_s,
        "rate_rps": CROWD * run.carries_rps,
        "ready_s": ready_at - began_at,
        "let_go_at_once": answers(one for one in ended if one.sent_at_s < ready_at),
        "load": answers(ended),
    }


def grow(run: Live) -> dict[str, Any]:
    """More load than one replica carries until a second one is decided, then less of it until there are two.

    A high rate of the last five minutes counts as demand: kept up for the whole start, it would hold off the shrink.
    """
    senders, more = run.load(STEADY), run.load(MORE)
    began_at = senders[0].began_at_s
    try:
        decided_at = decided(run, 2, began_at)
        for sender in more:
            sender.tell()
        run.course.until((0, 2, 0), min(180.0, run.left_s(FOREIGN_NEEDS_S)))
        two_ready_s = time.time() - began_at
    finally:
        ended = stop(senders + more)
    return {
        "rate_rps": (STEADY + MORE) * run.carries_rps,
        "rate_after_decision_rps": STEADY * run.carries_rps,
        "decided_s": None if decided_at is None else decided_at - began_at,
        "two_ready_s": two_ready_s,
        "started_s": [replica.started_s for replica in run.replicas()],
        "load": answers(ended),
        "client": asdict(missed(ended, run.limits, INPUT_TOKENS)),
    }


def decided(run: Live, replicas: int, since_s: float) -> float | None:
    """When the autoscaler changed to so many; None when it does not in time."""
    until_s = time.monotonic() + DECIDED_WITHIN_S
    while time.monotonic() < until_s:
        if (change := first_change(run.log(), replicas, since_s)) is not None:
            return unix_s(change["time"])
        time.sleep(0.5)
    return None


def shrink(run: Live) -> dict[str, Any]:
    """No load but long streams, until there is one replica; all of them must end well."""
    began_at = time.time()
    streams = run.send(1000, streams=2) if run.proof.tiny else run.send(LONG_TOKENS, streams=STREAMS)
    try:
        one_left_s = run.course.until(ONE_READY, min(240.0, run.left_s(SHRINK_KEEPS_S)))
    finally:
        ended = streams.stop()
    change = first_change(run.log(), 1, began_at)
    at = began_at if change is None else unix_s(change["time"])
    drains_at = run.course.first((0, 1, 1), at)
    return {
        "decided_s": None if change is None else at - began_at,
        "one_left_s": one_left_s,
        "drained_s": None if drains_at is None else began_at + one_left_s - drains_at,
        "streams": answers(ended),
        "open_when_decided": answers(open_across(ended, at)),
    }


def move(run: Live) -> dict[str, Any]:
    """`raylane move` to the other GPU while streams are open and requests come."""
    before = run.only_replica(run.left_s(FOREIGN_NEEDS_S))
    other = next(uuid for uuid in run.gpus.uuids() if uuid not in before.gpu_uuids)
    found: dict[str, Any] = {"before": run.checked(before.replica_id)}
    streams = run.send(150 if run.proof.tiny else MOVE_TOKENS, streams=STREAMS)
    streams.tell()  # each sends one
    time.sleep(4.0)  # its process starts, and all of them stream
    ordered_at = time.time()
    meanwhile = run.send(OUTPUT_TOKENS, rate_rps=1.0)
    try:
        found["said"] = raylane("move", before.replica_id, "--to", other, "--address", run.address).strip()
        found["order_to_ready_s"] = time.time() - ordered_at
    finally:
        after_it = meanwhile.stop()
        ended = streams.stop()
    (after,) = run.replicas()
    drains_at = run.course.first(DRAINS, ordered_at)
    return found | {
        "drains_after_s": None if drains_at is None else drains_at - ordered_at,
        "open_when_drained": None if drains_at is None else answers(open_across(ended + after_it, drains_at)),
        "open_when_ordered": answers(open_across(ended, ordered_at)),
        "sent_meanwhile": answers(after_it),
        "same_replica": after.replica_id == before.replica_id,
        "started_s": after.started_s,
        "after": run.checked(after.replica_id, (other,)),
    }


def foreign(run: Live) -> dict[str, Any]:
    """A foreign process on the free GPU, and three times the load that the one replica carries."""
    replica = run.only_replica(run.left_s(FOREIGN_NEEDS_S))
    free = next(uuid for uuid in run.gpus.uuids() if uuid not in replica.gpu_uuids)
    with run.gpus.foreign_process(free) as pid:
        found: dict[str, Any] = {"pid": pid, "status": shown(run.address, free)}
        told, page = run.missed_total(), run.page(replica)
        senders, began_s = run.load(OVERLOAD), time.monotonic()
        refusal = refused(run, pid)
        found |= {"refusal": refusal, "refused_after_s": time.monotonic() - began_s if refusal else None}
        time.sleep(max(0.0, OVERLOAD_S - (time.monotonic() - began_s)))
        ended = stop(senders)
        time.sleep(2.5)  # replicas report every second
        page_after, told_after = run.page(replica), run.missed_total()
    return found | {
        "rate_rps": OVERLOAD * run.carries_rps,
        "load": answers(ended),
        "client": asdict(missed(ended, run.limits, INPUT_TOKENS)),
        "engine_ttft_over": grown(ttft_over(page), ttft_over(page_after)),
        "engine_missed_total": [run.missed_by(page), run.missed_by(page_after)],
        "directory_missed_total": [told, told_after],
        "replicas_then": len(run.replicas()),
    }


def refused(run: Live, pid: int) -> str | None:
    """What Serve says of a replica that did not start for this process; None when it says nothing of it in time."""
    until_s = time.monotonic() + REFUSED_WITHIN_S
    while time.monotonic() < until_s:
        message = run.api.state().statuses[f"{MODEL_PREFIX}{MODEL}"].message
        if f"process {pid}" in message:
            return tidy(message)
        time.sleep(0.5)
    return None


STAGES = (wake, crowd, move, grow, shrink, foreign)
