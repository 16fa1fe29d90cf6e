"""Utilisation thresholds: steps, cooldown on both ways or one, and the two readings of utilisation."""

import pytest
from seen_models import OUTPUT, PROMPT, RATE_RPS, Loop, answers, model, reading, spec

from raylane.autoscaling.decision import Reason
from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.rules.utilization import Utilization


def used(target: int, gpu: float | None, **changes: int) -> ModelObservation:
    return model(target, each=reading(3, gpu=gpu), **changes)


@pytest.mark.parametrize(
    ("rule", "seen", "expected"),
    [
        pytest.param(Utilization(), used(2, 0.71), (3, Reason.DEMAND), id="above 70 % one more"),
        pytest.param(Utilization(), used(2, 0.70), (2, Reason.STEADY), id="at 70 % none"),
        pytest.param(Utilization(), used(2, 0.40), (2, Reason.STEADY), id="at 40 % none"),
        pytest.param(Utilization(), used(2, 0.39), (1, Reason.SHRINK), id="below 40 % one fewer"),
        pytest.param(Utilization(step=2), used(5, 1.0), (7, Reason.DEMAND), id="by the step"),
        pytest.param(Utilization(), used(1, 0.1), (1, Reason.STEADY), id="the last one stays with requests inside"),
        pytest.param(Utilization(), model(1), (0, Reason.IDLE), id="the last one goes without"),
        pytest.param(Utilization(), used(2, None), (2, Reason.BLIND), id="unknown keeps"),
        pytest.param(Utilization(), model(2, ready=0, held=5), (2, Reason.BLIND), id="starting ones have no reading"),
        pytest.param(Utilization(), model(0, held=1), (1, Reason.WAKE), id="a held request wakes"),
    ],
)
def test_thresholds(rule: Utilization, seen: ModelObservation, expected: tuple[int, Reason]) -> None:
    proposal = answers(rule, spec(), [(0.0, seen)])[-1]
    assert (proposal.replicas, proposal.reason) == expected


@pytest.mark.parametrize(
    ("rule", "gpu", "after_s", "expected"),
    [
        pytest.param(Utilization(), 0.9, 895, 3, id="no growth within the cooldown"),
        pytest.param(Utilization(), 0.9, 900, 4, id="growth after it"),
        pytest.param(Utilization(), 0.1, 895, 3, id="no shrinking within the cooldown"),
        pytest.param(Utilization(), 0.1, 900, 2, id="shrinking after it"),
        pytest.param(Utilization(cooldown_on="shrink"), 0.9, 5, 4, id="growth at once when only shrinking cools"),
        pytest.param(Utilization(cooldown_on="shrink"), 0.1, 895, 3, id="shrinking cools then too"),
    ],
)
def test_cooldown(rule: Utilization, gpu: float, after_s: int, expected: int) -> None:
    """A change from 2 to 3 at 0 s; the answer after so many seconds at 3 replicas."""
    series = [(0.0, used(2, 0.9)), *((float(at_s), used(3, gpu)) for at_s in range(5, after_s + 1, 5))]
    proposals = answers(rule, spec(), series)
    assert proposals[0].replicas == 3
    if gpu > 0.5 or after_s >= 100:
        assert proposals[-1].replicas == expected


def test_a_proposal_that_was_not_granted_does_not_cool() -> None:
    proposals = answers(Utilization(), spec(), [(0.0, used(2, 0.9)), (5.0, used(2, 0.9))])
    assert [proposal.replicas for proposal in proposals] == [3, 3]


def test_readings_are_averaged_over_the_window() -> None:
    series = [(5.0 * n, used(2, 0.5)) for n in range(11)] + [(55.0, used(2, 1.0))]
    assert answers(Utilization(), spec(), series)[-1].reason is Reason.STEADY
    assert answers(Utilization(window_s=5.0), spec(), series)[-1].reason is Reason.DEMAND


def test_effective_utilisation_is_work_over_capacity() -> None:
    def after_a_minute(loads: float, busy: float) -> Reason:
        seen = [
            (
                5.0 * n,
                used(2, busy)._replace(
                    arrivals_total=5.0 * n * loads * RATE_RPS,
                    finished_total=5.0 * n * loads * RATE_RPS,
                    prompt_tokens_total=5.0 * n * loads * RATE_RPS * PROMPT,
                    output_tokens_total=5.0 * n * loads * RATE_RPS * OUTPUT,
                ),
            )
            for n in range(13)
        ]
        return answers(Utilization(effective=True), spec(), seen)[-1].reason

    assert after_a_minute(1.5, busy=0.0) is Reason.DEMAND
    assert after_a_minute(1.1, busy=1.0) is Reason.STEADY
    assert after_a_minute(0.6, busy=1.0) is Reason.SHRINK


def test_the_nvml_reading_grows_to_the_cap_at_a_load_one_replica_carries() -> None:
    def modest(_: float) -> float:
        return 0.5 * RATE_RPS

    cap = spec(least=1, most=6)
    assert Loop(Utilization(), modest, of=cap).run(6 * 900.0)[-1] == 6
    assert Loop(Utilization(effective=True), modest, of=cap).run(6 * 900.0)[-1] == 1
