"""The autoscaler's loop on a cluster of plain values: bounds, wakes, restarts, and bad readings."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from live_values import NAN, STARTING, report, snapshot
from scaler_bench import FakeCluster, bench, good

from raylane.cluster.errors import FailedError
from raylane.deployments.directory.reports import ModelTraffic, ReplicaReport
from raylane.deployments.engines.load import EngineLoad


@pytest.mark.parametrize(
    ("target", "bounds", "asked"),
    [
        pytest.param(3, {"min": 1, "max": 5}, [], id="counts within their bounds stay as they are"),
        pytest.param(1, {"min": 2, "max": 5}, [("m", 2)], id="too few are brought to the minimum"),
        pytest.param(7, {"min": 1, "max": 5}, [("m", 5)], id="too many are brought to the maximum"),
        pytest.param(0, {"min": 0, "max": 5}, [], id="none stays none while nobody asks"),
    ],
)
async def test_the_first_decision_only_repairs_bounds(
    target: int, bounds: dict[str, int], asked: list[tuple[str, int]]
) -> None:
    one = bench({"m": target}, m={"replicas": bounds})
    await one.tick()
    assert one.cluster.asked == asked


async def test_the_first_decision_wakes_a_model_that_is_asked_for() -> None:
    one = bench({"m": 0}, m={"replicas": {"min": 0, "max": 2}})
    one.cluster.seen = snapshot(gateways={"gw": {"m": ModelTraffic(received=1, open=1, held=1)}})
    await one.tick()
    assert one.cluster.asked == [("m", 1)]
    assert one.log[0]["reason"] == "a request waits and no replica runs"


async def test_a_wake_counts_before_the_counters_say_so() -> None:
    one = bench({"m": 0}, m={"replicas": {"min": 0, "max": 2}})
    await one.tick(2)
    await one.tick(woken=("m",))
    assert one.cluster.asked == [("m", 1)]


async def test_load_beyond_one_replica_adds_more_and_says_why() -> None:
    one = bench({"m": 1}, m={})
    await one.loaded(90, 12.0, lambda: (report("r"),))
    assert one.cluster.asked[-1][1] >= 2
    change = one.log[-1]
    assert (change["model"], change["applied"]) == ("m", True)
    assert "req/s" in change["detail"]
    assert set(change) == {"time", "model", "from", "to", "reason", "detail", "applied"}


async def test_while_it_warms_up_a_rate_moves_nothing_but_a_queue_does() -> None:
    calm = bench({"m": 1}, {"warm_up_s": 1000}, m={})
    await calm.loaded(60, 12.0, lambda: (report("r"),))
    assert calm.cluster.asked == []
    stuck = bench({"m": 1}, {"warm_up_s": 1000}, m={})
    waits = {"gw": {"m": ModelTraffic(received=90, open=80, first_byte_wait_s={"r": 20.0})}}
    for received in (0, 90, 90):
        now = {"gw": {"m": replace(waits["gw"]["m"], received=received)}}
        stuck.cluster.seen = snapshot(report("r", load=EngineLoad(60, 20, 0.5, 0.0, 0.0)), gateways=now)
        await stuck.tick(every_s=5.0)
    assert stuck.cluster.asked


async def test_a_restart_does_not_move_the_counts() -> None:
    one = bench({"m": 1}, {"warm_up_s": 30}, m={})

    def replicas() -> tuple[ReplicaReport, ...]:
        return tuple(report(f"r{index}") for index in range(good(one.cluster.counts)["m"]))

    await one.loaded(120, 12.0, replicas)
    before = list(one.cluster.asked)
    assert before[-1][1] >= 2
    one.scaler = one.start()
    await one.loaded(60, 12.0, replicas)
    assert one.cluster.asked == before


BROKEN: dict[str, Callable[[FakeCluster], None]] = {
    "the directory is away": lambda cluster: setattr(cluster, "seen", FailedError("gone")),
    "Serve is away": lambda cluster: setattr(cluster, "counts", FailedError("503")),
    "the deployed config cannot be read": lambda cluster: setattr(cluster, "deployed", FailedError("other version")),
    "the snapshot is no snapshot": lambda cluster: setattr(cluster, "seen", None),
    "no gateway speaks": lambda cluster: setattr(cluster, "seen", snapshot(report("r0"), report("r1"), gateways={})),
    "no replica reports": lambda cluster: setattr(cluster, "seen", snapshot()),
    "every reading is no number": lambda cluster: setattr(
        cluster,
        "seen",
        snapshot(
            *(report(f"r{i}", load=EngineLoad(None, None, NAN, NAN, NAN), used_percent=NAN) for i in range(2)),
            gateways={"gw": {"m": ModelTraffic(received=5, oldest_held_age_s=NAN, first_byte_wait_s={"r0": NAN})}},
        ),
    ),
    "counters fell to zero": lambda cluster: setattr(
        cluster, "seen", snapshot(report("r0", load=EngineLoad(0, 0, 0.0, 0.0, 0.0)), gateways={"gw": {}})
    ),
}


@pytest.mark.parametrize("how", list(BROKEN))
@pytest.mark.parametrize(
    ("policy", "least"),
    [("slo", 1), ("queue", 1), ("utilization", 1), ("ray-default", 1), ("kpa", 2), ("apa", 2), ("planner", 2)],
)
async def test_bad_readings_leave_the_counts_as_they_are(how: str, policy: str, least: int) -> None:
    one = bench({"m": 2}, {"policy": policy}, m={"replicas": {"min": least, "max": 4}})
    await one.loaded(4, 2.0, lambda: (report("r0", used_percent=60.0), report("r1", used_percent=60.0)))
    assert one.cluster.asked == []
    counts = one.cluster.counts
    BROKEN[how](one.cluster)
    await one.tick(5)
    assert one.cluster.asked == []
    one.cluster.counts = counts
    assert one.cluster.counts == {"m": 2}


async def test_what_cannot_be_read_is_told_until_it_can() -> None:
    one = bench({"m": 1}, m={})
    one.cluster.seen = FailedError("no directory")
    await one.tick()
    assert one.scaler.status.problem == "FailedError: no directory"
    one.cluster.seen = snapshot(report("r"))
    await one.tick()
    assert one.scaler.status.problem is None


async def test_a_directory_that_restarted_is_given_time_to_hear_of_all_replicas() -> None:
    one = bench({"m": 0}, m={"replicas": {"min": 0, "max": 2}})
    await one.tick()
    held = {"gw": {"m": ModelTraffic(received=1, open=1, held=1)}}
    one.cluster.seen = snapshot(gateways=held, epoch="e2")
    await one.tick(3)
    assert one.cluster.asked == []
    await one.tick()
    assert one.cluster.asked == [("m", 1)]


async def test_a_change_that_serve_refuses_is_logged_once_and_tried_again() -> None:
    one = bench({"m": 1}, m={"replicas": {"min": 2, "max": 4}})
    one.cluster.refuses = True
    await one.tick(3)
    assert [entry["applied"] for entry in one.log] == [False]
    one.cluster.refuses = False
    await one.tick()
    assert one.cluster.asked == [("m", 2)]


async def test_models_of_a_fixed_size_keep_their_gpus() -> None:
    one = bench({"m": 1, "big": 2}, m={"replicas": {"min": 1, "max": 9}}, big={"replicas": {"min": 2, "max": 2}})
    one.cluster.gpus = 4
    await one.loaded(60, 40.0, lambda: (report("r"),))
    assert good(one.cluster.counts) == {"m": 2, "big": 2}


async def test_a_model_on_cpus_is_scaled_without_gpus() -> None:
    cpu = {"engine": {"kind": "simulator", "device": "cpu", "max_model_len": 8192}}
    one = bench({"m": 1}, m=cpu)
    one.cluster.gpus = 0
    await one.loaded(60, 40.0, lambda: (report("r", gpus=()),))
    assert good(one.cluster.counts)["m"] >= 2


async def test_nothing_is_done_without_a_range_or_a_deployment() -> None:
    one = bench({"m": 5}, m={"replicas": {"min": 1, "max": 1}})
    await one.tick(2)
    one.cluster.deployed = None
    await one.tick(2)
    assert (one.cluster.asked, one.log) == ([], [])
    assert one.scaler.status.problem == "the deployed config wants no scaling"


async def test_the_loop_decides_at_once_when_a_model_is_woken() -> None:
    one = bench({"m": 0}, {"decide_every_s": 300}, m={"replicas": {"min": 0, "max": 2}})
    one.cluster.wakes = [(4, ("m",)), (5, ("m",))]
    running = asyncio.create_task(one.scaler.run())
    for _ in range(1000):
        await asyncio.sleep(0.02)
        if one.cluster.asked:
            break
    running.cancel()
    assert one.cluster.asked == [("m", 1)]


async def test_wakes_of_before_it_started_wake_nobody() -> None:
    one = bench({"m": 0}, {"decide_every_s": 300}, m={"replicas": {"min": 0, "max": 2}})
    one.cluster.wakes = [(4, ("m",))]
    running = asyncio.create_task(one.scaler.run())
    await asyncio.sleep(0.6)
    running.cancel()
    assert one.cluster.asked == []


def test_starting_replicas_count_against_the_need() -> None:
    """A slow start must not be answered with one replica more each second."""
    one = bench({"m": 1}, m={"replicas": {"min": 1, "max": 12}})

    def replicas() -> tuple[ReplicaReport, ...]:
        count = good(one.cluster.counts)["m"]
        return (report("r0"), *(report(f"r{index}", state=STARTING) for index in range(1, count)))

    asyncio.run(one.loaded(90, 12.0, replicas))
    grown = [count for _, count in one.cluster.asked]
    assert 2 <= grown[-1] <= 5
    assert len(grown) <= 4
