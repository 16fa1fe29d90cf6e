"""The worker's own code on the CPU: gloo in place of NCCL, two real processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.hosts import Host, Verdict
from raylane.cluster.probe import WORKER, ProbeLimits, Prober, probe

torch = pytest.importorskip("torch")

from raylane.cluster import probe_worker  # noqa: E402  the lines above decide whether it can run
from raylane.cluster.probe_worker import CorruptError, Group  # noqa: E402

pytestmark = pytest.mark.process


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Group]:
    """A process group of this process only."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Group(0, 1, "gloo", torch.device("cpu"), direct=True)
    dist.destroy_process_group()


def test_two_ranks_check_and_measure_on_the_cpu(build: Callable[..., Host]) -> None:
    prober = Prober((*WORKER, "--backend", "gloo"), ProbeLimits(check_s=60, measure_s=60))
    measured = probe(build(2), prober).links[0].measured
    assert measured is not None
    assert (measured.verdict, measured.reason, measured.peer_access) == (Verdict.OK, None, None)
    small, large = measured.allreduce_8kb_s, measured.allreduce_32mb_s
    assert small is not None
    assert large is not None
    assert 0 < small < large < 10
    assert 0 < (measured.latency_s or 0) < 1
    assert measured.a_to_b_bytes_per_s is None


def test_whole_data_passes_the_check(alone: Group) -> None:
    probe_worker.check(alone)


@pytest.mark.parametrize("spoiled_bytes", [8 * 1024, 32 * 1024 * 1024])
def test_one_wrong_word_in_an_all_reduce_is_found(
    alone: Group, monkeypatch: pytest.MonkeyPatch, spoiled_bytes: int
) -> None:
    import torch.distributed as dist

    def spoil(data: Any) -> None:
        if data.numel() * 4 == spoiled_bytes:
            data[-1] += 1

    monkeypatch.setattr(dist, "all_reduce", spoil)
    with pytest.raises(CorruptError, match=f"{spoiled_bytes} bytes: 1 of {spoiled_bytes // 4} words wrong"):
        probe_worker.check(alone)


def test_an_all_reduce_that_does_nothing_is_found(alone: Group) -> None:
    """With two ranks expected and only one adding, the sum is short."""
    with pytest.raises(CorruptError, match="all-reduce of 8192 bytes"):
        probe_worker.check_all_reduce(Group(0, 2, "gloo", alone.device, direct=True), 8192, 0)


def test_timed_loops_run_as_often_as_they_say(alone: Group) -> None:
    calls: list[int] = []
    assert probe_worker.timed(alone, lambda: calls.append(1), 7) >= 0
    assert len(calls) == 7
