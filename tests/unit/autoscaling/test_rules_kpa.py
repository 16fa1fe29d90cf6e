"""The rule with a panic window: two windows, panic without shrinking, rates, and the scale-down delay."""

import pytest
from seen_models import HOLDS, OUTPUT, PROMPT, answers, model, reading, spec

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.rules.kpa import Kpa

TARGET = 0.7 * HOLDS


def holding(loads: float, target: int, ready: int | None = None, begun: bool = True) -> ModelObservation:
    """`loads` times the requests one replica should have, spread over the ready ones."""
    done = 1000.0 if begun else 0.0
    count = target if ready is None else ready
    return model(
        target,
        ready=ready,
        each=reading(round(loads * TARGET / count)),
        arrivals_total=done,
        finished_total=done,
        prompt_tokens_total=done * PROMPT,
        output_tokens_total=done * OUTPUT,
    )


def run(rule: Kpa, *phases: tuple[float, ModelObservation]) -> list[Proposal]:
    """Each observation for so many seconds, every five."""
    series = [
        (
            0.0,
            phases[0][1]._replace(
                arrivals_total=0.0, finished_total=0.0, prompt_tokens_total=0.0, output_tokens_total=0.0
            ),
        )
    ]
    for seconds, seen in phases:
        for _ in range(int(seconds / 5)):
            series.append((series[-1][0] + 5.0, seen))
    return answers(rule, spec(), series)


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        pytest.param([(300.0, holding(2.9, 3))], (3, Reason.STEADY), id="requests over the target of each"),
        pytest.param([(300.0, holding(2.9, 2))], (3, Reason.DEMAND), id="one more"),
        pytest.param([(300.0, holding(2.9, 5))], (3, Reason.SHRINK), id="fewer"),
        pytest.param([(300.0, holding(0.9, 6))], (3, Reason.SHRINK), id="at least half of the ready ones"),
        pytest.param([(300.0, holding(7.9, 2))], (4, Reason.DEMAND), id="at most twice the ready ones"),
        pytest.param(
            [(300.0, holding(7.9, 4, ready=2))], (4, Reason.STEADY), id="the rate goes by ready ones, not by starting"
        ),
        pytest.param([(300.0, model(1))], (0, Reason.IDLE), id="none without requests"),
        pytest.param([(300.0, model(0, held=3))], (1, Reason.WAKE), id="a held request wakes"),
        pytest.param([(300.0, model(2, each=reading(None)))], (2, Reason.BLIND), id="unknown keeps"),
        pytest.param(
            [(300.0, holding(0.5, 1)), (30.0, holding(3.0, 1))],
            (2, Reason.DEMAND),
            id="a jump panics before the stable window sees it",
        ),
        pytest.param(
            [(300.0, holding(0.9, 1)), (60.0, holding(3.0, 1)), (100.0, holding(0.5, 3))],
            (3, Reason.HOLD),
            id="no shrinking in a panic",
        ),
        pytest.param(
            [(300.0, holding(0.9, 1)), (60.0, holding(3.0, 1)), (400.0, holding(0.5, 3))],
            (1, Reason.SHRINK),
            id="shrinking a stable window after the panic",
        ),
    ],
)
def test_windows_and_rates(phases: list[tuple[float, ModelObservation]], expected: tuple[int, Reason]) -> None:
    proposal = run(Kpa(), *phases)[-1]
    assert (proposal.replicas, proposal.reason) == expected


def test_a_slow_rise_does_not_panic() -> None:
    proposals = run(Kpa(panic_threshold=10.0), (300.0, holding(0.5, 1)), (30.0, holding(3.0, 1)))
    assert proposals[-1].replicas == 1


@pytest.mark.parametrize(("after_s", "expected"), [(100.0, 4), (260.0, 2)], ids=["within the delay", "after it"])
def test_scale_down_delay(after_s: float, expected: int) -> None:
    rule = Kpa(stable_s=30.0, panic_s=10.0, scale_down_delay_s=200.0)
    proposals = run(rule, (300.0, holding(3.9, 4)), (after_s, holding(1.9, 4)))
    assert proposals[-1].replicas == expected


def test_a_smaller_share_asks_for_more() -> None:
    saving, safe = (run(Kpa(target_share=share), (300.0, holding(2.9, 3)))[-1].replicas for share in (1.0, 0.4))
    assert saving < safe
