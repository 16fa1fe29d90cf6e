"""The probe's parent against a worker that behaves as told; no GPU and no torch."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.hosts import Gpu, Host, LinkLevel, Verdict
from raylane.cluster.probe import ProbeLimits, Prober, probe, tournament

pytestmark = pytest.mark.process

Build = Callable[..., Host]

WORKER = '''
"""Plays one rank. FAULTS lists a fault and the GPUs that show it, as fault:GPU+GPU."""
import argparse, json, os, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("--folder", "--rank", "--size", "--limit-s"):
    parser.add_argument(name)
parser.add_argument("--no-direct", action="store_true")
options = parser.parse_args()
folder, rank = Path(options.folder), int(options.rank)
gpus = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
safe = os.environ.get("NCCL_P2P_DISABLE") == "1" and options.no_direct
faults = [part.split(":") for part in os.environ.get("FAULTS", "").split() if part]
shown = {fault for fault, where in faults if set(where.split("+")) <= set(gpus)}
if safe:
    shown = {fault.removesuffix("-always") for fault in shown if fault.endswith("-always")}
else:
    shown = {fault.removesuffix("-always") for fault in shown}

def report(**event):
    with (folder / f"rank{rank}.events").open("a") as file:
        file.write(json.dumps(event) + "\\n")

def wait(name):
    while not (folder / name).exists():
        time.sleep(0.002)

with open(os.environ["LOG"], "a") as log:
    log.write(f"{os.getpid()} {'+'.join(gpus)} {'safe' if safe else 'direct'}\\n")
if "no-start" in shown:
    sys.exit("ImportError: no torch here")
report(event="ready")
wait("go")
if "crash" in shown and rank == 1:
    sys.exit("CUDA error: an illegal memory access was encountered")
if "segfault" in shown and rank == 1:
    os.kill(os.getpid(), 11)
if "hang" in shown:
    time.sleep(60)
if "corrupt" in shown and rank == 1:
    report(event="corrupt", detail="kernel stores from GPU 0 to GPU 1: 7 of 16 words wrong")
    sys.exit(0)
report(event="checked", peer_access=not safe if len(gpus) == 2 else None)
wait("measure")
if "slow" in shown:
    time.sleep(60)
alone = folder.parent / "measuring"
if rank == 0:
    alone.touch(exist_ok=False)
    time.sleep(0.02)
    alone.unlink()
report(event="result", allreduce_8kb_s=1e-5, allreduce_256kb_s=3e-5, allreduce_32mb_s=0.004 if safe else 0.002,
       **({"latency_s": 5e-6} if len(gpus) == 2 else {}))
'''


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prober]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def prober(faults: str = "", **limits: float) -> Prober:
        monkeypatch.setenv("FAULTS", faults)
        return Prober(
            (sys.executable, "-S", str(script)),
            ProbeLimits(**{"ready_s": 20, "check_s": 10, "measure_s": 10, **limits}),
        )

    return prober


def started(tmp_path: Path) -> list[list[str]]:
    return [line.split() for line in (tmp_path / "log").read_text().splitlines()]


def test_every_pair_and_the_group_of_four_are_measured(build: Build, worker: Callable[..., Prober]) -> None:
    host = probe(build(4), worker())
    assert [link.measured.allreduce_32mb_s for link in host.links if link.measured] == [0.002] * 6
    assert all(link.measured and link.measured.peer_access is True for link in host.links)
    assert [(len(group.uuids), group.verdict, group.allreduce_8kb_s) for group in host.groups] == [
        (4, Verdict.OK, 1e-5)
    ]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param("hang-always", "hangs: not checked within 1.5 s", id="hangs"),
        pytest.param("crash-always", "rank 1 ended with status 1: CUDA error: an illegal memory", id="crashes"),
        pytest.param("segfault-always", "rank 1 ended with status -11", id="is killed"),
        pytest.param("corrupt-always", "corrupts data: kernel stores from GPU 0", id="corrupts"),
        pytest.param("slow-always", "hangs: not result within 1.5 s", id="hangs while it is measured"),
    ],
)
def test_a_pair_that_fails_both_ways_is_broken(
    build: Build, worker: Callable[..., Prober], fault: str, words: str
) -> None:
    host = probe(build(3), worker(f"{fault}:host-0+host-1", check_s=1.5, measure_s=1.5))
    broken, *others = (link.measured for link in host.links)
    assert broken is not None
    assert broken.verdict is Verdict.BROKEN
    assert words in (broken.reason or "")
    assert "through host memory" in (broken.reason or "")
    assert [other.verdict for other in others if other] == [Verdict.OK] * 2


@pytest.mark.parametrize("fault", ["hang", "crash", "corrupt"])
def test_a_pair_that_works_through_host_memory_is_usable_without_peer_access(
    build: Build, worker: Callable[..., Prober], fault: str
) -> None:
    measured = probe(build(2), worker(f"{fault}:host-0+host-1", check_s=3)).links[0].measured
    assert measured is not None
    assert (measured.verdict, measured.peer_access, measured.allreduce_32mb_s) == (Verdict.OK, False, 0.004)
    assert measured.reason is not None


def test_a_group_over_a_pair_without_peer_access_is_measured_without_it(
    build: Build, worker: Callable[..., Prober], tmp_path: Path
) -> None:
    host = probe(build(4), worker("corrupt:host-0+host-1"))
    assert host.groups[0].verdict is Verdict.OK
    assert {mode for _, gpus, mode in started(tmp_path) if gpus.count("+") == 3} == {"safe"}


def test_workers_that_do_not_load_say_nothing_about_links(build: Build, worker: Callable[..., Prober]) -> None:
    with pytest.raises(FailedError, match=r"does not start: it fails: rank [01] .* ImportError: no torch here"):
        probe(build(2), worker("no-start-always:host-0+host-1"))


def test_a_group_that_fails_though_its_pairs_work_is_broken(build: Build, worker: Callable[..., Prober]) -> None:
    host = probe(build(4), worker("hang-always:host-0+host-1+host-2+host-3", check_s=1.5))
    assert all(link.measured and link.measured.verdict is Verdict.OK for link in host.links)
    assert host.groups[0].verdict is Verdict.BROKEN


def test_no_process_and_no_folder_is_left_behind(build: Build, worker: Callable[..., Prober], tmp_path: Path) -> None:
    probe(build(3), worker("hang-always:host-0+host-1 crash:host-1+host-2", check_s=1.5))
    pids = [int(pid) for pid, _, _ in started(tmp_path)]
    assert len(pids) > 6
    assert [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and own_worker(pid)] == []
    assert list(tmp_path.glob("raylane-probe-*")) == []


def own_worker(pid: int) -> bool:
    return b"worker.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_probe_that_is_interrupted_ends_its_workers(
    build: Build, worker: Callable[..., Prober], tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def interrupt(line: str) -> None:
        end_s = time.monotonic() + 20
        while time.monotonic() < end_s and not (log.exists() and log.read_text().count("\n") == 2):
            time.sleep(0.02)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(build(2), replace(worker(), progress=interrupt))
    assert len(started(tmp_path)) == 2
    assert not [pid for pid, _, _ in started(tmp_path) if Path(f"/proc/{pid}").exists() and own_worker(int(pid))]
    assert list(tmp_path.glob("raylane-probe-*")) == []


def gpus_in_use(host: Host, users: dict[int, tuple[int, ...]]) -> Host:
    return replace(host, gpus=tuple(replace(gpu, processes=users.get(gpu.index)) for gpu in host.gpus))


def test_gpus_in_use_are_left_alone_and_named(build: Build, worker: Callable[..., Prober], tmp_path: Path) -> None:
    host = probe(gpus_in_use(build(3), {1: (4711,)}), worker())
    assert host.problems == ("GPU 1 was not probed: process 4711 uses it",)
    assert [link.measured is not None for link in host.links] == [False, True, False]
    assert {gpus for _, gpus, _ in started(tmp_path)} == {"host-0+host-2"}


def test_leased_gpus_are_left_alone_and_their_holder_is_named(
    build: Build, worker: Callable[..., Prober], tmp_path: Path
) -> None:
    leased = {"host-0": "llama-70b one", "host-2": "probe"}
    host = probe(gpus_in_use(build(4), {0: (4711,)}), worker(), leased)
    assert host.problems == (
        "GPU 0 was not probed: it is leased by llama-70b one",
        "GPU 2 was not probed: it is leased by probe",
    )
    assert {gpus for _, gpus, _ in started(tmp_path)} == {"host-1+host-3"}


@pytest.mark.parametrize(
    "end", [pytest.param("does not load", id="group that does not load"), pytest.param("interrupt", id="interrupt")]
)
def test_measured_pairs_are_kept_when_the_groups_are_not_reached(
    build: Build, worker: Callable[..., Prober], end: str
) -> None:
    kept: list[Host] = []

    def interrupt(line: str) -> None:
        if kept and end == "interrupt":
            raise KeyboardInterrupt

    prober = replace(worker("no-start-always:host-0+host-1+host-2+host-3"), progress=interrupt)
    with pytest.raises((FailedError, KeyboardInterrupt)):
        probe(build(4), prober, keep=kept.append)
    (host,) = kept
    assert [link.measured is not None for link in host.links] == [True] * 6
    assert host.groups == ()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        pytest.param(Host("h", (), ()), "there are 0", id="no GPU"),
        pytest.param(Host("h", (Gpu("a", 0, "L40S"),), ()), "there are 1", id="one GPU"),
        pytest.param(
            Host("h", (Gpu("a", 0, "L40S"), Gpu("b", 1, "L40S", mig=True)), ()), "GPU 1 .* MIG", id="one beside MIG"
        ),
        pytest.param(
            Host("h", (Gpu("a", 0, "L40S"), Gpu("b", 1, "L40S", processes=(9,))), ()),
            "process 9",
            id="one beside one in use",
        ),
    ],
)
def test_a_probe_needs_two_free_gpus(worker: Callable[..., Prober], host: Host, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        probe(host, worker())


def test_different_gpus_are_not_paired(build: Build, worker: Callable[..., Prober], tmp_path: Path) -> None:
    probe(build(3, gpu_names={2: "NVIDIA L4"}), worker())
    assert {gpus for _, gpus, _ in started(tmp_path)} == {"host-0+host-1"}


@pytest.mark.parametrize("count", range(2, 10))
def test_a_tournament_plays_every_pair_once_and_no_gpu_twice_a_round(count: int) -> None:
    names = [f"g{i}" for i in range(count)]
    rounds = tournament(names)
    assert sorted(pair for members in rounds for pair in members) == sorted(combinations(names, 2))
    for members in rounds:
        played = [uuid for pair in members for uuid in pair]
        assert len(played) == len(set(played))
    assert len(rounds) == count - 1 + count % 2


def test_the_environment_of_the_caller_reaches_the_workers(
    build: Build, worker: Callable[..., Prober], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL settings that a host needs, such as NCCL_NVLS_ENABLE, are neither dropped nor changed."""
    prober = worker()
    check = "import os,sys; sys.exit('NVLS is ' + os.environ.get('NCCL_NVLS_ENABLE', 'absent'))"
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "0")
    with pytest.raises(FailedError, match="NVLS is 0"):
        replace(prober, command=(sys.executable, "-c", check)).run([[("a", "b")]])


def test_levels_do_not_change_by_probing(build: Build, worker: Callable[..., Prober]) -> None:
    host = probe(build(2, lambda a, b: LinkLevel.PXB), worker())
    assert host.links[0].level is LinkLevel.PXB
