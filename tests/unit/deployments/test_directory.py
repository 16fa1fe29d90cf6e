"""The directory's versions, epochs, expiry and acknowledgements, and what gateways make of an unsettled table."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import replace
from typing import TypeVar

import pytest

from raylane.deployments.directory.directory import (
    GATEWAY_EXPIRES_S,
    REPORT_EXPIRES_S,
    SETTLES_AFTER_S,
    Directory,
    merge,
)
from raylane.deployments.directory.reports import Endpoint, ModelTraffic, ReplicaReport, ReplicaState, Table
from raylane.deployments.engines.load import EngineLoad

T = TypeVar("T")
READY, DRAINING, STARTING = ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.STARTING


class Clock:
    """Time that only the test moves on."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def report(
    replica: str, state: ReplicaState = READY, model: str = "m", load: EngineLoad | None = None
) -> ReplicaReport:
    url = f"http://{replica}" if state is not STARTING else None
    return ReplicaReport(replica, model, state, url, "key", "10.0.0.1", load or EngineLoad())


async def table(directory: Directory, gateway: str = "g", epoch: str = "", version: int = 0) -> Table:
    return await directory.poll(gateway, epoch, version, 0.0, {})


async def applied(directory: Directory, gateway: str = "g") -> Table:
    """The table, acknowledged by a further poll."""
    news = await table(directory, gateway)
    await table(directory, gateway, news.epoch, news.version)
    return news


async def soon(waiting: Awaitable[T]) -> T:
    return await asyncio.wait_for(waiting, 10.0)


def replicas(seen: Table) -> list[str]:
    return [endpoint.replica_id for endpoint in seen.endpoints]


async def test_only_ready_replicas_are_endpoints_and_every_deployed_model_is_known() -> None:
    directory = Directory()
    await directory.set_models(("m", "resting"))
    for each in (report("r"), report("d", DRAINING), report("s", STARTING, model="new")):
        await directory.report(each)
    seen = await table(directory)
    assert seen.endpoints == (Endpoint("r", "m", "http://r", "key", 0),)
    assert seen.draining == ("d",)
    assert seen.models == ("m", "resting", "new")


async def test_an_endpoint_carries_the_load_its_engine_reported() -> None:
    directory = Directory()
    await directory.report(report("r", load=EngineLoad(waiting=2, running=5)))
    await directory.report(report("q", load=EngineLoad(running=1)))
    assert [endpoint.reported_load for endpoint in (await table(directory)).endpoints] == [7, 1]


async def test_the_version_grows_with_what_gateways_must_know_and_stays_otherwise() -> None:
    directory = Directory()
    versions = [await directory.report(report("r", STARTING)), await directory.report(report("r"))]
    versions.append(await directory.report(report("r", load=EngineLoad(running=9))))
    versions.append(await directory.report(report("r", DRAINING)))
    assert versions[0] < versions[1] == versions[2] < versions[3]
    await directory.withdraw("r")
    withdrawn = (await table(directory)).version
    assert withdrawn > versions[3]
    await directory.withdraw("r")
    await directory.withdraw("never heard of")
    assert (await table(directory)).version == withdrawn


async def test_the_version_grows_with_the_models() -> None:
    directory = Directory()
    before = (await table(directory)).version
    await directory.set_models(("m",))
    after = (await table(directory)).version
    await directory.set_models(("m",))
    assert before < after == (await table(directory)).version


async def test_every_directory_is_an_epoch_of_its_own() -> None:
    assert (await table(Directory())).epoch != (await table(Directory())).epoch


async def test_a_late_report_does_not_revive_a_withdrawn_replica() -> None:
    directory = Directory()
    await directory.report(report("r"))
    await directory.withdraw("r")
    await directory.report(report("r"))
    assert replicas(await table(directory)) == []


async def test_a_silent_replica_is_taken_out_and_comes_back_when_it_speaks() -> None:
    clock = Clock()
    directory = Directory(clock)
    for name in ("silent", "steady"):
        await directory.report(report(name))
    clock.s += REPORT_EXPIRES_S
    await directory.report(report("steady"))
    clock.s += 0.1
    before = (await table(directory)).version
    assert [seen.replica_id for seen in (await directory.snapshot()).replicas] == ["steady"]
    gone = await table(directory)
    assert replicas(gone) == ["steady"]
    assert gone.version > before
    await directory.report(report("silent"))
    assert replicas(await table(directory)) == ["steady", "silent"]


async def test_a_silent_replica_is_taken_out_while_gateways_only_poll() -> None:
    clock = Clock()
    directory = Directory(clock)
    await directory.report(report("r"))
    clock.s += SETTLES_AFTER_S
    seen = await applied(directory)
    clock.s += REPORT_EXPIRES_S + 0.1
    news = await soon(directory.poll("g", seen.epoch, seen.version, 30.0, {}))
    assert replicas(news) == []


