"""Better GPUs for a running replica, and freeing a domain: tables and properties on every recording."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.cluster.choose import Choice, Refusal, choose
from raylane.cluster.domains import domains
from raylane.cluster.hosts import Host, LinkLevel
from raylane.cluster.links import host_links
from raylane.cluster.moves import better_choice, exact_choice, free_a_domain
from raylane.cluster.recording import load_recording

Build = Callable[..., Host]
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "topology"
RECORDED = [host for path in sorted(FIXTURES.glob("*.json")) for host in load_recording(path) if len(host.gpus) > 1]


def switch_pairs(a: int, b: int) -> LinkLevel:
    """Two GPUs a switch, four a socket."""
    return LinkLevel.PIX if a // 2 == b // 2 else LinkLevel.NODE if a // 4 == b // 4 else LinkLevel.SYS


def named(indices: set[int] | tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"host-{i}" for i in sorted(indices))


@pytest.mark.parametrize(
    ("held", "free", "expected"),
    [
        pytest.param({1, 4}, {2, 3}, {2, 3}, id="a pair across sockets goes to a whole switch"),
        pytest.param({1, 2}, {0, 5}, {0, 1}, id="it may keep one of its GPUs"),
        pytest.param({1, 4}, {2, 6}, {1, 2}, id="without a whole switch one socket is better than two"),
        pytest.param({0, 1}, {2, 3}, None, id="a pair on its switch stays"),
        pytest.param({1, 2}, {5, 7}, None, id="a pair with nothing better free stays"),
        pytest.param({0}, {1, 3, 4, 5}, {3}, id="a single that splits a switch goes to a half-used one"),
        pytest.param({0}, {2, 3}, None, id="a single whose neighbour is taken stays"),
        pytest.param({0}, {1}, None, id="a single on the last switch stays"),
    ],
)
def test_better_gpus(build: Build, held: set[int], free: set[int], expected: set[int] | None) -> None:
    found = better_choice(frozenset(named(free)), named(held), build(8, switch_pairs))
    if expected is None:
        assert isinstance(found, Refusal)
        assert "no better GPUs" in found.reason
    else:
        assert isinstance(found, Choice)
        assert found.uuids == named(expected)


def test_a_pair_whose_link_has_turned_out_broken_moves_anywhere(build: Build) -> None:
    host = build(4, switch_pairs, broken=frozenset({(0, 1)}))
    found = better_choice(frozenset(named({2})), named({0, 1}), host)
    assert isinstance(found, Choice)
    assert "host-2" in found.uuids


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        pytest.param(("host-9", "host-0"), "host has no GPU host-9", id="an unknown GPU"),
        pytest.param(("host-0",), "needs 2 GPUs, 1 were named", id="too few"),
        pytest.param(("host-0", "host-0"), "needs 2 GPUs, 1 were named", id="one twice"),
        pytest.param(("host-4", "host-1"), "is on host-1, host-4 already", id="where it is"),
        pytest.param(("host-1", "host-5"), "not free: host-5", id="taken by another"),
        pytest.param(("host-2", "host-3"), "usable links to each other", id="a broken pair"),
    ],
)
def test_what_was_asked_for_and_cannot_be(build: Build, wanted: tuple[str, ...], says: str) -> None:
    host = build(8, switch_pairs, broken=frozenset({(2, 3)}))
    found = exact_choice(frozenset(named({0, 2, 3})), ("host-1", "host-4"), wanted, host)
    assert isinstance(found, Refusal)
    assert says in found.reason


def test_worse_gpus_may_be_asked_for_and_are_marked(build: Build) -> None:
    found = exact_choice(frozenset(named({2, 4})), named({0, 1}), ("host-4", "host-1"), build(8, switch_pairs))
    assert isinstance(found, Choice)
    assert found.uuids == ("host-1", "host-4")
    assert found.second_best
    assert found.reason.startswith("asked for")


@pytest.mark.parametrize(
    ("held", "tp", "expected"),
    [
        pytest.param([{0}, {2}, {4, 5}, {6, 7}], 2, ("0", "3", {0, 1}), id="two halves become one whole"),
        pytest.param([{0}, {4, 5}, {6, 7}], 2, None, id="a switch is free already"),
        pytest.param([{0, 2}, {4, 5}, {6, 7}], 2, None, id="only pairs are in the way"),
        pytest.param([{0, 2}, {4}, {5}, {6, 7}], 2, ("4", "1", {4, 5}), id="two singles leave a switch one by one"),
        pytest.param([{0}, {1}, {2}, {4, 5}, {6, 7}], 2, None, id="one free GPU frees nothing"),
        pytest.param([{0}, {4, 5}], 4, ("0", "6", {0, 1, 2, 3}), id="a socket for four"),
    ],
)
def test_freeing_a_domain(
    build: Build, held: list[set[int]], tp: int, expected: tuple[str, str, set[int]] | None
) -> None:
    replicas = {frozenset(named(gpus)): "+".join(map(str, sorted(gpus))) for gpus in held}
    move = free_a_domain(build(8, switch_pairs), replicas, tp)
    if expected is None:
        assert move is None
    else:
        assert move is not None
        replica, to, frees = expected
        assert (move.replica, move.to_gpu, set(move.frees)) == (replica, f"host-{to}", set(named(frees)))


@pytest.mark.parametrize("tp", [pytest.param(1, id="one GPU"), pytest.param(32, id="more than any domain")])
def test_sizes_without_domains_are_an_error(build: Build, tp: int) -> None:
    with pytest.raises(ValueError, match=f"not {tp}"):
        free_a_domain(build(4), {}, tp)


@st.composite
def occupied(draw: st.DrawFn) -> tuple[Host, dict[frozenset[str], str]]:
    """A recorded host with singles and pairs on some of its GPUs."""
    host = draw(st.sampled_from(RECORDED))
    left = draw(st.permutations([gpu.uuid for gpu in host.gpus]))
    held: dict[frozenset[str], str] = {}
    for size in draw(st.lists(st.sampled_from([1, 1, 2]), max_size=len(left))):
        if size <= len(left):
            taken, left = left[:size], left[size:]
            held[frozenset(taken)] = f"replica-{len(held)}"
    return host, held


@settings(max_examples=150)
@given(occupied())
def test_following_the_moves_frees_the_domain_in_as_many_moves_as_said(
    drawn: tuple[Host, dict[frozenset[str], str]],
) -> None:
    host, held = drawn
    everything = {gpu.uuid for gpu in host.gpus}
    first = free_a_domain(host, held, 2)
    left = first
    done = 0
    while left is not None:
        assert held[frozenset({left.gpu})] == left.replica, "only a single moves"
        assert left.to_gpu in everything.difference(*held), "to a free GPU"
        assert left.to_gpu not in left.frees
        held[frozenset({left.to_gpu})] = held.pop(frozenset({left.gpu}))
        done += 1
        left = free_a_domain(host, held, 2)
    if first is not None:
        assert done == first.moves
        free = everything.difference(*held)
        assert any(free.issuperset(domain.uuids) for domain in domains(host) if len(domain.uuids) == 2)


@settings(max_examples=150)
@given(occupied())
def test_no_move_only_where_no_way_of_moving_singles_frees_a_domain(
    drawn: tuple[Host, dict[frozenset[str], str]],
) -> None:
    host, held = drawn
    free = {gpu.uuid for gpu in host.gpus}.difference(*held)
    whole = [set(domain.uuids) for domain in domains(host) if len(domain.uuids) == 2]
    pairs = set().union(*(uuids for uuids in held if len(uuids) == 2))
    possible = [domain for domain in whole if not domain & pairs and len(domain - free) <= len(free - domain)]
    move = free_a_domain(host, held, 2)
    if any(domain <= free for domain in whole) or not possible:
        assert move is None
    else:
        assert move is not None
        assert move.moves == min(len(domain - free) for domain in possible)


@settings(max_examples=150)
@given(occupied())
def test_a_better_choice_is_never_slower_and_is_not_found_twice(
    drawn: tuple[Host, dict[frozenset[str], str]],
) -> None:
    host, held = drawn
    links = host_links(host)
    for uuids in held:
        mine = tuple(sorted(uuids, key=links.uuids.index))
        free = frozenset({gpu.uuid for gpu in host.gpus}.difference(*held))
        found = better_choice(free, mine, host)
        if isinstance(found, Refusal):
            continue
        assert set(found.uuids) <= free | uuids
        assert set(found.uuids) != uuids
        for a, b in combinations(found.uuids, 2):
            new, old = links.score(a, b).seconds, links.score(*mine).seconds
            assert old is None or (new is not None and new <= old * 1.1), "times within 10 % are one class"
        after = (free | uuids).difference(found.uuids)
        assert isinstance(better_choice(after, found.uuids, host), Refusal), "a replica does not wander"
        assert isinstance(choose(after | set(found.uuids), host, len(found.uuids)), Choice)
