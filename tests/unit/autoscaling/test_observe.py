"""From snapshots to what a policy sees: totals over parts that come and go, phases, readings that are none."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from live_values import DRAINING, NAN, READY, STARTING, config, report, snapshot

from raylane.autoscaling.observation import ModelObservation, Phase
from raylane.autoscaling.observe import Totals, observe
from raylane.deployments.directory.reports import (
    ModelTraffic,
    MoveResult,
    MoveState,
    ReplicaReport,
    ReplicaState,
    Snapshot,
)
from raylane.deployments.engines.load import EngineLoad


def see(*looks: Snapshot, target: int = 1, woken: tuple[str, ...] = ()) -> ModelObservation:
    """The one model as it is seen in the last of these looks."""
    totals, seen = Totals(), None
    for at_s, look in enumerate(looks):
        seen, totals = observe(look, {"m": target}, config(m={}), 12, float(at_s), totals, woken)
    assert seen is not None
    (model,) = seen.models
    return model


def traffic(received: int, completed: int = 0, **more: Any) -> dict[str, ModelTraffic]:
    return {"m": ModelTraffic(received=received, completed=completed, **more)}


def test_tokens_belong_to_every_request_that_ended() -> None:
    """Those whose client left and those that were cut have cost tokens too; one rejected has cost none."""
    now = traffic(20, completed=7, cancelled=4, failed=2, rejected=5, open=2)
    seen = see(snapshot(gateways={"a": traffic(0)}), snapshot(gateways={"a": now}))
    assert (seen.arrivals_total, seen.finished_total, seen.rejected_total) == (20, 13, 5)


def tokens(prompt: float | None, output: float | None) -> EngineLoad:
    return EngineLoad(0, 0, 0.0, prompt, output)


@pytest.mark.parametrize(
    ("gateways", "arrivals"),
    [
        pytest.param([{"a": traffic(100)}, {"a": traffic(130)}], 30, id="what a gateway counted since the last look"),
        pytest.param(
            [{"a": traffic(100)}, {"a": traffic(110), "b": traffic(900)}], 10, id="a gateway seen first adds nothing"
        ),
        pytest.param(
            [{"a": traffic(5), "b": traffic(9)}, {"a": traffic(6)}, {"a": traffic(7)}],
            2,
            id="one that is gone takes nothing away",
        ),
        pytest.param(
            [{"a": traffic(50)}, {}, {"a": traffic(58)}],
            8,
            id="a directory that forgot a gateway for a while is bridged",
        ),
        pytest.param(
            [{"a": traffic(50)}, {"a": traffic(3)}, {"a": traffic(5)}], 2, id="a count that fell adds nothing"
        ),
        pytest.param([{"a": {}}, {"a": traffic(4)}], 4, id="the first requests of a model at a known gateway count"),
        pytest.param(
            [{"a": traffic(5)}, {"a": {"other": ModelTraffic(received=9)}}], 0, id="other models do not count"
        ),
    ],
)
def test_arrivals_are_added_up_over_gateways_that_come_and_go(
    gateways: list[dict[str, dict[str, ModelTraffic]]], arrivals: float
) -> None:
    looks = [snapshot(gateways=one) for one in gateways]
    assert see(*looks, snapshot(gateways=gateways[-1])).arrivals_total == arrivals


@pytest.mark.parametrize(
    ("loads", "output"),
    [
        pytest.param([tokens(0, 100), tokens(0, 160)], 60, id="what a replica counted since the last look"),
        pytest.param([tokens(0, 100), tokens(0, 30)], 30, id="an engine that was started again counts from 0"),
        pytest.param(
            [tokens(0, 100), tokens(0, None), tokens(0, 130)], 30, id="a reading that is missing loses nothing"
        ),
        pytest.param([tokens(0, 100), tokens(0, NAN), tokens(0, 130)], 30, id="nor does one that is not a number"),
    ],
)
def test_tokens_are_added_up_over_replicas(loads: list[EngineLoad], output: float) -> None:
    assert see(*(snapshot(report("r", load=load)) for load in loads)).output_tokens_total == output


def test_tokens_of_a_replica_that_left_stay_counted() -> None:
    looks = [snapshot(report("r", load=tokens(10, 20))), snapshot(report("r", load=tokens(15, 50))), snapshot()]
    seen = see(*looks)
    assert (seen.prompt_tokens_total, seen.output_tokens_total) == (5, 30)


@seed(7)
@settings(max_examples=60)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 1000), max_size=3), min_size=2, max_size=8))
def test_totals_never_fall(counts: list[dict[str, int]]) -> None:
    totals, last = Totals(), 0.0
    for look in counts:
        totals = totals.after(snapshot(gateways={name: traffic(count) for name, count in look.items()}))
        now = totals.sums["m"].arrivals if "m" in totals.sums else 0.0
        assert now >= last
        last = now


def test_without_a_gateway_that_speaks_arrivals_are_unknown() -> None:
    assert see(snapshot(gateways={})).arrivals_total is None
    assert see(snapshot(gateways={"a": traffic(4)}, gateway_age_s=6.0)).arrivals_total is None


def test_while_one_gateway_of_two_is_silent_arrivals_are_unknown() -> None:
    both = snapshot(gateways={"a": traffic(4), "b": traffic(4)})
    assert see(both).arrivals_total == 0
    assert see(replace(both, gateway_age_s={"a": 0.2, "b": 6.0})).arrivals_total is None


@pytest.mark.parametrize(
    ("reports", "told"),
    [
        pytest.param([report("a"), report("b")], True, id="all tell"),
        pytest.param([report("a", load=EngineLoad(0, 3, 0.1))], False, id="an engine that never tells"),
        pytest.param([report("a"), report("b", load=EngineLoad(0, 3, 0.1))], False, id="one of two does not tell"),
        pytest.param([report("a"), report("b", state=STARTING, load=EngineLoad())], True, id="one that loads has none"),
    ],
)
def test_token_totals_are_unknown_unless_every_ready_replica_tells(reports: list[ReplicaReport], told: bool) -> None:
    seen = see(snapshot(*reports), snapshot(*reports), target=len(reports))
    assert (seen.prompt_tokens_total is not None, seen.output_tokens_total is not None) == (told, told)


def test_token_totals_are_unknown_until_an_engine_has_told_and_known_while_none_is_ready() -> None:
    assert see(snapshot(), target=0).output_tokens_total is None
    assert see(snapshot(report("r")), snapshot(), target=0).output_tokens_total == 0


@pytest.mark.parametrize(
    ("states", "target", "phases"),
    [
        pytest.param(
            [READY], 3, ["ready", "starting", "starting"], id="those asked for that do not report yet are starting"
        ),
        pytest.param([READY, STARTING], 2, ["ready", "starting"], id="one that loads is not counted twice"),
        pytest.param([READY, DRAINING], 1, ["ready", "draining"], id="one that drains is none of those asked for"),
        pytest.param([READY, READY], 1, ["ready", "ready"], id="one too many is still ready until it drains"),
        pytest.param([], 0, [], id="nothing asked for is nothing"),
    ],
)
def test_phases(states: list[ReplicaState], target: int, phases: list[str]) -> None:
    reports = [report(f"r{index}", state=state) for index, state in enumerate(states)]
    assert [replica.phase.value for replica in see(snapshot(*reports), target=target).replicas] == phases


def test_a_replica_that_moves_comes_back_so_it_counts_as_starting() -> None:
    moving = report("r", state=DRAINING, move=MoveResult("o", MoveState.RUNNING))
    assert [replica.phase for replica in see(snapshot(moving)).replicas] == [Phase.STARTING]


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(EngineLoad(), id="an engine that reports nothing"),
        pytest.param(EngineLoad(-1, -1, NAN, NAN, float("inf")), id="an engine that reports nonsense"),
    ],
)
def test_readings_that_cannot_be_are_unknown(load: EngineLoad) -> None:
    (replica,) = see(snapshot(report("r", load=load, used_percent=NAN))).replicas
    assert (replica.waiting, replica.running, replica.kv_use, replica.gpu_utilization) == (None, None, None, None)


def test_a_stale_report_keeps_the_replica_and_loses_its_readings() -> None:
    load = EngineLoad(3, 4, 0.5, 1.0, 1.0)
    (replica,) = see(snapshot(report("r", load=load, used_percent=80.0, sick="stuck"), age_s=10.5)).replicas
    assert (replica.phase, replica.gpus, replica.waiting, replica.sick) == (Phase.READY, ("g0",), None, False)


def test_what_is_known_arrives() -> None:
    load = EngineLoad(3, 4, 0.5, 1.0, 1.0)
    (replica,) = see(snapshot(report("r", load=load, gpus=("a", "b"), used_percent=80.0, sick="stuck"))).replicas
    assert (replica.waiting, replica.running, replica.kv_use) == (3, 4, 0.5)
    assert (replica.gpu_utilization, replica.gpus, replica.host, replica.sick) == (0.8, ("a", "b"), "10.0.0.1", True)


def test_the_queue_age_is_that_of_the_oldest_request_anywhere() -> None:
    now = traffic(9, held=2, oldest_held_age_s=1.5, first_byte_wait_s={"r": 4.0, "s": NAN})
    seen = see(snapshot(report("r"), gateways={"a": now}))
    assert (seen.held, seen.queue_age_s) == (2, 4.0)


def test_a_model_that_was_just_asked_for_waits_even_before_the_counters_say_so() -> None:
    assert see(snapshot(), target=0, woken=("m",)).held == 1
    assert see(snapshot(report("r")), target=1, woken=("m",)).held == 0, "it has a replica by now"


def test_models_that_serve_has_no_target_for_are_left_out() -> None:
    seen, _ = observe(snapshot(), {"m": 1}, config(m={}, new={}), 12, 0.0, Totals())
    assert [model.name for model in seen.models] == ["m"]


def missed(*counts: tuple[float, float | None]) -> float | None:
    """The total after an engine said (output tokens, misses) look by look."""
    looks = [snapshot(report("a", load=EngineLoad(0, 0, 0.0, tokens, tokens, count))) for tokens, count in counts]
    return see(*looks).missed_total


@pytest.mark.parametrize(
    ("counts", "total"),
    [
        pytest.param([(10, 4.0), (20, 7.0)], 3.0, id="what was added since the first look"),
        pytest.param([(10, 4.0), (20, 3.8), (30, 4.0), (40, 3.9), (50, 4.5)], 0.5, id="a dip is not counted again"),
        pytest.param([(10, 4.0), (2, 1.0), (5, 1.5)], 1.5, id="an engine that was started again counts from 0"),
        pytest.param([(10, 4.0), (20, None), (30, 6.0)], 2.0, id="a look without a figure is bridged"),
        pytest.param([(10, None), (20, 5.0), (30, 6.0)], 1.0, id="the first figure adds nothing"),
        pytest.param([(10, None), (20, None)], None, id="unknown where no engine tells"),
    ],
)
def test_misses(counts: list[tuple[float, float | None]], total: float | None) -> None:
    assert missed(*counts) == (None if total is None else pytest.approx(total))
