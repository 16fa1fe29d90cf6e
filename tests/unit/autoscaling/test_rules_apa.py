"""The proportional rule: tolerance, rates, the larger metric, and stabilised shrinking."""

import pytest
from seen_models import answers, model, reading, spec

from raylane.autoscaling.decision import Reason
from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.rules.apa import Apa


def used(
    target: int, kv: float | None, waiting: int | None = 0, ready: int | None = None, held: int = 0
) -> ModelObservation:
    return model(target, ready=ready, each=reading(5, waiting, kv), held=held)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(used(4, 0.54), (4, Reason.STEADY), id="within the tolerance above"),
        pytest.param(used(4, 0.46), (4, Reason.STEADY), id="within the tolerance below"),
        pytest.param(used(4, 0.60), (5, Reason.MEMORY), id="in proportion to the KV use"),
        pytest.param(used(2, 1.0, waiting=50), (4, Reason.QUEUE), id="at most doubled"),
        pytest.param(used(8, 0.01), (4, Reason.SHRINK), id="at least halved"),
        pytest.param(used(4, 0.1, waiting=7), (6, Reason.QUEUE), id="the larger metric counts"),
        pytest.param(used(1, 0.1, held=9), (2, Reason.QUEUE), id="held requests wait"),
        pytest.param(used(4, 0.60, ready=2), (3, Reason.SHRINK), id="starting ones are not counted"),
        pytest.param(used(1, 0.0), (1, Reason.STEADY), id="the last one stays"),
        pytest.param(used(2, None, None), (2, Reason.STEADY), id="unknown keeps"),
        pytest.param(model(2, ready=0, held=4), (2, Reason.BLIND), id="none ready keeps"),
        pytest.param(model(0, held=4), (1, Reason.WAKE), id="a held request wakes"),
    ],
)
def test_ratios(seen: ModelObservation, expected: tuple[int, Reason]) -> None:
    proposal = answers(Apa(), spec(), [(5.0 * n, seen) for n in range(40)])[-1]
    assert (proposal.replicas, proposal.reason) == expected


@pytest.mark.parametrize(
    ("after_s", "expected"), [(295, 4), (305, 2)], ids=["within the stabilisation", "after the stabilisation"]
)
def test_it_shrinks_to_the_largest_wish_of_the_stabilisation(after_s: int, expected: int) -> None:
    rule = Apa(window_s=0.0)
    series = [(0.0, used(4, 0.5)), *((float(at_s), used(4, 0.1)) for at_s in range(5, after_s + 1, 5))]
    assert answers(rule, spec(), series)[-1].replicas == expected


def test_growth_is_not_stabilised() -> None:
    proposals = answers(Apa(window_s=0.0), spec(), [(0.0, used(4, 0.5)), (5.0, used(4, 1.0))])
    assert proposals[-1].replicas == 8


def test_readings_are_averaged_over_the_window() -> None:
    series = [(5.0 * n, used(4, 1.0 if n == 35 else 0.5)) for n in range(36)]
    assert answers(Apa(), spec(), series)[-1].replicas == 4
    assert answers(Apa(window_s=5.0), spec(), series)[-1].replicas == 8
