"""raylane's own rule: what makes it grow, how patiently it shrinks, and what it does when it knows little."""

from dataclasses import replace
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_models import HOLDS, OUTPUT, PROMPT, RATE_RPS, TICK_S, Loop, answers, model, reading, reversals, spec

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation, Observation, Phase, ReplicaObservation
from raylane.autoscaling.pipeline import Policy
from raylane.autoscaling.rules.slo import SloRule
from raylane.autoscaling.share import by_loss

# Settings of the tests' own, so that tuning the defaults does not change what is tested here.
RULE = SloRule(
    burst_margin=1.5, target_load=0.85, confidence=2.0, hold_s=180.0, shrink_band=0.05, learning=1.0, misses=1.0
)


def loaded(of: ModelObservation, at_s: float, rate_rps: float) -> tuple[float, ModelObservation]:
    """The observation at that time, when requests came and finished at this rate from the beginning."""
    done = rate_rps * at_s
    return at_s, of._replace(
        arrivals_total=done,
        finished_total=done,
        prompt_tokens_total=done * PROMPT,
        output_tokens_total=done * OUTPUT,
    )


def settled(of: ModelObservation, rate_rps: float, rule: SloRule = RULE, seconds: float = 600.0) -> Proposal:
    """The answer after some minutes of the same observation."""
    ticks = int(seconds / TICK_S) + 1
    return answers(rule, spec(), [loaded(of, n * TICK_S, rate_rps) for n in range(ticks)])[-1]


FULL = reading(round(HOLDS), 0, 0.6, 1.0)


@pytest.mark.parametrize(
    ("seen", "loads", "least", "most", "reason"),
    [
        pytest.param(model(1, each=FULL), 3.0, 4, 5, Reason.DEMAND, id="grows to the load with a margin"),
        pytest.param(model(4, ready=1, each=FULL), 3.0, 4, 4, Reason.STEADY, id="those starting count"),
        pytest.param(model(4, each=FULL), 3.0, 4, 4, Reason.STEADY, id="keeps what fits"),
        pytest.param(model(8, each=FULL), 3.0, 7, 7, Reason.SHRINK, id="gives one back, not all that are too many"),
        pytest.param(
            model(8, each=reading(40, 2, 0.5)), 3.0, 8, 8, Reason.HOLD, id="does not shrink while a request waits"
        ),
        pytest.param(
            model(3, each=reading(99, 200, 0.5), queue_age_s=5.0), 3.0, 5, 5, Reason.QUEUE, id="a queue adds to it"
        ),
        pytest.param(
            model(3, each=reading(99, 200, 0.5), queue_age_s=0.1), 3.0, 4, 4, Reason.DEMAND, id="a young queue does not"
        ),
        pytest.param(
            model(5, each=reading(99, 1, 0.99), queue_age_s=0.1), 3.0, 6, 6, Reason.MEMORY, id="full caches add to it"
        ),
        pytest.param(model(2, each=reading(2, 0, sick=True)), 0.5, 3, 3, Reason.DEMAND, id="sick ones do not count"),
        pytest.param(model(1), 0.0, 0, 0, Reason.IDLE, id="the last one goes when nothing came for long enough"),
        pytest.param(model(1), 0.05, 1, 1, Reason.STEADY, id="the last one stays while requests come"),
        pytest.param(
            model(1, each=reading(1)), 0.0, 1, 1, Reason.STEADY, id="the last one stays with a request inside"
        ),
        pytest.param(
            model(1, each=reading(0, gpu=0.5)), 0.0, 1, 1, Reason.STEADY, id="the last one stays while its GPU is busy"
        ),
        pytest.param(model(1, ready=0), 0.0, 1, 1, Reason.STEADY, id="the last one stays while it starts"),
        pytest.param(model(0), 0.0, 0, 0, Reason.IDLE, id="stays at zero"),
        pytest.param(model(0, held=1), 0.0, 1, 1, Reason.WAKE, id="a held request wakes it"),
        pytest.param(
            model(0, held=900, queue_age_s=4.0), 2.0, 3, 12, Reason.WAKE, id="many held requests wake more than one"
        ),
    ],
)
def test_what_it_asks_for(seen: ModelObservation, loads: float, least: int, most: int, reason: Reason) -> None:
    """`loads`: the rate in replicas."""
    proposal = settled(seen, loads * RATE_RPS)
    assert least <= proposal.replicas <= most
    assert proposal.reason is reason


