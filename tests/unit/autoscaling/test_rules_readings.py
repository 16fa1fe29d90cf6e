"""What rules read of an observation, impossible readings, and series over time."""

from math import inf, nan
from typing import Any

import pytest
from seen_models import model, reading, spec

from raylane.autoscaling.observation import ModelObservation, Phase, ReplicaObservation, clean
from raylane.autoscaling.rules.fixed import Fixed
from raylane.autoscaling.rules.readings import (
    Series,
    cooled,
    keep_one,
    mean_over,
    note_change,
    ongoing,
    record,
)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(model(2, each=reading(3, 2), held=1), 11.0, id="running, waiting and held"),
        pytest.param(model(3, ready=1, each=reading(3)), 3.0, id="starting ones hold none"),
        pytest.param(model(0, held=4), 4.0, id="held ones without a replica"),
        pytest.param(model(2, each=reading(None), held=4), None, id="unknown"),
        pytest.param(
            model(0)._replace(replicas=(reading(4), reading(None), ReplicaObservation("d", Phase.DRAINING, 9, 9))),
            8.0,
            id="an unknown one as the others, a draining one not at all",
        ),
    ],
)
def test_ongoing(seen: ModelObservation, expected: float | None) -> None:
    assert ongoing(seen) == expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(model(1), 0, id="none inside: none"),
        pytest.param(model(1, each=reading(1)), 1, id="one inside: one"),
        pytest.param(model(1, each=reading(None)), 1, id="unknown: one"),
    ],
)
def test_the_last_one_is_kept_for_requests(seen: ModelObservation, expected: int) -> None:
    assert keep_one(seen, 0) == expected


def test_a_series_keeps_its_time_and_skips_what_is_unknown() -> None:
    series: Series = ()
    for n in range(20):
        series = record(series, 5.0 * n, None if n % 2 else float(n), 30.0)
    assert series == ((70.0, 14.0), (80.0, 16.0), (90.0, 18.0))
    assert mean_over(series, 95.0, 20.0) == 17.0
    assert mean_over(series, 95.0, 0.0) is None
    assert mean_over(series, 90.0, 0.0) == 18.0
    assert record(series, 10.0, 1.0, 30.0) == ((10.0, 1.0),)


def test_a_change_counts_from_the_decision_that_made_it() -> None:
    change = note_change(None, model(2), 0.0)
    assert cooled(change, 0.0, 900.0)
    change = note_change(change, model(3), 5.0)
    assert change.changed_s == 0.0
    assert not cooled(change, 899.0, 900.0)
    assert cooled(change, 900.0, 900.0)


@pytest.mark.parametrize(
    "value", [nan, inf, -inf, -1.0], ids=["not a number", "infinite", "minus infinite", "negative"]
)
@pytest.mark.parametrize("name", ["waiting", "running", "kv_use", "gpu_utilization"])
def test_an_impossible_reading_of_a_replica_becomes_none(name: str, value: float) -> None:
    changes: dict[str, Any] = {name: value}
    seen = model(1, each=reading(1, 1, 0.5, 0.5)._replace(**changes))
    replica = clean(seen).replicas[0]
    assert getattr(replica, name) is None
    assert replica.phase is Phase.READY
    assert sum(getattr(replica, other) is None for other in ("waiting", "running", "kv_use", "gpu_utilization")) == 1


@pytest.mark.parametrize("name", ["arrivals_total", "missed_total", "output_tokens_total", "queue_age_s"])
def test_an_impossible_total_becomes_none(name: str) -> None:
    changes: dict[str, Any] = {name: nan}
    assert getattr(clean(model(1)._replace(**changes)), name) is None


def test_possible_readings_are_left_as_they_are() -> None:
    seen = model(3, each=reading(1, 1, 0.5, 0.5))
    assert clean(seen) is seen


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        pytest.param(3, 3, id="one number for all"),
        pytest.param({"m": 5, "other": 1}, 5, id="by name"),
        pytest.param({"other": 1}, 2, id="not named: as it is"),
        pytest.param(0, 0, id="off stays off"),
    ],
)
def test_fixed(replicas: dict[str, int] | int, expected: int) -> None:
    proposal, memory = Fixed(replicas).propose(spec(), model(2, held=3), 0.0)
    assert (proposal.replicas, memory) == (expected, None)
