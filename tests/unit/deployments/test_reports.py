"""Traffic of several gateways as one, and what grew between two snapshots."""

from dataclasses import replace

import pytest

from raylane.deployments.directory.reports import GATEWAY_STALE_S, ModelTraffic, Snapshot, add_traffic, traffic_growth

ONE = ModelTraffic(
    received=10,
    completed=4,
    failed=1,
    open=3,
    admitted=7,
    rejected=1,
    cancelled=1,
    held=2,
    oldest_held_age_s=1.5,
    first_byte_wait_s={"r": 0.5, "q": 2.0},
)


def snapshot(gateways: dict[str, ModelTraffic], ages_s: dict[str, float] | None = None) -> Snapshot:
    return Snapshot("e", ("m",), (), {}, {name: {"m": traffic} for name, traffic in gateways.items()}, ages_s or {})


def test_counters_and_gauges_are_added_up_and_of_ages_the_largest_counts() -> None:
    other = ModelTraffic(received=1, open=1, held=1, oldest_held_age_s=0.2, first_byte_wait_s={"r": 0.7, "s": 0.1})
    assert ONE + other == ModelTraffic(
        received=11,
        completed=4,
        failed=1,
        open=4,
        admitted=7,
        rejected=1,
        cancelled=1,
        held=3,
        oldest_held_age_s=1.5,
        first_byte_wait_s={"r": 0.7, "q": 2.0, "s": 0.1},
    )
    assert (ONE + other).oldest_first_byte_wait_s == 2.0


def test_nothing_added_changes_nothing() -> None:
    assert ONE + ModelTraffic() == ModelTraffic() + ONE == ONE
    assert add_traffic([]) == {}
    assert add_traffic([{"m": ONE}, {}, {"other": ModelTraffic(received=1)}])["m"] == ONE


def test_a_gateway_that_does_not_speak_keeps_its_counters_and_loses_its_gauges() -> None:
    seen = snapshot({"a": ONE, "b": ONE}, {"a": 0.3, "b": GATEWAY_STALE_S + 0.1}).traffic()["m"]
    assert (seen.received, seen.completed) == (20, 8)
    assert (seen.open, seen.held, seen.oldest_held_age_s) == (3, 2, 1.5)


@pytest.mark.parametrize(
    ("before", "after", "received"),
    [
        pytest.param({"a": 10, "b": 5}, {"a": 12, "b": 9}, 6, id="the growth of all gateways"),
        pytest.param({"a": 10, "b": 5}, {"a": 12}, 2, id="a gateway that stopped takes nothing away"),
        pytest.param({"a": 10}, {"a": 12, "b": 900}, 2, id="a gateway not heard of before brings no past"),
        pytest.param({"a": 10}, {"a": 3}, 0, id="a count never falls"),
    ],
)
def test_growth(before: dict[str, int], after: dict[str, int], received: int) -> None:
    first, second = (
        snapshot({name: ModelTraffic(received=count) for name, count in counts.items()}) for counts in (before, after)
    )
    assert traffic_growth(first, second)["m"] == ModelTraffic(received=received)


def test_growth_from_a_directory_that_knew_no_gateway_is_unknown() -> None:
    assert traffic_growth(snapshot({}), snapshot({"a": ONE})) == {}


def test_growth_of_every_counter_and_of_no_gauge() -> None:
    more = replace(ONE, received=11, completed=6, failed=4, admitted=11, rejected=6, cancelled=7)
    grown = traffic_growth(snapshot({"a": ONE}), snapshot({"a": more}))["m"]
    assert grown == ModelTraffic(received=1, completed=2, failed=3, admitted=4, rejected=5, cancelled=6)