def test_it_grows_at_once_and_then_waits_for_what_it_asked() -> None:
    targets = Loop(RULE, lambda _: 4.0 * RATE_RPS, target=1).run(55.0)
    assert targets[1] >= 5
    assert set(targets[1:]) == {targets[1]}


def test_it_does_not_shrink_before_the_hold_and_then_one_at_a_time() -> None:
    rule = replace(RULE, hold_s=180.0, shrink_every_s=30.0)
    targets = Loop(rule, lambda _: 1.2 * RATE_RPS, target=8).run(900.0)
    changes = [n * TICK_S for n in range(1, len(targets)) if targets[n] != targets[n - 1]]
    assert min(changes) >= 180.0
    assert all(later - sooner >= 30.0 for sooner, later in pairwise(changes))
    assert all(old - new in (0, 1) for old, new in pairwise(targets))
    assert targets[-1] == 2


def test_the_largest_need_of_the_hold_counts() -> None:
    def busy_once(at_s: float) -> float:
        return (6.0 if 600.0 <= at_s < 660.0 else 1.0) * RATE_RPS

    loop = Loop(RULE, busy_once, target=2)
    peak = max(loop.run(700.0))
    assert peak > 4
    held = len(loop.targets)
    assert set(loop.run(120.0)[held:]) == {peak}
    assert loop.run(1800.0)[-1] < peak


@given(start=st.integers(0, 12), loads=st.floats(0.0, 9.0))
@settings(max_examples=12)
def test_constant_load_from_any_start_is_reached_without_turning_back(start: int, loads: float) -> None:
    targets = Loop(RULE, lambda _: loads * RATE_RPS, target=start, of=spec(least=1)).run(1800.0)
    assert reversals(targets) == 0
    assert ceil(loads) <= targets[-1] <= max(1, ceil(1.6 * loads + 1))
    assert len(set(targets[-30:])) == 1


