"""Orders to move: kept in the directory until the replica has them, followed until it serves again."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from raylane.cluster.errors import FailedError, UsageError
from raylane.deployments.directory.directory import REPORT_EXPIRES_S, Directory
from raylane.deployments.directory.reports import (
    MoveOrder,
    MoveResult,
    MoveState,
    ReplicaReport,
    ReplicaState,
    Snapshot,
)
from raylane.deployments.rollout import moving
from raylane.deployments.rollout.moving import find_replica, move


def report(replica: str, state: ReplicaState = ReplicaState.READY, move: MoveResult | None = None) -> ReplicaReport:
    return ReplicaReport(replica, "m", state, "http://r", "key", "10.0.0.1", gpu_uuids=("GPU-0",), move=move)


# In the directory.


async def test_an_order_comes_with_the_answer_to_reports_until_the_replica_has_begun_it() -> None:
    directory = Directory()
    assert (await directory.tell(report("r"))).order is None
    order_id = await directory.order_move("r", ("GPU-1",))
    assert order_id is not None
    wanted = MoveOrder(order_id, ("GPU-1",))
    assert [(await directory.tell(report("r"))).order for _ in range(2)] == [wanted, wanted]
    assert (await directory.tell(report("other"))).order is None
    begun = report("r", move=MoveResult(order_id, MoveState.RUNNING))
    assert (await directory.tell(begun)).order is None
    assert (await directory.tell(report("r", move=MoveResult(order_id, MoveState.DONE)))).order is None


async def test_the_same_order_twice_is_one_and_a_new_one_replaces_it() -> None:
    directory = Directory()
    await directory.report(report("r"))
    first = await directory.order_move("r")
    assert await directory.order_move("r") == first
    second = await directory.order_move("r", ("GPU-1",))
    assert second != first
    assert (await directory.tell(report("r"))).order == MoveOrder(str(second), ("GPU-1",))


async def test_an_order_that_was_carried_out_can_be_given_again() -> None:
    directory = Directory()
    await directory.report(report("r"))
    first = await directory.order_move("r")
    done = report("r", move=MoveResult(str(first), MoveState.DONE))
    await directory.tell(done)
    second = await directory.order_move("r")
    assert second != first
    assert (await directory.tell(done)).order == MoveOrder(str(second))


async def test_orders_for_replicas_that_are_not_there_are_not_kept() -> None:
    now_s = [0.0]
    directory = Directory(lambda: now_s[0])
    assert await directory.order_move("nobody") is None
    for replica in ("withdrawn", "silent"):
        await directory.report(report(replica))
        await directory.order_move(replica)
    await directory.withdraw("withdrawn")
    now_s[0] += REPORT_EXPIRES_S + 1
    await directory.snapshot()
    for replica in ("withdrawn", "silent"):
        assert (await directory.tell(report(replica))).order is None


# From the command line.


def known(*replicas: ReplicaReport, epoch: str = "e") -> Snapshot:
    return Snapshot(epoch, ("m",), replicas, {}, {})


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        pytest.param("abc", "abc", id="the whole id, which others begin with"),
        pytest.param("abcd", "abcd1", id="the only one that begins so"),
        pytest.param("x", "xyz", id="one letter is enough where it is the only one"),
    ],
)
def test_a_replica_is_found(wanted: str, found: str) -> None:
    assert find_replica(known(report("abc"), report("abcd1"), report("xyz")), wanted).replica_id == found


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        pytest.param("ab", "several replicas begin with 'ab': abc (m), abcd1 (m)", id="not clear which"),
        pytest.param("q", "no replica begins with 'q': abc (m), abcd1 (m), xyz (m)", id="none"),
        pytest.param("", "several replicas begin with ''", id="empty"),
    ],
)
def test_a_replica_that_is_not_clear_is_an_error_that_names_what_there_is(wanted: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_replica(known(report("abc"), report("abcd1"), report("xyz")), wanted)
    assert says in str(caught.value)


def test_before_anything_is_deployed_there_is_no_replica() -> None:
    with pytest.raises(UsageError, match="none"):
        find_replica(None, "abc")


class Cluster:
    """What the command sees, one snapshot after the other, and what it orders."""

    def __init__(self, *seen: Snapshot | None) -> None:
        self._seen: Iterator[Snapshot | None] = iter(seen)
        self._last: Snapshot | None = None
        self.orders: list[tuple[str, Any]] = []

    def snapshot(self) -> Snapshot | None:
        self._last = next(self._seen, self._last)
        return self._last

    def order(self, replica_id: str, to: tuple[str, ...] | None) -> str:
        self.orders.append((replica_id, to))
        return f"order-{len(self.orders)}"


def followed(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, **values: Any) -> tuple[MoveResult, list[str]]:
    monkeypatch.setattr(moving, "POLL_S", 0.01)
    monkeypatch.setattr(moving, "GONE_AFTER_S", values.get("gone_after_s", 5.0))
    monkeypatch.setattr(moving, "snapshot", cluster.snapshot)
    monkeypatch.setattr(moving, "_order", cluster.order)
    lines: list[str] = []
    return move("r", values.get("to"), values.get("timeout_s", 20.0), lines.append), lines


def told(state: MoveState, order: int = 1, at: ReplicaState = ReplicaState.READY, message: str = "") -> ReplicaReport:
    return report("r", at, MoveResult(f"order-{order}", state, message))


def test_a_move_is_ordered_once_and_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(
        known(report("r")),
        known(report("r")),
        known(told(MoveState.RUNNING, at=ReplicaState.DRAINING)),
        known(told(MoveState.RUNNING, at=ReplicaState.STARTING)),
        known(told(MoveState.DONE, message="moved")),
    )
    done, lines = followed(monkeypatch, cluster, to=("GPU-1",))
    assert (done.state, done.message) == (MoveState.DONE, "moved")
    assert cluster.orders == [("r", ("GPU-1",))]
    assert lines == ["m r: draining", "m r: starting"]


def test_an_older_move_is_not_taken_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    old = report("r", move=MoveResult("order-of-yesterday", MoveState.DONE, "yesterday"))
    cluster = Cluster(known(old), known(old), known(old), known(told(MoveState.DONE, message="today")))
    assert followed(monkeypatch, cluster)[0].message == "today"


@pytest.mark.parametrize("state", [MoveState.REFUSED, MoveState.FAILED])
def test_a_move_that_did_not_happen_fails_with_its_reason(monkeypatch: pytest.MonkeyPatch, state: MoveState) -> None:
    cluster = Cluster(known(report("r")), known(report("r")), known(told(state, message="nothing better is free")))
    with pytest.raises(FailedError, match="m r: nothing better is free"):
        followed(monkeypatch, cluster)


def test_a_directory_that_restarts_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(
        known(report("r")),
        known(report("r")),
        None,
        known(report("r"), epoch="new"),
        known(told(MoveState.DONE, order=2, message="moved"), epoch="new"),
    )
    assert followed(monkeypatch, cluster)[0].message == "moved"
    assert len(cluster.orders) == 2


def test_a_move_that_has_begun_is_not_ordered_again_when_the_directory_restarts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = told(MoveState.RUNNING, at=ReplicaState.DRAINING)
    cluster = Cluster(
        *(known(report("r")), known(report("r")), known(running), known(running, epoch="new")),
        known(told(MoveState.DONE), epoch="new"),
    )
    followed(monkeypatch, cluster)
    assert len(cluster.orders) == 1


def test_a_replica_that_vanishes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Cluster(known(report("r")), known(report("r")), known(report("another")))
    with pytest.raises(FailedError, match="r is gone"):
        followed(monkeypatch, seen, gone_after_s=0.05)


def test_a_move_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    running = replace(told(MoveState.RUNNING), state=ReplicaState.DRAINING)
    with pytest.raises(FailedError, match="has not moved after 0 s; it goes on"):
        followed(monkeypatch, Cluster(known(report("r")), known(report("r")), known(running)), timeout_s=0.2)
