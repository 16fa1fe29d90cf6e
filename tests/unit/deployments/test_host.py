"""A replica's host on a recording: moving its lease, GPUs that others use, the CPUs next to its GPUs."""

import fcntl
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from raylane.cluster.errors import FailedError
from raylane.cluster.held_gpus import GpuProcesses, HeldGpu
from raylane.cluster.hosts import Host
from raylane.cluster.leases import holders, runtime_folder
from raylane.cluster.recording import load_recording
from raylane.deployments.replicas import host as host_module
from raylane.deployments.replicas.host import CpuHost, GpuHost

RECORDING = Path(__file__).resolve().parents[2] / "fixtures" / "topology" / "l40s-x8-plx.json"


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    monkeypatch.setenv("RAYLANE_RUNTIME", str(tmp_path))
    (found,) = load_recording(RECORDING)
    monkeypatch.setattr(host_module, "read_hardware", lambda folder: found)
    return found


def uuids(hardware: Host, *indices: int) -> tuple[str, ...]:
    return tuple(hardware.gpus[index].uuid for index in indices)


def with_processes(hardware: Host, pids: dict[int, tuple[int, ...]]) -> Host:
    return replace(hardware, gpus=tuple(replace(gpu, processes=pids.get(gpu.index, ())) for gpu in hardware.gpus))


def test_a_pair_moves_to_where_it_asked_and_back_to_its_best(hardware: Host) -> None:
    host = GpuHost("m one", "127.0.0.1", 2)
    with closing(host.lease()) as first:
        assert first.choice.uuids == uuids(hardware, 0, 1)
        with closing(host.lease_elsewhere(first, uuids(hardware, 1, 2))) as second:
            first.close()
            assert second.choice.second_best
            assert {holder.resource for holder in holders(runtime_folder())} == set(uuids(hardware, 1, 2))
            host.check_move(second, None)
            with closing(host.lease_elsewhere(second, None)) as third:
                assert not third.choice.second_best
    assert holders(runtime_folder()) == []


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_runtime_folder_that_cannot_be_used_fails_a_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYLANE_RUNTIME", str(tmp_path / "file"))
    with pytest.raises(FailedError, match=f"{tmp_path / 'file'} cannot be used"):
        GpuHost("m one", "127.0.0.1", gpus) if gpus else CpuHost("m one", "127.0.0.1")


def test_looking_whether_a_move_would_do_takes_nothing(hardware: Host) -> None:
    host = GpuHost("m one", "127.0.0.1", 2)
    with closing(host.lease()) as lease:
        held = holders(runtime_folder())
        host.check_move(lease, uuids(hardware, 2, 3))
        with pytest.raises(FailedError, match="does not move: l40s-plx: no better GPUs"):
            host.check_move(lease, None)
        assert holders(runtime_folder()) == held


def test_the_engines_own_processes_do_not_keep_it_from_moving_and_those_of_others_do(
    hardware: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = GpuHost("m one", "127.0.0.1", 2)
    with closing(host.lease()) as lease:
        busy = with_processes(hardware, {0: (100,), 1: (101,), 2: (4711,)})
        monkeypatch.setattr(host_module, "read_hardware", lambda folder: busy)
        host.check_move(lease, uuids(hardware, 1, 3))
        with pytest.raises(FailedError, match=rf"in use by others: {uuids(hardware, 2)[0]} by process 4711"):
            host.check_move(lease, uuids(hardware, 1, 2))
        with pytest.raises(FailedError, match="4711"):
            host.lease_elsewhere(lease, uuids(hardware, 1, 2))


def test_foreign_processes_are_read_in_the_replicas_turn(hardware: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came while the replica waited for its turn counts, one that went does not."""
    in_turn = []

    def read_now() -> tuple[GpuProcesses, ...]:
        with (runtime_folder() / "choosing.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                in_turn.append(True)
        pids = {0: frozenset({4711}), 2: None}
        return tuple(GpuProcesses(HeldGpu(gpu.uuid, None), pids.get(gpu.index, frozenset())) for gpu in hardware.gpus)

    before = with_processes(hardware, {2: (4712,), 4: (4713,)})
    monkeypatch.setattr(host_module, "read_hardware", lambda folder: before)
    monkeypatch.setattr(host_module, "read_gpu_processes", read_now)
    with closing(GpuHost("m one", "127.0.0.1", 2).lease()) as lease:
        assert in_turn == [True]
        assert lease.choice.uuids == uuids(hardware, 4, 5)
    with pytest.raises(FailedError) as error:
        GpuHost("m one", "127.0.0.1", 8).lease()
    for index, pid in ((0, 4711), (2, 4712)):
        assert f"{uuids(hardware, index)[0]} by process {pid}" in str(error.value)
    assert "4713" not in str(error.value)


def test_a_runtime_folder_that_went_away_is_a_failure_of_the_replica(hardware: Host) -> None:
    gpu_host, cpu_host = GpuHost("m one", "127.0.0.1", 2), CpuHost("m two", "127.0.0.1")
    with closing(gpu_host.lease()) as lease:
        shutil.rmtree(runtime_folder())
        for failing in (gpu_host.lease, cpu_host.lease, lambda: gpu_host.check_move(lease, None)):
            with pytest.raises(FailedError, match="cannot be used: No such file or directory"):
                failing()


def test_gpus_that_another_replica_leases_are_not_moved_to(hardware: Host) -> None:
    host, other = GpuHost("m one", "127.0.0.1", 2), GpuHost("m two", "127.0.0.1", 2)
    with closing(host.lease()) as lease, closing(other.lease()) as others:
        with pytest.raises(FailedError, match="not free"):
            host.check_move(lease, others.choice.uuids)
        with pytest.raises(FailedError, match="not free"):
            host.lease_elsewhere(lease, others.choice.uuids)


def test_the_engine_gets_the_cpus_next_to_its_gpus(hardware: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    near = [replace(gpu, cpu_affinity=(0, 1) if gpu.index < 4 else (2, 3)) for gpu in hardware.gpus]
    monkeypatch.setattr(host_module, "read_hardware", lambda folder: replace(hardware, gpus=tuple(near)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 3, 9})
    host = GpuHost("m one", "127.0.0.1", 2)
    assert host.cpus(uuids(hardware, 0, 1)) == (1,)
    assert host.cpus(uuids(hardware, 3, 4)) == (1, 2, 3)


def test_recorded_gpus_say_nothing_of_this_machines_cpus_and_processes(
    hardware: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLANE_TOPOLOGY", str(RECORDING))
    host = GpuHost("m one", "127.0.0.1", 2)
    assert host.cpus(uuids(hardware, 0, 1)) is None
    assert host.held_gpus(uuids(hardware, 0, 1), "one") is None
    assert host.read_gpus(uuids(hardware, 0, 1)) == ()


def test_a_replica_without_gpus_has_nowhere_to_move(hardware: Host) -> None:
    host = CpuHost("m one", "127.0.0.1")
    with closing(host.lease()) as lease:
        for move in (host.check_move, host.lease_elsewhere):
            with pytest.raises(FailedError, match="runs on no GPU"):
                move(lease, None)
