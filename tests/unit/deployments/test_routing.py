"""Least outstanding requests, as a pure function."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylane.deployments.directory.reports import Endpoint
from raylane.deployments.gateway.routing import NoPick, Pick, pick


def endpoint(replica: str, model: str = "m", load: int = 0) -> Endpoint:
    return Endpoint(replica, model, f"http://{replica}", "key", load)


A, B, C, OTHER = endpoint("a"), endpoint("b"), endpoint("c"), endpoint("x", model="other")
NOBODY: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("endpoints", "open_requests", "tried", "expected"),
    [
        pytest.param((A, B, C), {"a": 2, "b": 1, "c": 3}, NOBODY, Pick(B, 1), id="the fewest open from here"),
        pytest.param((A, B), {"a": 1}, NOBODY, Pick(B, 0), id="nothing open counts as none"),
        pytest.param(
            (endpoint("a", load=9), endpoint("b", load=3)),
            {},
            NOBODY,
            Pick(endpoint("b", load=3), 0),
            id="equal here: the fewest the engine reported",
        ),
        pytest.param(
            (endpoint("a", load=9), B), {"b": 1}, NOBODY, Pick(endpoint("a", load=9), 0), id="own count before a report"
        ),
        pytest.param((A, B), {"b": 5}, frozenset({"a"}), Pick(B, 5), id="not one that failed already"),
        pytest.param((A,), {}, frozenset({"a"}), NoPick.NO_REPLICA, id="all failed already"),
        pytest.param((OTHER,), {}, NOBODY, NoPick.NO_REPLICA, id="another model's replica will not do"),
        pytest.param((), {}, NOBODY, NoPick.NO_REPLICA, id="no replica at all"),
    ],
)
def test_pick(
    endpoints: tuple[Endpoint, ...], open_requests: dict[str, int], tried: frozenset[str], expected: Pick | NoPick
) -> None:
    for turn in range(4):
        assert pick("m", ("m", "other"), endpoints, open_requests, tried, turn) == expected


@pytest.mark.parametrize(
    ("avoid", "tried", "expected"),
    [
        pytest.param({"a"}, NOBODY, Pick(B, 7), id="others are preferred however busy"),
        pytest.param({"a", "b"}, NOBODY, Pick(A, 0), id="all to be avoided: as if none were"),
        pytest.param({"a"}, frozenset({"b"}), Pick(A, 0), id="the only one left"),
        pytest.param({"x", "gone"}, NOBODY, Pick(A, 0), id="another model's and unknown ones do not matter"),
    ],
)
def test_replicas_to_avoid(avoid: set[str], tried: frozenset[str], expected: Pick) -> None:
    for turn in range(4):
        assert pick("m", ("m",), (A, B, OTHER), {"b": 7}, tried, turn, avoid) == expected


def test_a_model_nobody_deployed_is_unknown_even_if_an_endpoint_claims_it() -> None:
    assert pick("ghost", ("m",), (endpoint("g", model="ghost"),), {}, NOBODY, 0) is NoPick.UNKNOWN_MODEL


def test_ties_take_turns() -> None:
    picks = [pick("m", ("m",), (A, B, C), {}, NOBODY, turn) for turn in range(30)]
    assert Counter(p.endpoint.replica_id for p in picks if isinstance(p, Pick)) == {"a": 10, "b": 10, "c": 10}


@given(
    loads=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8),
    tried=st.frozensets(st.integers(0, 7)),
    turn=st.integers(0, 10**6),
)
def test_no_replica_that_was_able_had_less(loads: list[tuple[int, int]], tried: frozenset[int], turn: int) -> None:
    endpoints = [endpoint(str(i), load=reported) for i, (_, reported) in enumerate(loads)]
    opened = {str(i): here for i, (here, _) in enumerate(loads)}
    left = [i for i in range(len(loads)) if i not in tried]
    found = pick("m", ("m",), endpoints, opened, frozenset(map(str, tried)), turn)
    if not left:
        assert found is NoPick.NO_REPLICA
        return
    assert isinstance(found, Pick)
    chosen = int(found.endpoint.replica_id)
    assert chosen in left
    assert all(loads[chosen] <= loads[i] for i in left)
    assert found.open_requests == loads[chosen][0]


def test_requests_that_stay_open_spread_evenly() -> None:
    opened: Counter[str] = Counter()
    for turn in range(31):
        found = pick("m", ("m",), (A, B, C), opened, NOBODY, turn)
        assert isinstance(found, Pick)
        opened[found.endpoint.replica_id] += 1
    assert max(opened.values()) - min(opened.values()) == 1