async def test_a_poll_waits_until_there_is_news() -> None:
    clock = Clock()
    directory = Directory(clock)
    clock.s += SETTLES_AFTER_S
    seen = await table(directory)
    waiting = asyncio.create_task(directory.poll("g", seen.epoch, seen.version, 30.0, {}))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await directory.report(report("r"))
    assert replicas(await soon(waiting)) == ["r"]


async def test_a_poll_returns_the_same_table_when_its_time_is_up() -> None:
    directory = Directory()
    seen = await table(directory)
    began_s = time.monotonic()
    again = await directory.poll("g", seen.epoch, seen.version, 0.2, {})
    assert 0.15 < time.monotonic() - began_s < 10.0
    assert again == seen


@pytest.mark.parametrize("known", [("another-epoch", 7), ("", 0)], ids=["of a directory that died", "of nothing"])
async def test_a_gateway_with_another_table_is_answered_at_once(known: tuple[str, int]) -> None:
    directory = Directory()
    assert (await soon(directory.poll("g", *known, 30.0, {}))).version > 0


async def test_a_poll_tells_when_the_directory_has_settled() -> None:
    clock = Clock()
    directory = Directory(clock)
    seen = await table(directory)
    assert not seen.settled
    waiting = asyncio.create_task(directory.poll("g", seen.epoch, seen.version, 30.0, {}))
    await asyncio.sleep(0.05)
    clock.s += SETTLES_AFTER_S
    settled = await soon(waiting)
    assert settled.settled
    assert settled.version == seen.version


async def test_nobody_is_waited_for_without_gateways() -> None:
    assert await soon(Directory().acknowledged(10**6, 30.0))


async def test_a_draining_replica_waits_for_every_gateway() -> None:
    directory = Directory()
    await directory.report(report("r"))
    for gateway in ("g1", "g2"):
        await applied(directory, gateway)
    version = await directory.report(report("r", DRAINING))
    waiting = asyncio.create_task(directory.acknowledged(version, 30.0))
    news = await applied(directory, "g1")
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await table(directory, "g2")  # asks without having applied anything
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await table(directory, "g2", news.epoch, news.version)
    assert await soon(waiting) is True


async def test_an_acknowledgement_of_another_epoch_counts_for_nothing() -> None:
    directory = Directory()
    version = await directory.report(report("r", DRAINING))
    await table(directory, "g", "epoch-before", version + 100)
    assert await directory.acknowledged(version, 0.0) is False


