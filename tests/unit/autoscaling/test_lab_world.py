from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_lab import Script, WatchedWorld, load, model, scripted, setup, steps, trace, watched

from raylane.autoscaling.decision import ReplicaMove
from raylane.autoscaling.lab.outcome import outcome
from raylane.autoscaling.lab.world import World
from raylane.autoscaling.observation import Observation, Phase
from raylane.cluster.domains import partition
from raylane.cluster.links import host_links

PLANS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=6, max_size=6)


def accounted(world: World) -> None:
    """Every request ended at most once, and those that did not are counted as not finished."""
    for one in world.models:
        finished = [at_s is not None for at_s in one.finished_s]
        assert one.arrived == len(one.arrivals_s)
        assert one.finished == sum(finished)
        assert [at_s is not None for at_s in one.first_s] == finished
        assert not one.held
        assert one.finished + one.rejected <= one.arrived


@settings(max_examples=25)
@given(plan=PLANS, seed=st.integers(0, 3))
def test_whatever_is_decided_requests_and_gpus_are_accounted_for(plan: list[tuple[int, int]], seed: int) -> None:
    made = setup(
        [model("a", sigma=0.3), model("b", gpus=2, sigma=0.3)],
        {"a": load(2.0, 420.0), "b": load(1.0, 420.0, seed=2)},
        hold_timeout_s=100.0,
    )
    script = Script(lambda name, at_s: plan[min(int(at_s // 70), 5)]["ab".index(name)])
    world = watched(made, script, seed=seed)
    accounted(world)
    assert world.sent_elsewhere == 0
    assert all(0 <= held <= 12 for _, held in world.held_gpus)
    assert outcome(world).gpu_hours == pytest.approx(world.gpu_hours())
    for seen in script.seen:
        uuids = [uuid for one in seen.models for replica in one.replicas for uuid in replica.gpus]
        assert len(uuids) == len(set(uuids))
        for one in seen.models:
            assert one.target == sum(replica.phase is not Phase.DRAINING for replica in one.replicas)


def test_a_fleet_left_alone_counts_to_the_end_of_a_quiet_trace() -> None:
    made = setup([model(initial=3)], {"a": trace((5.0, 10, 10), duration_s=3600.0)})
    assert outcome(watched(made, Script(steps((0, 3))))).gpu_hours == pytest.approx(3.0)


def test_loading_counts_from_the_gpus_on_and_draining_until_the_last_token() -> None:
    # 400 tokens from 100 s on take 8 s; it is asked to stop at 105 s and seen to be empty at 110 s.
    made = setup([model(initial=1)], {"a": trace((100.0, 1, 400), duration_s=300.0)})
    world = watched(made, Script(steps((0, 1), (50, 2), (70, 1), (105, 0))))
    assert world.models[0].allocated == [(50.0, 70.0, 1), (0.0, 110.0, 1)]
    assert world.models[0].loading_gpu_s == pytest.approx(20.0)
    assert world.models[0].finished == 1


def test_a_replica_that_drains_loses_no_request() -> None:
    made = setup([model(initial=6)], {"a": load(20.0, 300.0)})
    world = watched(made, Script(steps((0, 6), (100, 5), (150, 3), (200, 1))))
    accounted(world)
    assert world.models[0].finished == world.models[0].arrived
    assert world.sent_elsewhere == 0


def test_held_requests_are_answered_in_order_once_a_replica_is_ready() -> None:
    made = setup([model(initial=0)], {"a": trace(*((10.0 + i, 900, 20) for i in range(20)))})
    world = watched(made, Script(steps((0, 0), (15, 1))))
    first = [at_s for at_s in world.models[0].first_s if at_s is not None]
    assert len(first) == 20
    assert first == sorted(first)
    assert first[0] < first[-1]  # a step holds two prompts
    assert first[0] > 55.0  # asked for at 15 s, 40 s of cold start
    assert first[0] == pytest.approx(55.0, abs=0.5)


def test_requests_held_too_long_are_rejected() -> None:
    made = setup([model(initial=0)], {"a": trace((11.0, 10, 10), (40.0, 10, 10))}, hold_timeout_s=30.0)
    world = watched(made, Script(steps((0, 0), (20, 1))))  # ready at 60 s
    assert [at_s is None for at_s in world.models[0].first_s] == [True, False]
    assert world.models[0].rejected == 1


def test_a_request_wakes_a_model_that_sleeps_without_waiting_for_the_next_decision() -> None:
    made = setup([model(initial=1)], {"a": trace((5.0, 10, 10), (333.0, 10, 10))})
    script = Script(lambda name, at_s: 1 if at_s < 100 or at_s >= 333 else 0)
    world = watched(made, script, every_s=60.0)
    assert (120.0, 0) in world.models[0].targets
    assert (333.0, 1) in world.models[0].targets
    assert world.models[0].wakes == 1
    first_s = world.models[0].first_s[1]
    assert first_s is not None
    assert first_s == pytest.approx(373.0, abs=0.5)


def test_a_wake_leaves_the_readings_of_other_models_right() -> None:
    busy = trace(*((float(i), 10, 50) for i in range(100)), duration_s=100.0)  # a request a second, a second long
    made = setup([model("a"), model("b", initial=0)], {"a": busy, "b": trace((64.0, 10, 10), duration_s=100.0)})
    script = Script(lambda name, at_s: 1 if name == "a" else 0)
    watched(made, script, every_s=10.0)
    readings = [seen.models[0].replicas[0].gpu_utilization for seen in script.seen if 20 < seen.at_s < 100]
    assert [seen.at_s for seen in script.seen if 60 <= seen.at_s <= 70] == [60.0, 64.0, 70.0]
    assert readings == pytest.approx([1.0] * len(readings), abs=0.06)


def test_victims_are_the_unready_then_the_newest() -> None:
    made = setup([model(initial=2)], {"a": load(1.0)})
    script = Script(steps((0, 2), (50, 3), (150, 4), (160, 3), (300, 2), (400, 1)))
    watched(made, script)
    alive = {
        at_s: [r.replica_id for r in seen.models[0].replicas if r.phase is not Phase.DRAINING]
        for seen in script.seen
        for at_s in [seen.at_s]
    }
    oldest = alive[5.0]
    third = [name for name in alive[100.0] if name not in oldest]
    assert alive[200.0] == oldest + third  # the fourth was still loading at 160 s
    assert alive[350.0] == oldest
    assert len(alive[450.0]) == 1


def test_a_cold_start_that_was_cancelled_never_serves() -> None:
    made = setup([model(initial=0, cold_start_s=100.0)], {"a": trace((20.0, 10, 10), duration_s=200.0)})
    world = watched(made, Script(steps((0, 1), (50, 0))))
    assert world.models[0].finished == 0
    assert world.models[0].rejected == 1
    assert world.models[0].allocated == [(5.0, 50.0, 1)]


def pair_move(seen: Observation) -> ReplicaMove:
    """The first replica of a, to the first GPU that nobody holds."""
    first = seen.models[0].replicas[0]
    held = {uuid for one in seen.models for replica in one.replicas for uuid in replica.gpus}
    host = next(iter(setup([model()], {"a": load(1.0)}).hosts))
    return ReplicaMove(first.replica_id, (next(gpu.uuid for gpu in host.gpus if gpu.uuid not in held),), "test")


def moved(targets: Callable[[str, float], int]) -> tuple[WatchedWorld, Script]:
    script = Script(targets, moves=[(100.0, pair_move)])
    return watched(setup([model(initial=2)], {"a": load(4.0)}), script), script


def test_a_move_drains_and_loads_on_the_gpus_it_was_given() -> None:
    world, script = moved(steps((0, 2)))
    (one,) = world.models
    before = next(seen.models[0].replicas[0] for seen in script.seen if seen.at_s == 100.0)
    after = next(seen.models[0].replicas[0] for seen in script.seen if seen.at_s == 200.0)
    assert after.replica_id == before.replica_id
    assert after.gpus != before.gpus
    assert after.phase is Phase.READY
    assert one.moves == 1
    assert one.starts == 1
    assert one.finished == one.arrived
    assert one.targets == [(0.0, 2)]
    assert outcome(world).gpu_hours == pytest.approx(world.gpu_hours())


def test_a_model_that_goes_to_zero_during_a_move_has_no_replica_left() -> None:
    made = setup([model(initial=2)], {"a": trace((99.0, 10, 800), (99.5, 10, 800), duration_s=300.0)})
    world = watched(made, Script(steps((0, 2), (105, 0)), moves=[(100.0, pair_move)]))
    assert world.models[0].finished == 2
    assert world.held_gpus[-1][1] == 0
    assert not world.models[0].replicas


def test_the_same_seed_gives_the_same_replay_and_another_one_other_cold_starts() -> None:
    made = setup([model(initial=1, sigma=0.3)], {"a": load(6.0)})
    runs = [watched(made, Script(steps((0, 1), (50, 4))), seed=seed) for seed in (7, 7, 8)]
    assert outcome(runs[0]).to_json() == outcome(runs[1]).to_json()
    assert runs[0].models[0].first_s == runs[1].models[0].first_s
    assert runs[0].models[0].loading_gpu_s != runs[2].models[0].loading_gpu_s


@pytest.mark.parametrize("every_s", [1.0, 7.0, 60.0])
def test_how_often_nothing_is_decided_changes_nothing(every_s: float) -> None:
    made = setup([model(initial=2), model("b", gpus=2)], {"a": load(9.0), "b": load(4.0, seed=3)})
    found = outcome(watched(made, Script(lambda name, at_s: 2 if name == "a" else 1), every_s=every_s)).to_json()
    assert found == outcome(watched(made, Script(lambda name, at_s: 2 if name == "a" else 1))).to_json()


def stays_s(taken: bool) -> tuple[float, int]:
    """Mean time of the requests of a model on two GPUs, and its second-best starts; one GPU of each pair `taken`."""
    made = setup([model("b", gpus=2, initial=0)], {"b": load(2.0, 300.0, seed=2)})
    world = WatchedWorld(made, scripted(made, Script(steps((0, 1)))))
    host = made.hosts[0]
    for domain in partition(host_links(host).costs, 2, host_links(host).far) if taken else ():
        assert len(domain) == 2
        assert world.fleet.take_these(host.name, (host.gpus[domain[0]].uuid,)) is not None
    (one,) = world.run().models
    times_s = [end_s - at_s for at_s, end_s in zip(one.arrivals_s, one.finished_s, strict=True) if end_s is not None]
    assert len(times_s) == one.arrived
    return float(np.mean(times_s[150:])), one.second_best_starts


def test_without_a_whole_pair_the_second_best_gpus_are_taken_and_are_slower() -> None:
    whole_s, whole_starts = stays_s(taken=False)
    apart_s, apart_starts = stays_s(taken=True)
    assert (whole_starts, apart_starts) == (0, 1)
    assert apart_s > 1.5 * whole_s
