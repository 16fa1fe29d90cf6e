"""The planner-like rule: a floor from the forecast, steps of one from the queue, nothing while one is under way."""

import pytest
from seen_models import OUTPUT, PROMPT, RATE_RPS, answers, model, reading, spec

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation, Phase, ReplicaObservation
from raylane.autoscaling.rules.planner import Planner

CALM, MIDDLING, LATE = reading(5, 0), reading(5, 29), reading(5, 80)


def with_totals(seen: ModelObservation, done: float) -> ModelObservation:
    return seen._replace(
        arrivals_total=done,
        finished_total=done,
        prompt_tokens_total=done * PROMPT,
        output_tokens_total=done * OUTPUT,
    )


def run(rule: Planner, *phases: tuple[float, float, ModelObservation]) -> list[Proposal]:
    """Each observation for so many seconds at so many replicas' load, every five seconds."""
    at_s, done = 0.0, 0.0
    series = [(at_s, with_totals(phases[0][2], done))]
    for seconds, loads, seen in phases:
        for _ in range(int(seconds / 5)):
            at_s, done = at_s + 5.0, done + 5.0 * loads * RATE_RPS
            series.append((at_s, with_totals(seen, done)))
    return answers(rule, spec(), series)


@pytest.mark.parametrize(
    ("loads", "seen", "expected"),
    [
        pytest.param(2.5, model(2, each=CALM), (3, Reason.DEMAND), id="up to the floor at once"),
        pytest.param(2.5, model(3, each=CALM), (3, Reason.STEADY), id="not below the floor"),
        pytest.param(2.5, model(6, each=CALM), (5, Reason.SHRINK), id="one down towards the floor when all are early"),
        pytest.param(2.5, model(6, each=MIDDLING), (6, Reason.STEADY), id="neither late nor early"),
        pytest.param(2.5, model(3, each=LATE), (4, Reason.QUEUE), id="one above the floor when all are late"),
        pytest.param(2.5, model(4, ready=3, each=LATE), (4, Reason.WAIT), id="nothing while one starts"),
        pytest.param(0.0, model(1, each=CALM), (1, Reason.STEADY), id="the last one stays"),
        pytest.param(2.5, model(3, each=reading(5, None)), (3, Reason.BLIND), id="unknown queues change nothing"),
        pytest.param(0.5, model(0, held=1), (1, Reason.WAKE), id="a held request wakes"),
    ],
)
def test_floor_and_feedback(loads: float, seen: ModelObservation, expected: tuple[int, Reason]) -> None:
    """After the first plan."""
    proposal = run(Planner(), (185.0, loads, seen))[-1]
    assert (proposal.replicas, proposal.reason) == expected


def test_one_late_replica_of_two_adds_none() -> None:
    seen = model(2)
    uneven = seen._replace(replicas=(LATE._replace(replica_id="a"), CALM._replace(replica_id="b")))
    assert run(Planner(), (60.0, 0.5, uneven))[-1].replicas == 2


def test_nothing_goes_while_one_drains() -> None:
    seen = model(4, each=CALM)
    draining = seen._replace(replicas=(*seen.replicas, ReplicaObservation("d", Phase.DRAINING)))
    assert [proposal.replicas for proposal in run(Planner(), (10.0, 0.5, draining))] == [4, 4, 4]
    assert run(Planner(), (10.0, 0.5, seen))[-1].replicas == 3


def test_the_floor_is_planned_every_three_minutes() -> None:
    proposals = run(Planner(), (360.0, 2.5, model(1, each=CALM)))
    first = next(n for n, proposal in enumerate(proposals) if proposal.replicas > 1)
    assert first * 5 == 180


def test_the_linear_forecast_goes_on_as_before() -> None:
    phases = ((180.0, 1.0, model(1, each=CALM)), (180.0, 2.0, model(1, each=CALM)))
    constant, linear = (run(Planner(forecast=forecast), *phases)[-1].replicas for forecast in ("constant", "linear"))
    assert constant == 2
    assert linear == 3


def test_a_smaller_load_of_each_raises_the_floor() -> None:
    saving, safe = (
        run(Planner(target_load=load), (185.0, 2.5, model(1, each=CALM)))[-1].replicas for load in (1.0, 0.5)
    )
    assert (saving, safe) == (3, 5)
