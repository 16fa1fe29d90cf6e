"""The saturation rule: spare room on the peaks of a minute, N-1 before shrinking, nothing while a replica starts."""

import pytest
from seen_models import answers, model, reading, spec

from raylane.autoscaling.decision import Reason
from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.rules.queue import QueueOnly


def used(
    target: int, kv: float | None, waiting: int | None = 0, ready: int | None = None, held: int = 0
) -> ModelObservation:
    return model(target, ready=ready, each=reading(5, waiting, kv), held=held)


def mixed(*replicas: tuple[float, int]) -> ModelObservation:
    """Replicas by (KV use, waiting)."""
    seen = model(len(replicas))
    return seen._replace(
        replicas=tuple(
            one._replace(kv_use=kv, waiting=waiting) for one, (kv, waiting) in zip(seen.replicas, replicas, strict=True)
        )
    )


def after_a_minute(seen: ModelObservation, rule: QueueOnly | None = None) -> tuple[int, Reason]:
    proposal = answers(rule or QueueOnly(), spec(), [(5.0 * n, seen) for n in range(13)])[-1]
    return proposal.replicas, proposal.reason


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(used(2, 0.71), (3, Reason.MEMORY), id="less than 10 % of the KV cache spare"),
        pytest.param(used(2, 0.69), (2, Reason.STEADY), id="more than 10 % spare, but not on one fewer"),
        pytest.param(used(2, 0.1, waiting=3), (3, Reason.QUEUE), id="room for fewer than three more in the queue"),
        pytest.param(used(2, 0.1, waiting=2), (2, Reason.STEADY), id="room for three, but not on one fewer"),
        pytest.param(used(2, 0.1), (1, Reason.SHRINK), id="room on one fewer"),
        pytest.param(used(4, 0.5), (3, Reason.SHRINK), id="one fewer of four"),
        pytest.param(used(4, 0.55), (4, Reason.STEADY), id="one fewer of four would be too full"),
        pytest.param(used(1, 0.0), (1, Reason.STEADY), id="the last one stays"),
        pytest.param(used(2, 0.85), (3, Reason.QUEUE), id="all saturated"),
        pytest.param(
            mixed((0.95, 9), (0.3, 0), (0.3, 0)), (2, Reason.SHRINK), id="saturated ones are left out of the mean"
        ),
        pytest.param(mixed((0.95, 9), (0.75, 0)), (3, Reason.MEMORY), id="the others have no room"),
        pytest.param(used(3, 0.9, ready=2), (3, Reason.WAIT), id="nothing while one starts"),
        pytest.param(used(1, 0.1, held=4), (2, Reason.QUEUE), id="held requests queue"),
        pytest.param(used(2, None, None), (2, Reason.BLIND), id="unknown keeps"),
        pytest.param(model(0, held=1), (1, Reason.WAKE), id="a held request wakes"),
        pytest.param(model(0), (0, Reason.IDLE), id="zero stays zero"),
    ],
)
def test_once_a_minute(seen: ModelObservation, expected: tuple[int, Reason]) -> None:
    assert after_a_minute(seen) == expected


def test_nothing_between_the_minutes() -> None:
    proposals = answers(QueueOnly(), spec(), [(5.0 * n, used(2, 0.9)) for n in range(25)])
    assert [n * 5 for n, proposal in enumerate(proposals) if proposal.replicas != 2] == [60, 120]


def test_it_goes_by_the_peak_of_the_minute() -> None:
    series = [(5.0 * n, used(2, 0.75 if n == 4 else 0.1)) for n in range(25)]
    proposals = answers(QueueOnly(), spec(), series)
    assert (proposals[12].replicas, proposals[24].replicas) == (3, 1)


def test_a_peak_is_kept_over_a_missing_reading() -> None:
    series = [(5.0 * n, used(2, 0.75 if n == 4 else None, None)) for n in range(13)]
    assert answers(QueueOnly(), spec(), series)[-1].reason is Reason.MEMORY
