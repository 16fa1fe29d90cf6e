import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_lab import load, model, setup, trace

from raylane.autoscaling.lab.foresight import SLICE_S, peak_loads, window_loads
from raylane.autoscaling.lab.oracle import Margins, best_oracle, fluid_bound, replay_schedule
from raylane.autoscaling.lab.outcome import outcome
from raylane.autoscaling.lab.schedule import Costs, Schedule, asked_gpu_hours, cheapest_plan, plan
from raylane.autoscaling.lab.setup import Setup
from raylane.autoscaling.lab.static import cheapest_static, replay_static
from raylane.autoscaling.traces.trace import Trace

WINDOWS = 4
BOUNDS = ((0, 2), (1, 2))
GPUS = (1, 2)


def needs(most: float) -> st.SearchStrategy[list[list[float]]]:
    return st.lists(st.lists(st.floats(0, most), min_size=2, max_size=2), min_size=WINDOWS, max_size=WINDOWS)


def costs(need: list[list[float]], lead: tuple[int, int], drain_s: float, penalty_gpu_s: float) -> Costs:
    requests = np.array(need) * 7.0
    return Costs(np.array(need), requests, GPUS, lead, (drain_s, 2 * drain_s), 60.0, (penalty_gpu_s, 3 * penalty_gpu_s))


def price(made: Costs, path: tuple[tuple[int, ...], ...], fleet: int) -> float:
    """What a path costs, window by window as the docstring of the module tells it; inf for one that cannot be."""
    total = 0.0
    for window, counts in enumerate(path):
        before = path[window - 1] if window else counts
        if sum(g * max(n, b) for g, n, b in zip(GPUS, counts, before, strict=True)) > fleet:
            return float("inf")
        for m in (0, 1):
            grown = counts[m] - before[m]
            if grown > 0 and window < made.lead[m]:
                return float("inf")
            total += GPUS[m] * (counts[m] * 60.0 + (made.lead[m] * 60.0 * grown if grown > 0 else 0.0))
            total += GPUS[m] * (-grown * made.drain_s[m] if grown < 0 else 0.0)
            if made.need[window, m] > counts[m]:
                above = 1.0 - counts[m] / made.need[window, m]
                total += made.penalty_gpu_s[m] * above * made.requests[window, m]
    return total


@settings(max_examples=30)
@given(
    need=needs(2.5),
    lead=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    drain_s=st.sampled_from([0.0, 20.0]),
    penalty_gpu_s=st.sampled_from([1.0, 10.0, 100.0]),
    fleet=st.integers(3, 6),
)
def test_no_plan_is_cheaper(
    need: list[list[float]], lead: tuple[int, int], drain_s: float, penalty_gpu_s: float, fleet: int
) -> None:
    made = costs(need, lead, drain_s, penalty_gpu_s)
    found = tuple(tuple(int(n) for n in row) for row in cheapest_plan(made, BOUNDS, fleet))
    states = list(itertools.product(range(3), range(1, 3)))
    every = (price(made, path, fleet) for path in itertools.product(states, repeat=WINDOWS))
    assert price(made, found, fleet) == pytest.approx(min(every))


def test_a_day_of_two_models_takes_seconds(cpu_clock: Callable[[], float]) -> None:
    rng = np.random.default_rng(1)
    need = rng.uniform(0, 6, (1440, 2))
    made = Costs(need, need * 100, (1, 2), (2, 3), (10.0, 20.0), 60.0, (30.0, 30.0))
    begin_s = cpu_clock()
    path = cheapest_plan(made, [(0, 12), (0, 5)], 12)
    assert cpu_clock() - begin_s < 10.0
    assert path.shape == (1440, 2)
    assert (path @ [1, 2] <= 12).all()


def stepped() -> Trace:
    """Eight minutes each of 2, 12 and 2 requests a second. A replica carries about 4."""
    parts = [load(rps, 480.0, seed=n) for n, rps in enumerate((2.0, 12.0, 2.0))]
    at_s = np.concatenate([part.at_s + 480.0 * n for n, part in enumerate(parts)])
    inputs = np.concatenate([part.input_tokens for part in parts])
    outputs = np.concatenate([part.output_tokens for part in parts])
    return Trace("steps", None, at_s, inputs, outputs, "by hand", 1440.0)


def one_model() -> Setup:
    return setup([model(least=1, cold_start_s=90.0, sigma=0.15)], {"a": stepped()})