@pytest.mark.parametrize(
    ("loads", "most_an_hour"),
    [
        pytest.param(0.6, 0, id="one replica"),
        pytest.param(2.5, 0, id="few replicas"),
        pytest.param(5.0, 0, id="many replicas"),
        pytest.param(0.72, 1, id="just between one and two"),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_chance_hardly_turns_it(loads: float, most_an_hour: int, seed: int) -> None:
    """At the edge between two numbers too, once the band is left."""
    random = np.random.default_rng(seed)
    counts = random.poisson(loads * RATE_RPS * TICK_S, 2000) / TICK_S
    rule = replace(RULE, shrink_band=0.3)
    loop = Loop(rule, lambda at_s: float(counts[int(at_s / TICK_S)]), target=ceil(loads) + 2, of=spec(least=1))
    targets = loop.run(2 * 3600.0)
    assert reversals(targets) <= 2 * most_an_hour
    assert min(targets) >= loads


@given(loads=st.tuples(st.floats(0.0, 9.0), st.floats(0.0, 9.0)).map(sorted), start=st.integers(1, 12))
@settings(max_examples=15)
def test_it_asks_for_no_fewer_at_a_higher_load(loads: list[float], start: int) -> None:
    """At no moment, from the same start."""
    low, high = (Loop(RULE, lambda _, load=load: load * RATE_RPS, start).run(900.0) for load in loads)  # type: ignore[misc]
    assert all(few <= many for few, many in zip(low, high, strict=True))
    assert low[-1] < high[-1] or loads[1] - loads[0] < 2.0


def test_a_larger_margin_asks_for_no_fewer() -> None:
    ends = [
        Loop(replace(RULE, burst_margin=margin), lambda _: 3.0 * RATE_RPS).run(900.0)[-1] for margin in (0.0, 1.5, 8.0)
    ]
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]


def test_a_rising_load_is_met_earlier_with_the_forecast() -> None:
    def rising(at_s: float) -> float:
        return RATE_RPS * (1.0 + at_s / 300.0)

    ahead, behind = (Loop(replace(RULE, forecast=forecast), rising).run(1500.0) for forecast in (True, False))
    assert all(early >= late for early, late in zip(ahead, behind, strict=True))
    assert sum(ahead) > sum(behind)


@pytest.mark.parametrize(
    ("loads", "missing", "least", "most"),
    [
        pytest.param(3.0, 0.2, 0.05, 0.8, id="misses at a load that should fit: slower than its profile"),
        pytest.param(3.0, 0.0, 1.02, 1.5, id="no misses at a high load: faster than its profile"),
        pytest.param(3.0, 0.005, 0.9, 1.1, id="the misses that may be: as its profile"),
        pytest.param(0.5, 0.0, 1.0, 1.0, id="no misses at a low load say nothing"),
        pytest.param(3.0, None, 1.0, 1.0, id="unknown misses say nothing"),
    ],
)
def test_the_learnt_speed_moves_towards_the_truth(
    loads: float, missing: float | None, least: float, most: float
) -> None:
    """`missing`: the share of requests that miss their SLO, of 1 % that may."""
    speed = _speed(RULE, model(4, each=FULL), loads, missing)
    assert least <= speed <= most


def test_without_learning_the_speed_stays() -> None:
    assert _speed(replace(RULE, learning=0.0), model(4, each=FULL), 3.0, 0.2) == 1.0


def test_misses_of_too_few_replicas_say_nothing_of_their_speed() -> None:
    assert _speed(RULE, model(2, each=FULL), 3.0, 0.2) > 0.95


def test_misses_that_become_known_late_are_no_misses_of_now() -> None:
    memory = None
    for n in range(40):
        at_s, seen = loaded(model(4, each=FULL), n * TICK_S, 3.0 * RATE_RPS)
        missed = None if n < 38 else 100_000.0
        _, memory = RULE.propose(spec(), seen._replace(missed_total=missed), at_s, memory)
    assert memory is not None
    assert memory.speed >= 1.0


def _speed(rule: SloRule, seen: ModelObservation, loads: float, missing: float | None) -> float:
    """The speed learnt in twenty minutes of the same rate."""
    memory = None
    for n in range(240):
        at_s, now = loaded(seen, n * TICK_S, loads * RATE_RPS)
        missed = None if missing is None else (now.finished_total or 0.0) * missing
        _, memory = rule.propose(spec(), now._replace(missed_total=missed), at_s, memory)
    assert memory is not None
    return memory.speed


def test_a_load_that_returns_within_the_band_turns_nothing() -> None:
    def waves(at_s: float) -> float:
        return (2.4 if at_s % 900.0 < 300.0 else 2.0) * RATE_RPS

    steady, restless = (Loop(replace(RULE, shrink_band=band), waves, target=2).run(2 * 3600.0) for band in (0.3, 0.0))
    assert reversals(steady) == 0
    assert reversals(restless) > 4


BLIND = {"arrivals_total": None, "finished_total": None}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(
            model(3, each=reading(None, None, None, None), **BLIND), (3, Reason.BLIND), id="nothing known keeps"
        ),
        pytest.param(model(3, each=reading(None, None, None, 0.9), **BLIND), (3, Reason.BUSY), id="busy GPUs keep"),
        pytest.param(model(3, each=reading(1), **BLIND), (3, Reason.BUSY), id="few requests inside keep"),
        pytest.param(
            model(1, each=reading(round(3 * HOLDS)), **BLIND), (4, Reason.DEMAND), id="many requests inside grow"
        ),
        pytest.param(model(0, held=1, **BLIND), (1, Reason.WAKE), id="a held request wakes"),
        pytest.param(model(0, **BLIND), (0, Reason.BLIND), id="zero stays zero"),
    ],
)
def test_without_counts_of_arrivals(seen: ModelObservation, expected: tuple[int, Reason]) -> None:
    proposal = answers(RULE, spec(), [(0.0, seen), (1200.0, seen)])[-1]
    assert (proposal.replicas, proposal.reason) == expected


