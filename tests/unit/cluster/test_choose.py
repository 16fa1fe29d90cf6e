from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.cluster.choose import Choice, Refusal, choose
from raylane.cluster.domains import domains
from raylane.cluster.hosts import GroupMeasurement, Host, LinkLevel, Verdict
from raylane.cluster.links import SAME_CLASS, host_links
from raylane.cluster.recording import load_recording

Build = Callable[..., Host]
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "topology"
RECORDED = [host for path in sorted(FIXTURES.glob("*.json")) for host in load_recording(path)]


def switch_pairs(a: int, b: int) -> LinkLevel:
    """Two GPUs a switch, four a socket."""
    return LinkLevel.PIX if a // 2 == b // 2 else LinkLevel.NODE if a // 4 == b // 4 else LinkLevel.SYS


def choose_indices(host: Host, free: set[int], tp: int) -> tuple[int, ...] | None:
    found = choose(frozenset(f"host-{i}" for i in free), host, tp)
    return tuple(int(uuid.rsplit("-", 1)[1]) for uuid in found.uuids) if isinstance(found, Choice) else None


@pytest.mark.parametrize(
    ("free", "tp", "expected"),
    [
        pytest.param(range(8), 2, (0, 1), id="a pair takes a whole switch"),
        pytest.param({1, 2, 3, 4}, 2, (2, 3), id="a pair takes the whole switch that is left, not the lowest indices"),
        pytest.param({1, 3, 4, 6}, 2, (1, 3), id="with only halves left a pair stays on its socket"),
        pytest.param({0, 1, 3, 4, 5}, 1, (3,), id="a single fills the half-used switch"),
        pytest.param({0, 1, 4, 5, 6}, 1, (6,), id="a single fills the half-used switch of the other socket"),
        pytest.param({0, 1, 2, 3, 5, 6, 7}, 1, (5,), id="of a half-used and three whole switches the half-used one"),
        pytest.param(range(8), 4, (0, 1, 2, 3), id="four take a whole socket"),
        pytest.param({1, 2, 3, 4, 5, 6, 7}, 4, (4, 5, 6, 7), id="four take the socket that is whole"),
        pytest.param(range(8), 8, tuple(range(8)), id="eight take the host"),
        pytest.param({0, 1, 2, 3, 6}, 3, (0, 1, 2), id="three stay on one socket"),
        pytest.param({5}, 1, (5,), id="the last free GPU"),
        pytest.param({5}, 2, None, id="two do not come out of one"),
        pytest.param(set(), 1, None, id="nothing is free"),
    ],
)
def test_eight_gpus_on_four_switches(build: Build, free: set[int], tp: int, expected: tuple[int, ...] | None) -> None:
    assert choose_indices(build(8, switch_pairs), set(free), tp) == expected


def test_a_pair_leaves_the_next_pair_well_linked_too(build: Build) -> None:
    """The fastest pair (1, 2) would leave (0, 3), the slowest."""
    times = {(0, 1): 2.0, (1, 2): 1.0, (2, 3): 2.0, (0, 2): 3.0, (1, 3): 3.0, (0, 3): 9.0}
    host = build(4, times_ms=times)
    first = choose_indices(host, {0, 1, 2, 3}, 2)
    assert first is not None
    assert {first, choose_indices(host, {0, 1, 2, 3} - set(first), 2)} == {(0, 1), (2, 3)}


def test_a_gpu_without_partner_is_the_first_for_a_single(build: Build) -> None:
    host = build(4, broken=frozenset({(0, 2), (1, 2), (2, 3)}))
    assert choose_indices(host, {0, 1, 2, 3}, 1) == (2,)


@pytest.mark.parametrize(
    ("free", "expected", "word"),
    [
        pytest.param({2, 3}, False, "PIX", id="a whole switch"),
        pytest.param({1, 3}, True, "second best", id="two halves of switches"),
    ],
)
def test_the_choice_says_how_good_its_link_is(build: Build, free: set[int], expected: bool, word: str) -> None:
    found = choose(frozenset(f"host-{i}" for i in free), build(8, switch_pairs), 2)
    assert isinstance(found, Choice)
    assert found.second_best is expected
    assert word in found.reason


def test_the_only_link_of_a_host_is_not_second_best(build: Build) -> None:
    found = choose(frozenset({"host-0", "host-1"}), build(2, lambda a, b: LinkLevel.SYS), 2)
    assert isinstance(found, Choice)
    assert not found.second_best


@pytest.mark.parametrize(
    ("options", "tp", "words"),
    [
        pytest.param({"broken": frozenset({(0, 1)})}, 2, "usable links", id="the only pair is broken"),
        pytest.param({"mig": frozenset({0})}, 2, "MIG", id="a GPU is in MIG mode"),
        pytest.param({"gpu_names": {0: "NVIDIA L4"}}, 2, "usable links", id="two kinds of GPU"),
        pytest.param({}, 3, "3 GPUs wanted, 2 free", id="more than there are"),
    ],
)
def test_refusals_give_the_reason(build: Build, options: dict[str, object], tp: int, words: str) -> None:
    found = choose(frozenset({"host-0", "host-1"}), build(2, **options), tp)
    assert isinstance(found, Refusal)
    assert words in found.reason


