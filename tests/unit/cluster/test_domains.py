from collections.abc import Callable, Iterator
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.cluster.domains import domains, partition
from raylane.cluster.hosts import Gpu, Host, LinkLevel
from raylane.cluster.links import FarMatrix, NanosecondMatrix, Source, far_apart

Build = Callable[..., Host]
Pairs = list[tuple[int, int]]


def switch_pairs(a: int, b: int) -> LinkLevel:
    """Two GPUs a switch, four a socket."""
    return LinkLevel.PIX if a // 2 == b // 2 else LinkLevel.NODE if a // 4 == b // 4 else LinkLevel.SYS


def indices(host: Host, size: int = 2) -> list[tuple[int, ...]]:
    return [tuple(int(uuid.rsplit("-", 1)[1]) for uuid in domain.uuids) for domain in domains(host, size)]


def test_switches_become_domains(build: Build) -> None:
    assert indices(build(8, switch_pairs)) == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_larger_domains_join_those_of_one_socket(build: Build) -> None:
    assert indices(build(8, switch_pairs), 4) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_a_host_without_switches_pairs_up_within_its_sockets(build: Build) -> None:
    scattered = build(4, lambda a, b: LinkLevel.NODE if a % 2 == b % 2 else LinkLevel.SYS)
    assert indices(scattered) == [(0, 2), (1, 3)]


def test_the_odd_gpu_is_the_one_whose_loss_costs_least(build: Build) -> None:
    host = build(5, times_ms=dict.fromkeys(combinations(range(5), 2), 4.0) | {(0, 2): 1.0, (3, 4): 1.0})
    found = domains(host)
    assert indices(host) == [(0, 2), (1,), (3, 4)]
    assert (found[1].level, found[1].seconds, found[1].source) == (None, None, None)


def test_more_pairs_go_before_faster_pairs(build: Build) -> None:
    """Taking the fastest pair (1, 2) would leave 0 and 3, which do not work together."""
    host = build(
        4,
        times_ms={(0, 1): 5.0, (1, 2): 1.0, (2, 3): 5.0, (0, 2): 9.0, (1, 3): 9.0},
        broken=frozenset({(0, 3)}),
    )
    assert indices(host) == [(0, 1), (2, 3)]


def test_the_slowest_pair_goes_before_the_sum(build: Build) -> None:
    """(0, 1) + (2, 3) sums to 5 with a slowest of 4; (0, 2) + (1, 3) sums to 6 with a slowest of 3."""
    times = {(0, 1): 1.0, (2, 3): 4.0, (0, 2): 3.0, (1, 3): 3.0, (0, 3): 9.0, (1, 2): 9.0}
    assert indices(build(4, times_ms=times)) == [(0, 2), (1, 3)]


def test_a_domain_names_its_slowest_link_and_where_the_figure_comes_from(build: Build) -> None:
    domain = domains(build(2, times_ms={(0, 1): 2.0}))[0]
    assert (domain.level, domain.seconds, domain.source) == (LinkLevel.NODE, 0.002, Source.MEASURED)


def test_broken_pairs_leave_gpus_alone(build: Build) -> None:
    assert indices(build(2, broken=frozenset({(0, 1)}))) == [(0,), (1,)]


@pytest.mark.parametrize("count", [0, 1])
def test_hosts_without_pairs(build: Build, count: int) -> None:
    assert len(domains(build(count))) == count


def test_forty_gpus_are_paired_up_too(build: Build) -> None:
    assert indices(build(40, lambda a, b: LinkLevel.PIX if a // 2 == b // 2 else LinkLevel.SYS)) == [
        (i, i + 1) for i in range(0, 40, 2)
    ]


def test_only_powers_of_two_are_domain_sizes() -> None:
    with pytest.raises(ValueError, match="not 3"):
        partition(((None,),), 3)


@st.composite
def matrices(draw: st.DrawFn, largest: int) -> NanosecondMatrix:
    """Symmetric matrices of pair times, some pairs unusable, few different values so that ties are common."""
    count = draw(st.integers(2, largest))
    value = st.one_of(st.none(), st.sampled_from([10, 11, 20, 40, 95]))
    rows: list[list[int | None]] = [[None] * count for _ in range(count)]
    for i, j in combinations(range(count), 2):
        rows[i][j] = rows[j][i] = draw(value)
    return tuple(tuple(row) for row in rows)


def all_pairings(left: tuple[int, ...]) -> Iterator[Pairs]:
    """Every set of disjoint pairs, complete or not."""
    if len(left) < 2:
        yield []
        return
    first, rest = left[0], left[1:]
    yield from all_pairings(rest)
    for partner in rest:
        for pairs in all_pairings(tuple(i for i in rest if i != partner)):
            yield [(first, partner), *pairs]


def order(costs: NanosecondMatrix, pairs: Pairs) -> tuple[int, int, int] | None:
    """What the issue ranks pairings by, smaller is better; None with an unusable pair."""
    times = [costs[i][j] for i, j in pairs]
    known = [time for time in times if time is not None]
    return (-len(pairs), max(known, default=0), sum(known)) if len(known) == len(times) else None


def pairs_of(costs: NanosecondMatrix) -> Pairs:
    return [(group[0], group[1]) for group in partition(costs, 2) if len(group) == 2]


@st.composite
def nodes_of(draw: st.DrawFn) -> FarMatrix:
    """How far apart seven GPUs are, some without a known NUMA node."""
    nodes = [draw(st.sampled_from([0, 1, 1, None])) for _ in range(7)]
    gpus = [Gpu(str(i), i, "NVIDIA L40S", numa_node=node) for i, node in enumerate(nodes)]
    return tuple(tuple(far_apart(a, b) for b in gpus) for a in gpus)


@settings(max_examples=150)
@given(matrices(largest=7), nodes_of())
def test_of_equal_pairings_the_one_with_the_fewest_pairs_across_nodes(costs: NanosecondMatrix, far: FarMatrix) -> None:
    def key(pairs: Pairs) -> tuple[int, ...] | None:
        ranked = order(costs, pairs)
        return None if ranked is None else (*ranked, sum(far[i][j] for i, j in pairs))

    every = (key(pairs) for pairs in all_pairings(tuple(range(len(costs)))))
    chosen = [(group[0], group[1]) for group in partition(costs, 2, far) if len(group) == 2]
    assert key(chosen) == min(found for found in every if found is not None)


@settings(max_examples=150)
@given(matrices(largest=7))
def test_no_other_pairing_is_better(costs: NanosecondMatrix) -> None:
    every = (order(costs, pairs) for pairs in all_pairings(tuple(range(len(costs)))))
    assert order(costs, pairs_of(costs)) == min(found for found in every if found is not None)


@settings(max_examples=100)
@given(matrices(largest=16))
def test_no_exchange_between_two_domains_is_better(costs: NanosecondMatrix) -> None:
    groups = partition(costs, 2)
    assert sorted(i for group in groups for i in group) == list(range(len(costs)))
    chosen = order(costs, pairs_of(costs))
    assert chosen is not None
    for first, second in combinations(groups, 2):
        others = [(group[0], group[1]) for group in groups if len(group) == 2 and group not in (first, second)]
        for exchanged in all_pairings((*first, *second)):
            other = order(costs, [*others, *exchanged])
            assert other is None or other >= chosen