@pytest.mark.parametrize("start", [1, 3])
def test_after_blindness_the_patience_begins_anew(start: int) -> None:
    """Twenty blind minutes say nothing of the load, so they are no reason to give a replica back."""
    loop = Loop(RULE, lambda _: 0.0 if start == 1 else 0.5 * RATE_RPS, target=start)
    loop.run(20.0)
    for n in range(240):
        blind = loop.see()._replace(arrivals_total=None)
        _, loop.memory = RULE.propose(loop.of, blind, loop.at_s + n * TICK_S, loop.memory)
    loop.at_s += 1200.0
    seen = len(loop.targets)
    targets = loop.run(900.0)[seen:]
    first = next(n for n, target in enumerate(targets) if target < start)
    assert first * TICK_S >= (RULE.idle_s if start == 1 else RULE.hold_s) - 2 * TICK_S


UNTOLD = {"prompt_tokens_total": None, "output_tokens_total": None}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(model(4, each=reading(1), **UNTOLD), (4, Reason.BUSY), id="busy replicas are not taken away"),
        pytest.param(
            model(1, each=reading(round(3 * HOLDS)), **UNTOLD), (4, Reason.DEMAND), id="many requests inside add some"
        ),
        pytest.param(model(4, each=reading(0), **UNTOLD), (3, Reason.SHRINK), id="idle ones are, one at a time"),
        pytest.param(model(1, each=reading(0), **UNTOLD), (0, Reason.IDLE), id="and the last one"),
        pytest.param(
            model(4, each=reading(None, None), **UNTOLD), (4, Reason.BUSY), id="ones without readings may be busy"
        ),
        pytest.param(model(0, held=1, **UNTOLD), (1, Reason.WAKE), id="a held request wakes"),
        pytest.param(model(0, **UNTOLD), (0, Reason.IDLE), id="zero stays zero"),
    ],
)
def test_of_engines_that_tell_no_tokens(seen: ModelObservation, expected: tuple[int, Reason]) -> None:
    proposal = answers(RULE, spec(), [(0.0, seen), (1200.0, seen)])[-1]
    assert (proposal.replicas, proposal.reason) == expected


def test_a_replica_without_readings_is_not_taken_for_idle() -> None:
    seen = model(1, each=reading(None, None, None, None))
    assert answers(RULE, spec(), [(n * 60.0, seen) for n in range(30)])[-1].replicas == 1


def test_a_blind_moment_is_not_taken_for_a_jump() -> None:
    loop = Loop(RULE, lambda _: 2.0 * RATE_RPS, target=3)
    before = loop.run(900.0)[-1]
    _, loop.memory = RULE.propose(loop.of, loop.see()._replace(arrivals_total=None), loop.at_s + 1.0, loop.memory)
    assert loop.run(300.0)[-60:] == [before] * 60


def test_a_start_that_takes_longer_than_the_idle_time_is_not_idleness() -> None:
    """A request wakes the model, the replica is ready 90 s later: its 60 s of idleness begin then."""
    rule, memory = replace(RULE, idle_s=60.0), None
    went_s = 0.0
    for n in range(60):
        at_s = n * TICK_S
        seen = model(1, ready=0 if at_s < 90.0 else 1)._replace(arrivals_total=0.0 if n == 0 else 1.0)
        proposal, memory = rule.propose(spec(), seen, at_s, memory)
        if not proposal.replicas:
            went_s = at_s
            break
    assert went_s == 145.0


def test_a_model_that_has_just_gone_to_zero_stays_there() -> None:
    rule = replace(RULE, idle_s=60.0)
    targets = Loop(rule, lambda at_s: 1.0 if at_s < 300.0 else 0.0).run(900.0)
    assert targets[-1] == 0
    assert reversals(targets) == 0


