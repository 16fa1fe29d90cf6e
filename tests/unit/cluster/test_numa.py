"""Where links are equally fast, GPUs of one NUMA node go together: domains, choices, plans and moves."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from raylane.cli.topology import topology
from raylane.cluster.choose import Choice, choose
from raylane.cluster.domains import domains
from raylane.cluster.hosts import Gpu, Host, LinkLevel
from raylane.cluster.links import far_apart, host_links
from raylane.cluster.moves import better_choice, free_a_domain
from raylane.cluster.planner import Want, plan, search
from raylane.cluster.recording import load_recording, save_recording

Build = Callable[..., Host]
Indices = tuple[int, ...]

CROSSED = (0, 1, 1, 0)
MIXED = (0, 1, 1, 0, 1, 0, 0, 1)


def sys_host(build: Build, nodes: tuple[int | None, ...], **options: object) -> Host:
    """Every pair across sockets by its label, as a virtual machine says, or boards without peer switches."""
    return build(len(nodes), lambda a, b: LinkLevel.SYS, nodes=nodes, **options)


def indices(uuids: tuple[str, ...]) -> Indices:
    return tuple(sorted(int(uuid.rsplit("-", 1)[1]) for uuid in uuids))


def named(*gpus: int) -> frozenset[str]:
    return frozenset(f"host-{i}" for i in gpus)


@pytest.mark.parametrize(
    ("nodes", "size", "expected"),
    [
        pytest.param(CROSSED, 2, [(0, 3), (1, 2)], id="two sockets"),
        pytest.param(CROSSED[:3], 2, [(0,), (1, 2)], id="the odd one is the one without a neighbour"),
        pytest.param((0, 0, 1), 2, [(0, 1), (2,)], id="at the end, too"),
        pytest.param((1, 0, 0), 2, [(0,), (1, 2)], id="at the beginning, too"),
        pytest.param((0, None, 1, 0), 2, [(0, 3), (1, 2)], id="a node that is not known is neither near nor far"),
        pytest.param((None,) * 4, 2, [(0, 1), (2, 3)], id="without any node neighbours by index"),
        pytest.param(MIXED, 4, [(0, 3, 5, 6), (1, 2, 4, 7)], id="fours"),
        pytest.param((0, 1) * 8, 8, [tuple(range(0, 16, 2)), tuple(range(1, 16, 2))], id="eights of sixteen"),
    ],
)
def test_domains_of_equal_links(
    build: Build, nodes: tuple[int | None, ...], size: int, expected: list[Indices]
) -> None:
    assert [indices(domain.uuids) for domain in domains(sys_host(build, nodes), size)] == expected


def test_a_faster_link_goes_before_a_node(build: Build) -> None:
    fast_across = dict.fromkeys(combinations(range(4), 2), 4.0) | {(0, 1): 2.0, (2, 3): 2.0}
    host = sys_host(build, CROSSED, times_ms=fast_across)
    assert [indices(domain.uuids) for domain in domains(host)] == [(0, 1), (2, 3)]


def test_measured_times_within_the_noise_are_equal(build: Build) -> None:
    noisy = dict(zip(combinations(range(4), 2), (4.00, 4.11, 4.32, 4.21, 4.05, 4.02), strict=True))
    host = sys_host(build, CROSSED, times_ms=noisy)
    assert [indices(domain.uuids) for domain in domains(host)] == [(0, 3), (1, 2)]


def test_the_slowest_pair_of_all_goes_before_its_node(build: Build) -> None:
    """(0, 1) + (2, 3) sums to 5 ms, both across nodes; (0, 2) + (1, 3) to 8 ms, both within one."""
    times = dict.fromkeys(combinations(range(4), 2), 4.0) | {(0, 1): 1.0}
    host = sys_host(build, (0, 1, 0, 1), times_ms=times)
    assert [indices(domain.uuids) for domain in domains(host)] == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("free", "tp", "expected"),
    [
        pytest.param(range(8), 2, (1, 2), id="a pair"),
        pytest.param({0, 1, 2}, 2, (1, 2), id="a pair of three"),
        pytest.param({0, 1, 2, 7}, 3, (1, 2, 7), id="three"),
        pytest.param(range(8), 4, (0, 3, 5, 6), id="four"),
        pytest.param({1, 2, 3, 4, 5, 6, 7}, 4, (1, 2, 4, 7), id="four of the node that is whole"),
        pytest.param({0, 1, 2}, 1, (0,), id="a single takes the one without a neighbour"),
        pytest.param({0, 3, 1, 2, 4}, 1, (4,), id="a single leaves whole pairs"),
    ],
)
def test_choices_among_equal_links(build: Build, free: set[int], tp: int, expected: Indices) -> None:
    found = choose(named(*free), sys_host(build, MIXED), tp)
    assert isinstance(found, Choice)
    assert indices(found.uuids) == expected
    assert not found.second_best


@settings(max_examples=150)
@given(nodes=st.lists(st.sampled_from([0, 1, None]), min_size=2, max_size=9), tp=st.integers(2, 5), data=st.data())
def test_no_other_group_of_equal_links_spans_fewer_nodes(
    build: Build, nodes: list[int | None], tp: int, data: st.DataObject
) -> None:
    host = sys_host(build, tuple(nodes))
    free = data.draw(st.sets(st.integers(0, len(nodes) - 1)))
    found = choose(named(*free), host, tp)
    groups = list(combinations(sorted(free), tp))
    assert isinstance(found, Choice) == bool(groups)

    def apart(members: Indices) -> int:
        return sum(far_apart(host.gpus[i], host.gpus[j]) for i, j in combinations(members, 2))

    def left(members: Indices) -> int:
        """How far apart the pairs of the GPUs that are left over are, at best."""
        rest = tuple(sorted(free.difference(members)))
        return min((sum(apart(pair) for pair in pairs) for pairs in pairings(rest)), default=0)

    if isinstance(found, Choice):
        chosen = indices(found.uuids)
        assert apart(chosen) + left(chosen) == min(apart(group) + left(group) for group in groups)


def pairings(free: Indices) -> list[list[Indices]]:
    """Every way to pair up as many as there can be."""
    if len(free) < 2:
        return [[]]
    alone = pairings(free[1:]) if len(free) % 2 else []
    return alone + [
        [(free[0], partner), *rest]
        for partner in free[1:]
        for rest in pairings(tuple(i for i in free[1:] if i != partner))
    ]


def test_a_plan_of_equal_links(build: Build) -> None:
    found = plan([sys_host(build, MIXED)], [Want("big", 4, 1, 1), Want("small", 2, 2, 2)])
    placed = [indices(placement.uuids) for placement in found.placements]
    assert [{MIXED[i] for i in group} for group in placed] == [{0}, {1}, {1}]


def test_groups_found_by_search_keep_to_their_nodes(build: Build) -> None:
    links = host_links(sys_host(build, CROSSED))
    assert search(links.costs, (2, 2), frozenset(), (0, 1, 2, 3), links.far) == ((0, 3), (1, 2))


@pytest.mark.parametrize(
    ("held", "free", "expected"),
    [
        pytest.param((0, 1), (3,), (0, 3), id="a pair across nodes joins one of them"),
        pytest.param((0, 3), (5, 6), None, id="a pair on one node stays"),
        pytest.param((0, 1, 2, 4), (7,), (1, 2, 4, 7), id="four come together"),
    ],
)
def test_moves_to_one_node(build: Build, held: Indices, free: Indices, expected: Indices | None) -> None:
    found = better_choice(named(*free), tuple(f"host-{i}" for i in held), sys_host(build, MIXED))
    assert (indices(found.uuids) if isinstance(found, Choice) else None) == expected


def test_the_domain_to_be_freed_is_one_on_one_node(build: Build) -> None:
    host = sys_host(build, (0, 0, 0, 1, 1, 1))
    parts = [indices(domain.uuids) for domain in domains(host)]
    assert len([part for part in parts if len({host.gpus[i].numa_node for i in part}) == 1]) == 2
    singles = {named(part[0]): f"r{part[0]}" for part in parts}
    move = free_a_domain(host, singles, 2)
    assert move is not None
    assert len({host.gpu(uuid).numa_node for uuid in move.frees}) == 1


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        pytest.param((0, None), (0, None), 0, id="one node"),
        pytest.param((0, None), (1, None), 2, id="two nodes"),
        pytest.param((None, (0, 1)), (None, (0, 1)), 0, id="no node, the same CPUs"),
        pytest.param((None, (0, 1)), (1, (2, 3)), 2, id="a node on one side, other CPUs"),
        pytest.param((0, (0, 1)), (1, (0, 1)), 2, id="nodes go before CPUs"),
        pytest.param((None, ()), (None, (2, 3)), 1, id="no node and no CPUs"),
        pytest.param((0, None), (None, None), 1, id="one node, the other not known"),
    ],
)
def test_how_far_apart_two_gpus_are(
    a: tuple[int | None, Indices | None], b: tuple[int | None, Indices | None], apart: int
) -> None:
    first, second = (Gpu(name, 0, "NVIDIA L40S", numa_node=node, cpu_affinity=cpus)
                     for name, (node, cpus) in (("a", a), ("b", b)))  # fmt: skip
    assert far_apart(first, second) == far_apart(second, first) == apart


def test_the_command_shows_pairs_within_sockets(build: Build, tmp_path: Path) -> None:
    """Only the CPUs tell the sockets; the recording says, as Linux does, node -1 for none."""
    host = sys_host(build, CROSSED)
    gpus = tuple(
        replace(gpu, cpu_affinity=(0, 1) if node else (2, 3)) for gpu, node in zip(host.gpus, CROSSED, strict=True)
    )
    path = tmp_path / "box.json"
    save_recording(path, [replace(host, gpus=gpus)], "composed by hand")
    path.write_text(path.read_text().replace('"cpu_affinity"', '"numa_node": -1, "cpu_affinity"'))
    assert all(gpu.numa_node is None for gpu in load_recording(path)[0].gpus)
    app = typer.Typer()
    app.command()(topology)
    shown = CliRunner().invoke(app, ["--from", str(path)], catch_exceptions=False).output
    assert "GPU 0 + GPU 3: SYS" in shown
    assert "GPU 1 + GPU 2: SYS" in shown