def test_replicas_are_asked_for_early_enough_and_given_back_when_the_load_falls() -> None:
    schedule = plan(one_model(), 0.6)
    few = schedule.replicas("a", 300.0)  # two windows of lead: those for 480 s are asked for at 360 s
    many = [schedule.replicas("a", at_s) for at_s in (361.0, 600.0, 900.0)]
    assert few == schedule.initial["a"] <= 2
    assert min(many) > few
    assert schedule.replicas("a", 1100.0) <= 2
    (one,) = replay_schedule(one_model(), schedule, 1).models
    assert one.targets == [(0.0, few), *schedule.changes["a"]]


def test_a_schedule_holds_from_its_changes_on() -> None:
    schedule = Schedule({"a": 2}, {"a": ((60.0, 3), (120.0, 1))})
    assert [schedule.replicas("a", at_s) for at_s in (0.0, 59.9, 60.0, 119.0, 120.0, 1e6)] == [2, 2, 3, 3, 1, 1]


def test_what_is_asked_for_is_what_a_replay_without_load_holds() -> None:
    made = setup([model(gpus=2, sigma=0.0)], {"a": trace(duration_s=600.0)})
    schedule = Schedule({"a": 2}, {"a": ((60.0, 3), (300.0, 1))})
    assert asked_gpu_hours(made, schedule) == pytest.approx(2 * (2 * 60 + 3 * 240 + 1 * 300) / 3600)
    held = outcome(replay_schedule(made, schedule, 1)).gpu_hours
    assert asked_gpu_hours(made, schedule) == pytest.approx(held, rel=0.02)


def test_a_lower_headroom_never_holds_less() -> None:
    hours = [outcome(replay_schedule(one_model(), plan(one_model(), load), 1)).gpu_hours for load in (0.9, 0.6, 0.4)]
    assert hours == sorted(hours)
    assert hours[0] < hours[-1]


def test_the_oracle_attains_what_it_must_between_the_fluid_bound_and_the_cheapest_fixed_fleet() -> None:
    made = one_model()
    oracle = best_oracle(made, 0.99, penalties_gpu_s=(10.0,))
    assert oracle.reached
    assert oracle.attainment >= 0.99
    assert outcome(replay_schedule(made, oracle.schedule, 1)).attainment == oracle.attainment
    fixed = cheapest_static(made, 0.99)
    assert fixed is not None
    assert fluid_bound(made) <= oracle.gpu_hours < outcome(replay_static(made, fixed, 1)).gpu_hours
    assert (oracle.attainment, oracle.gpu_hours) in oracle.points


def test_what_no_fleet_attains_the_oracle_does_not_either() -> None:
    made = setup([model(most=1)], {"a": load(30.0, 120.0)})
    oracle = best_oracle(made, 0.99, penalties_gpu_s=(10.0,))
    assert not oracle.reached
    assert oracle.attainment < 0.99


def two_models() -> Setup:
    """Many steady requests on one, few requests in bursts on the other."""
    bursts = [(at_s + 0.01 * n, 100, 50) for at_s in (70.0, 250.0, 255.0) for n in range(25)]
    traces = {"a": load(8.0, 420.0), "b": trace(*bursts, duration_s=420.0)}
    return setup([model("a", least=1, most=4), model("b", gpus=2, least=1, most=4)], traces)


def test_with_each_no_model_is_left_below_and_pooled_one_may_be() -> None:
    made = two_models()
    pooled = best_oracle(made, 0.96, penalties_gpu_s=(30.0,))
    each = best_oracle(made, 0.96, each=True, penalties_gpu_s=(30.0,))
    assert (pooled.reached, each.reached) == (True, True)
    assert pooled.worst_model < 0.96 <= pooled.attainment
    assert each.worst_model >= 0.96
    found = outcome(replay_schedule(made, each.schedule, 1))
    assert {one.name: one.good / one.requests for one in found.models} == each.models
    assert (found.attainment, found.gpu_hours) == (each.attainment, each.gpu_hours)
    assert each.margins is not None
    assert each.margins.headroom["b"] < each.margins.headroom["a"]
    fixed = cheapest_static(made, 0.96, each=True)
    assert fixed is not None
    assert each.gpu_hours <= outcome(replay_static(made, fixed, 1)).gpu_hours


def test_with_each_it_says_what_was_reached_where_the_fleet_is_too_small_for_both() -> None:
    traces = {"a": load(25.0, 90.0), "b": load(25.0, 90.0, seed=2)}  # each alone fills about 7 of the 12 GPUs
    made = setup([model("a", least=1), model("b", least=1)], traces)
    oracle = best_oracle(made, 0.99, each=True, penalties_gpu_s=(10.0,))
    assert not oracle.reached
    assert oracle.worst_model == min(oracle.models.values()) < 0.99
    assert oracle.worst_model == max(point.attainment for point in oracle.points)


