from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from raylane.cluster.hosts import Gpu, Host, Link, LinkLevel, LinkMeasurement, PeerStatus, Verdict
from raylane.cluster.links import Source, host_links, label_time_s, transfer_time_s

Build = Callable[..., Host]
GEN4 = Gpu("a", 0, "NVIDIA L40S", pcie_gen_now=1, pcie_gen_max=4, pcie_width_now=16, pcie_width_max=16)


def label_s(
    level: LinkLevel | None, gpu: Gpu = GEN4, nvlinks: int | None = None, p2p: PeerStatus | None = None
) -> float:
    return label_time_s(gpu, gpu, Link("a", "b", level, nvlink_count=nvlinks, p2p_read=p2p, p2p_write=p2p))


def test_labels_are_ordered_from_the_nearest_to_the_farthest() -> None:
    times = [label_s(LinkLevel.NVLINK, nvlinks=4), *(label_s(level) for level in list(LinkLevel)[1:])]
    assert all(later > 1.1 * earlier for earlier, later in pairwise(times))


def test_one_switch_of_a_gen4_host_is_near_25_gb_per_s_and_across_sockets_under_10() -> None:
    assert 32 * 2**20 / label_s(LinkLevel.PIX) == pytest.approx(25e9, rel=0.02)
    assert 32 * 2**20 / label_s(LinkLevel.SYS) < 10e9


def test_18_nvlinks_are_as_fast_as_an_h200_pair_was_measured() -> None:
    assert 32 * 2**20 / label_s(LinkLevel.NVLINK, nvlinks=18) == pytest.approx(393e9, rel=0.01)


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        pytest.param(
            label_s(LinkLevel.PIX, replace(GEN4, pcie_width_now=8)),
            label_s(LinkLevel.PIX),
            id="a slot with half its lanes",
        ),
        pytest.param(
            label_s(LinkLevel.PIX, p2p=PeerStatus.GPU_NOT_SUPPORTED),
            label_s(LinkLevel.PIX),
            id="no peer access offered",
        ),
        pytest.param(label_s(LinkLevel.PIX), label_s(LinkLevel.PIX, replace(GEN4, pcie_gen_max=5)), id="an older slot"),
    ],
)
def test_what_slows_a_labelled_pair(slower: float, faster: float) -> None:
    assert slower > 1.3 * faster


def test_an_idle_gpu_in_generation_1_is_not_taken_for_a_slow_slot() -> None:
    assert label_s(LinkLevel.PIX) == label_s(LinkLevel.PIX, replace(GEN4, pcie_gen_now=4))


def test_an_unknown_level_is_taken_for_the_farthest() -> None:
    assert label_s(None) == label_s(LinkLevel.SYS)


def test_a_measured_all_reduce_goes_before_measured_copies() -> None:
    both = LinkMeasurement(Verdict.OK, a_to_b_bytes_per_s=20e9, b_to_a_bytes_per_s=10e9, allreduce_32mb_s=0.5)
    assert transfer_time_s(both) == 0.5


def test_copies_alone_count_by_their_slower_direction() -> None:
    copies = LinkMeasurement(
        Verdict.OK, a_to_b_bytes_per_s=2 * 33554432.0, b_to_a_bytes_per_s=33554432.0, latency_s=0.25
    )
    assert transfer_time_s(copies) == 1.25


def test_a_measurement_beats_a_better_label(build: Build) -> None:
    switch_is_slow = build(
        3,
        level=lambda a, b: LinkLevel.PIX if (a, b) == (0, 1) else LinkLevel.SYS,
        times_ms={(0, 1): 9.0, (0, 2): 3.0, (1, 2): 3.0},
    )
    costs = host_links(switch_is_slow).costs
    assert (costs[0][1] or 0) > (costs[0][2] or 0)


def test_an_unprobed_pair_never_looks_faster_than_the_slowest_probed_one_of_its_level(build: Build) -> None:
    host = build(4, times_ms={(0, 1): 8.0, (2, 3): 5.0})
    unprobed = host_links(host).score("host-0", "host-2")
    assert (unprobed.seconds, unprobed.source) == (0.008, Source.SIMILAR)


@pytest.mark.parametrize(
    ("host_options", "word"),
    [
        pytest.param({"broken": frozenset({(0, 1)})}, "broken: hangs", id="the probe found the pair broken"),
        pytest.param({"gpu_names": {1: "NVIDIA L4"}}, "different GPUs", id="two kinds of GPU"),
    ],
)
def test_pairs_that_must_not_be_used_say_why(build: Build, host_options: dict[str, object], word: str) -> None:
    links = host_links(build(2, **host_options))
    score = links.score("host-0", "host-1")
    assert links.costs[0][1] is None
    assert not score.usable
    assert word in score.reason


def test_a_gpu_in_mig_mode_is_left_out(build: Build) -> None:
    assert host_links(build(3, mig=frozenset({1}))).uuids == ("host-0", "host-2")


def test_times_within_ten_percent_are_one_class_and_beyond_are_not(build: Build) -> None:
    costs = host_links(build(3, times_ms={(0, 1): 1.00, (0, 2): 1.09, (1, 2): 1.12})).costs
    assert costs[0][1] == costs[0][2] == 1_000_000
    assert (costs[1][2] or 0) > 1_000_000