@pytest.mark.parametrize(
    ("seen", "least", "idle_s", "low", "high"),
    [
        pytest.param(model(1), 0, 70.0, 0.0, 0.0, id="idle, it counts for nothing"),
        pytest.param(model(1), 0, 30.0, 0.001, 0.5, id="not idle for long, it counts"),
        pytest.param(model(1), 1, 70.0, 0.0, 0.5, id="a floor is not given up"),
        pytest.param(model(1, each=reading(1)), 0, 70.0, 0.001, 0.5, id="with a request inside it counts"),
        pytest.param(model(1, each=reading(gpu=0.5)), 0, 70.0, 0.001, 0.5, id="with a busy GPU it counts"),
        pytest.param(model(1, ready=0), 0, 70.0, 0.001, 0.5, id="one that starts counts"),
        pytest.param(model(0, held=1), 0, 70.0, 0.001, 0.5, id="one that is waited for counts"),
    ],
)
@pytest.mark.parametrize("tokens", [True, False], ids=["tokens known", "no tokens"])
def test_what_the_last_replica_counts_against_other_models(
    seen: ModelObservation, least: int, idle_s: float, low: float, high: float, tokens: bool
) -> None:
    rule = replace(RULE, yield_s=60.0)
    if not tokens:
        seen = seen._replace(prompt_tokens_total=None, output_tokens_total=None)
    proposal = answers(rule, spec(least=least), [(n * TICK_S, seen) for n in range(int(idle_s / TICK_S) + 1)])[-1]
    assert proposal.replicas == 1
    assert proposal.need is not None
    assert low <= proposal.need <= high


def test_two_models_that_may_rest_take_turns_on_one_gpu() -> None:
    """One is asked for while the other is idle, busy, or started a moment ago."""
    policy = Policy({"a": spec("a"), "b": spec("b")}, replace(RULE, yield_s=60.0), by_loss)
    memory: Any = {}
    targets = {"a": 1, "b": 0}
    took: list[tuple[float, str]] = []
    arrived = {"a": 0.0, "b": 0.0}
    for n in range(160):
        at_s = n * TICK_S
        held = {"a": 0, "b": 0}
        busy = at_s < 100.0
        if at_s == 50.0 or at_s == 400.0:
            arrived["b" if at_s == 50.0 else "a"] += 1
        if at_s >= 50.0 and not targets["b"] and at_s < 400.0:
            held["b"] = 1
        if at_s >= 400.0 and not targets["a"]:
            held["a"] = 1
        models = [
            model(
                targets[name],
                name=name,
                each=reading(1 if busy and name == "a" else 0),
                held=held[name],
                arrivals_total=arrived[name],
            )
            for name in ("a", "b")
        ]
        decision, memory = policy.decide(Observation(at_s, tuple(models), 1), memory)
        after = {name: target.replicas for name, target in decision.targets.items()}
        took += [(at_s, name) for name in after if after[name] > targets[name]]
        targets = after
        assert sum(targets.values()) <= 1
    assert [name for _, name in took] == ["b", "a"]
    assert 155.0 <= took[0][0] <= 165.0, "a minute after the last work of a"
    assert took[1][0] <= 405.0, "b was idle by then"


@given(
    loads=st.lists(st.floats(0.0, 30.0), min_size=1, max_size=40),
    least=st.integers(0, 3),
    most=st.integers(3, 12),
    start=st.integers(0, 12),
)
@settings(max_examples=50)
def test_through_a_policy_never_over_the_cap_nor_below_the_floor(
    loads: list[float], least: int, most: int, start: int
) -> None:
    policy = Policy({"m": spec(least=least, most=most)}, RULE, by_loss)
    memory: Any = {}
    target, done = start, 0.0
    for n, load in enumerate(loads):
        done += load * RATE_RPS * 30.0
        _, seen = loaded(model(target), 1.0, done)
        decision, memory = policy.decide(Observation(n * 30.0, (seen,), 12), memory)
        target = decision.targets["m"].replicas
        assert least <= target <= most


def test_a_replica_that_drains_is_neither_load_nor_supply() -> None:
    draining = ReplicaObservation("d", Phase.DRAINING, 50, 50, 1.0, 1.0)
    seen = model(3, each=reading(10))
    with_it = seen._replace(replicas=(*seen.replicas, draining))
    assert settled(with_it, 2.0 * RATE_RPS) == settled(seen, 2.0 * RATE_RPS)