def test_with_one_model_each_is_pooled() -> None:
    made = setup([model(least=1)], {"a": load(6.0, 300.0)})
    pooled, each = (best_oracle(made, 0.98, each=each, penalties_gpu_s=(10.0,)) for each in (False, True))
    assert (each.schedule, each.attainment, each.gpu_hours) == (pooled.schedule, pooled.attainment, pooled.gpu_hours)
    assert each.worst_model == each.attainment


@pytest.mark.parametrize("each", [False, True])
def test_a_known_schedule_that_is_enough_is_never_beaten_by_a_dearer_plan(each: bool) -> None:
    made = setup([model(least=1, cold_start_s=3600.0)], {"a": stepped()})  # nothing can grow in time
    known = Schedule({"a": 4}, {"a": ()})
    gpu_hours = outcome(replay_schedule(made, known, 1)).gpu_hours
    oracle = best_oracle(made, 0.99, each=each, penalties_gpu_s=(0.01,), known=[known])
    assert oracle.reached
    assert oracle.gpu_hours <= gpu_hours
    assert not best_oracle(made, 0.99, each=each, penalties_gpu_s=(0.01,)).reached


def test_near_margins_that_differ_by_model_pooled_plans_cost_no_more() -> None:
    made = two_models()
    each = best_oracle(made, 0.96, each=True, penalties_gpu_s=(30.0,))
    without = best_oracle(made, 0.96, penalties_gpu_s=(30.0,))
    near = best_oracle(made, 0.96, penalties_gpu_s=(30.0,), near=each.margins)
    assert near.reached
    assert near.gpu_hours <= without.gpu_hours
    assert set(without.points) < set(near.points)


def test_tighter_margins_use_less_of_the_models_that_are_named_only() -> None:
    before = Margins({"a": 0.8, "b": 0.6}, {"a": 10.0, "b": 30.0})
    after = before.tighter(["b"])
    assert after.headroom["a"] == 0.8
    assert 0.5 < after.headroom["b"] < 0.6
    assert after.penalty_gpu_s == before.penalty_gpu_s


def test_the_headroom_of_one_model_changes_its_own_replicas_only() -> None:
    made = two_models()
    same, other = plan(made, {"a": 0.8, "b": 0.8}), plan(made, {"a": 0.8, "b": 0.3})
    assert same == plan(made, 0.8)
    assert (other.initial["a"], other.changes["a"]) == (same.initial["a"], same.changes["a"])
    assert (other.initial["b"], other.changes["b"]) != (same.initial["b"], same.changes["b"])


@settings(max_examples=30)
@given(
    requests=st.lists(
        st.tuples(st.floats(0, 599), st.integers(1, 900), st.integers(1, 400)), min_size=1, max_size=30
    ).map(sorted)
)
def test_the_fullest_seconds_of_a_window_fill_no_less_than_all_of_it(requests: list[tuple[float, int, int]]) -> None:
    mean, served = window_loads(model(), trace(*requests), 30, 60.0)  # windows enough for all to end
    peak, counted = peak_loads(model(), trace(*requests), 30, 60.0)
    assert (peak >= mean - 1e-9).all()
    assert (peak <= mean * 60.0 / SLICE_S + 1e-9).all()
    assert counted == pytest.approx(served)


def test_what_ends_after_the_last_window_is_no_peak_in_it() -> None:
    given = trace((58.0, 1, 400), (59.0, 1, 400))
    peak, requests = peak_loads(model(), given, 1, 60.0)
    longer, _ = peak_loads(model(), given, 2, 60.0)
    assert peak[0] == pytest.approx(longer[0])
    assert 0 < requests[0] < 2


def test_every_request_and_all_its_work_is_in_the_windows() -> None:
    made = model()
    given = load(5.0, 600.0)
    need, requests = window_loads(made, given, 10, 60.0)
    profile = made.spec.profile
    lengths = zip(given.input_tokens.tolist(), given.output_tokens.tolist(), strict=True)
    assert requests.sum() == pytest.approx(len(given))
    assert need.sum() * 60.0 == pytest.approx(sum(1 / profile.requests_per_s(i, o) for i, o in lengths))


def test_a_request_counts_in_the_windows_it_is_served_in() -> None:
    need, requests = window_loads(model(), trace((58.0, 1, 400)), 10, 60.0)  # 400 tokens: 8 s at best, 20 s at most
    assert 0 < requests[0] < requests[1] < 1
    assert requests[0] + requests[1] == pytest.approx(1.0)
    assert need[0] / need.sum() == pytest.approx(requests[0])


def test_without_load_the_fluid_bound_is_the_minimum() -> None:
    made = setup([model(least=1), model("b", gpus=2, least=2)], {n: trace(duration_s=5400.0) for n in "ab"})
    assert fluid_bound(made) == pytest.approx(1.5 * (1 + 2 * 2))