def test_a_group_the_probe_found_broken_is_not_chosen(build: Build) -> None:
    host = build(8, switch_pairs)
    broken = GroupMeasurement(tuple(f"host-{i}" for i in range(4)), Verdict.BROKEN, "hangs")
    assert choose_indices(replace(host, groups=(broken,)), set(range(8)), 4) == (4, 5, 6, 7)


@pytest.mark.parametrize(("free", "tp"), [({"host-9"}, 1), ({"host-0"}, 0)])
def test_calls_that_mean_nothing_are_errors(build: Build, free: set[str], tp: int) -> None:
    with pytest.raises(ValueError, match=r"host-9|at least 1"):
        choose(frozenset(free), build(2), tp)


def test_sixteen_gpus_take_well_under_50_ms(build: Build, cpu_clock: Callable[[], float]) -> None:
    host = build(16, switch_pairs)
    began_s = cpu_clock()
    for tp in (1, 2, 4, 8):
        choose(frozenset(gpu.uuid for gpu in host.gpus), host, tp)
    assert (cpu_clock() - began_s) / 4 < 0.05


def test_more_than_sixteen_free_gpus_still_get_a_whole_domain(build: Build) -> None:
    host = build(24, lambda a, b: LinkLevel.PIX if a // 2 == b // 2 else LinkLevel.SYS)
    pair = choose_indices(host, set(range(24)) - {0}, 2)
    assert pair is not None
    assert pair[0] // 2 == pair[1] // 2
    assert choose_indices(host, set(range(24)) - {0}, 1) == (1,)


@st.composite
def pictures(draw: st.DrawFn) -> tuple[int, dict[tuple[int, int], float], frozenset[tuple[int, int]], frozenset[int]]:
    """A host of 2 to 9 measured GPUs, some pairs broken, and which are free."""
    count = draw(st.integers(2, 9))
    pairs = list(combinations(range(count), 2))
    times = {pair: draw(st.sampled_from([1.0, 1.5, 3.0, 7.0])) for pair in pairs}
    broken = frozenset(draw(st.sets(st.sampled_from(pairs), max_size=3)))
    return count, times, broken, frozenset(draw(st.sets(st.integers(0, count - 1))))


@settings(max_examples=200)
@given(picture=pictures(), tp=st.integers(1, 5))
def test_choices_are_free_usable_and_refused_only_if_there_is_none(
    build: Build,
    picture: tuple[int, dict[tuple[int, int], float], frozenset[tuple[int, int]], frozenset[int]],
    tp: int,
) -> None:
    count, times, broken, free = picture
    host = build(count, times_ms=times, broken=broken)
    found = choose_indices(host, set(free), tp)
    possible = [
        group for group in combinations(sorted(free), tp) if not any(pair in broken for pair in combinations(group, 2))
    ]
    assert (found in possible) if possible else found is None


@settings(max_examples=200)
@given(host=st.sampled_from([host for host in RECORDED if len(host.gpus) > 1]), data=st.data())
def test_whole_domains_stay_whole_while_a_half_used_one_has_room(host: Host, data: st.DataObject) -> None:
    free = frozenset(data.draw(st.sets(st.sampled_from([gpu.uuid for gpu in host.gpus]), min_size=1)))
    single = choose(free, host, 1)
    assert isinstance(single, Choice)
    halves = {uuid for domain in domains(host) if not free.issuperset(domain.uuids) for uuid in domain.uuids} & free
    assert not halves or set(single.uuids) <= halves


@settings(max_examples=200)
@given(host=st.sampled_from([host for host in RECORDED if len(host.gpus) > 1]), data=st.data())
def test_a_pair_is_on_a_link_of_the_fastest_free_class_of_every_recording(host: Host, data: st.DataObject) -> None:
    free = frozenset(data.draw(st.sets(st.sampled_from([gpu.uuid for gpu in host.gpus]), min_size=2)))
    pair = choose(free, host, 2)
    assert isinstance(pair, Choice)
    links = host_links(host)
    scores = [links.score(a, b).seconds for a, b in combinations(sorted(free), 2)]
    assert pair.seconds is not None
    assert pair.seconds <= SAME_CLASS * min(time_s for time_s in scores if time_s is not None)


@settings(max_examples=100)
@given(host=st.sampled_from(RECORDED), sizes=st.lists(st.sampled_from([1, 2, 4]), max_size=20), data=st.data())
def test_a_gpu_is_in_at_most_one_lease(host: Host, sizes: list[int], data: st.DataObject) -> None:
    free, leases = {gpu.uuid for gpu in host.gpus}, list[tuple[str, ...]]()
    for size in sizes:
        found = choose(frozenset(free), host, size)
        if isinstance(found, Choice):
            free -= set(found.uuids)
            leases.append(found.uuids)
        elif leases:
            free |= set(leases.pop(data.draw(st.integers(0, len(leases) - 1))))
        held = [uuid for lease in leases for uuid in lease]
        assert len(held) == len(set(held)) == len(host.gpus) - len(free)