async def test_a_dead_gateway_is_not_waited_for_longer_than_it_expires() -> None:
    clock = Clock()
    directory = Directory(clock)
    await applied(directory)
    version = await directory.report(report("r", DRAINING))
    waiting = asyncio.create_task(directory.acknowledged(version, 3600.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    clock.s += GATEWAY_EXPIRES_S
    assert await soon(waiting) is True


async def test_a_gateway_that_says_goodbye_is_not_waited_for() -> None:
    directory = Directory()
    await applied(directory)
    version = await directory.report(report("r", DRAINING))
    waiting = asyncio.create_task(directory.acknowledged(version, 30.0))
    await asyncio.sleep(0.05)
    await directory.goodbye("g")
    assert await soon(waiting) is True
    assert (await directory.snapshot()).gateways == {}


async def test_waiting_for_acknowledgements_ends_with_its_time() -> None:
    directory = Directory()
    await applied(directory)
    version = await directory.report(report("r", DRAINING))
    began_s = time.monotonic()
    assert await directory.acknowledged(version, 0.3) is False
    assert time.monotonic() - began_s < 10.0


async def test_the_snapshot_holds_loads_ages_and_traffic() -> None:
    clock = Clock()
    directory = Directory(clock)
    await directory.set_models(("m",))
    await directory.report(report("r", load=EngineLoad(running=4)))
    traffic = {"m": ModelTraffic(received=5, completed=3, open=2)}
    await directory.poll("g", "", 0, 0.0, traffic)
    clock.s += 2.5
    seen = await directory.snapshot()
    assert seen.models == ("m",)
    assert seen.replicas[0].load.running == 4
    assert seen.report_age_s == {"r": 2.5}
    assert seen.gateways == {"g": traffic}


async def test_the_snapshot_tells_how_long_a_gateway_has_been_silent() -> None:
    clock = Clock()
    directory = Directory(clock)
    await table(directory)
    clock.s += 4.0
    assert (await directory.snapshot()).gateway_age_s == {"g": 4.0}


async def test_a_directory_that_starts_again_knows_what_is_deployed() -> None:
    directory = Directory(models=("m", "resting"))
    assert (await table(directory)).models == ("m", "resting")
    await directory.set_models(("m",))
    assert (await table(directory)).models == ("m",)


async def test_a_wake_is_told_at_once_with_the_models_woken_since() -> None:
    directory = Directory()
    waiting = asyncio.create_task(directory.wait_for_wake(0, 30.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await directory.wake("a")
    known, woken = await soon(waiting)
    assert woken == ("a",)
    await directory.wake("b")
    await directory.wake("a")
    await directory.wake("b")
    known, woken = await soon(directory.wait_for_wake(known, 30.0))
    assert sorted(woken) == ["a", "b"]
    assert await soon(directory.wait_for_wake(known, 0.1)) == (known, ())


async def test_reports_and_polls_wake_nobody() -> None:
    directory = Directory()
    waiting = asyncio.create_task(directory.wait_for_wake(0, 30.0))
    await asyncio.sleep(0.05)
    await directory.report(report("r"))
    await table(directory)
    await asyncio.sleep(0.1)
    assert not waiting.done()
    waiting.cancel()


async def test_a_count_of_a_directory_that_died_is_answered_at_once_with_all_that_woke_since() -> None:
    directory = Directory()
    assert await soon(directory.wait_for_wake(7, 30.0)) == (0, ())
    await directory.wake("a")
    assert await soon(directory.wait_for_wake(7, 30.0)) == (1, ("a",))


async def test_requests_that_begin_to_wait_at_a_gateway_wake_their_model_once() -> None:
    directory = Directory()
    for held in (0, 2, 3):
        await directory.poll("g", "", 0, 0.0, {"m": ModelTraffic(received=3, held=held)})
    assert await directory.wait_for_wake(0, 0.0) == (1, ("m",))
    for held in (0, 1):
        await directory.poll("g", "", 0, 0.0, {"m": ModelTraffic(received=4, held=held)})
    assert (await directory.wait_for_wake(1, 0.0)) == (2, ("m",))


async def test_a_gateway_that_vanished_is_forgotten_in_time() -> None:
    clock = Clock()
    directory = Directory(clock)
    await applied(directory)
    clock.s += 10 * GATEWAY_EXPIRES_S + 1
    assert (await directory.snapshot()).gateways == {}


async def test_replicas_that_came_and_went_leave_no_memory_behind() -> None:
    clock = Clock()
    directory = Directory(clock)
    for number in range(50):
        await directory.report(report(f"withdrawn-{number}"))
        await directory.withdraw(f"withdrawn-{number}")
        await directory.report(report(f"silent-{number}"))
    clock.s += 20 * REPORT_EXPIRES_S
    await directory.snapshot()
    kept = [value for value in vars(directory).values() if isinstance(value, dict)]
    assert [len(value) for value in kept] == [0] * len(kept)


# What a gateway goes by.

A, B, A_MOVED = (
    Endpoint("a", "m", "http://a", "key", 0),
    Endpoint("b", "m", "http://b", "key", 0),
    Endpoint("a", "m", "http://a:2", "key", 3),
)
KNOWN = Table("old", 40, True, ("m", "resting"), (A, B), ())
EMPTY = Table("new", 1, False, (), ())


def test_a_settled_table_is_taken_as_it_is() -> None:
    news = Table("old", 41, True, ("m",), (B,))
    assert merge(KNOWN, news) == news


def test_an_unsettled_directory_takes_nothing_away() -> None:
    merged = merge(KNOWN, EMPTY)
    assert set(merged.endpoints) == {A, B}
    assert merged.models == ("m", "resting")
    assert (merged.epoch, merged.version, merged.settled) == ("new", 1, False)


def test_an_unsettled_directory_adds_and_corrects() -> None:
    merged = merge(KNOWN, replace(EMPTY, models=("m", "fresh"), endpoints=(A_MOVED,)))
    assert set(merged.endpoints) == {A_MOVED, B}
    assert set(merged.models) == {"m", "resting", "fresh"}


def test_a_replica_that_drains_is_taken_out_even_while_unsettled() -> None:
    assert set(merge(KNOWN, replace(EMPTY, draining=("a",))).endpoints) == {B}


def test_once_settled_what_did_not_report_is_gone() -> None:
    unsettled = merge(KNOWN, EMPTY)
    settled = merge(unsettled, Table("new", 2, True, ("m",), (A,)))
    assert settled.endpoints == (A,)


async def test_no_endpoint_is_lost_over_the_death_of_a_directory() -> None:
    clock = Clock()
    first = Directory(clock)
    for name in ("a", "b"):
        await first.report(report(name))
    clock.s += SETTLES_AFTER_S
    known = merge(Table("", 0, False, (), ()), await table(first))
    second = Directory(clock)
    known = merge(known, await table(second, epoch=known.epoch, version=known.version))
    assert sorted(replicas(known)) == ["a", "b"]
    await second.report(report("b"))
    known = merge(known, await table(second))
    assert sorted(replicas(known)) == ["a", "b"]
    clock.s += SETTLES_AFTER_S
    known = merge(known, await table(second))
    assert replicas(known) == ["b"]


def test_a_table_survives_json() -> None:
    full = Table("e", 3, True, ("m",), (A, B), ("c",))
    assert Table.from_json(full.to_json()) == full
