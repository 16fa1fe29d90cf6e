"""Leases under real contention: processes that start at once, die, hold ports, and folders that cannot be used."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from raylane.cluster import leases
from raylane.cluster.choose import Choice, Refusal
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.leases import (
    PORT_BLOCK,
    PORT_BLOCKS,
    Chooser,
    Lease,
    free_gpus,
    hold_free_gpus,
    holders,
    runtime_folder,
    take_lease,
)

pytestmark = pytest.mark.process

GPUS = tuple(f"GPU-{number:04d}" for number in range(20))
# Takes two GPUs as soon as standard input ends (so that all start together), says which, and holds them until killed.
TAKER = """
import json, sys, time
from pathlib import Path
from raylane.cluster.choose import Choice
from raylane.cluster.leases import take_lease
owner, folder, gpus = sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(",")
print("up", flush=True)
sys.stdin.read()
first_two = lambda free: Choice(tuple(sorted(free)[:2]), "the first two", second_best=False)
lease = take_lease(owner, gpus, first_two, "127.0.0.1", folder)
print(json.dumps([lease.choice.uuids, lease.ports.start]), flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYLANE_RUNTIME", str(tmp_path / "runtime"))
    return runtime_folder()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def first(count: int) -> Chooser:
    def choose(free: frozenset[str]) -> Choice | Refusal:
        if len(free) < count:
            return Refusal(f"{count} wanted, {len(free)} free")
        return Choice(tuple(sorted(free)[:count]), "the first ones", second_best=False)

    return choose


def take(folder: Path, count: int = 1, owner: str = "someone") -> Lease:
    return take_lease(owner, GPUS[:4], first(count), "127.0.0.1", folder)


@contextmanager
def takers(count: int, folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    arguments = [str(folder), ",".join(GPUS)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, f"owner-{number}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def say_go(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert line(process) == "up\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()


def test_ten_processes_that_start_at_once_share_nothing(folder: Path) -> None:
    with takers(10, folder) as processes:
        say_go(processes)
        taken = [json.loads(line(process)) for process in processes]
        gpus = [uuid for uuids, _ in taken for uuid in uuids]
        assert sorted(gpus) == sorted(GPUS)
        assert len({start for _, start in taken}) == 10
        assert all(start in PORT_BLOCKS for _, start in taken)
        seen = {holder.resource: (holder.owner, holder.pid) for holder in holders(folder)}
        expected = {
            uuid: (f"owner-{number}", process.pid)
            for number, (process, (uuids, _)) in enumerate(zip(processes, taken, strict=True))
            for uuid in uuids
        }
        assert seen == expected
        assert len(holders(folder, "ports")) == 10


def test_a_killed_holder_holds_nothing(folder: Path) -> None:
    with takers(1, folder) as processes:
        say_go(processes)
        uuids, start = json.loads(line(processes[0]))
        assert [holder.resource for holder in holders(folder)] == uuids
        os.kill(processes[0].pid, signal.SIGKILL)
        processes[0].wait()
        assert holders(folder) == []
        with closing(take(folder, 2)) as lease:
            assert lease.choice.uuids == tuple(uuids)
            assert lease.ports.start == start


def test_a_lease_handed_on_to_a_child_outlives_the_giver(folder: Path) -> None:
    lease = take(folder)
    child = subprocess.Popen(["sleep", "60"], pass_fds=lease.lock_fds)
    try:
        lease.close()
        assert [holder.resource for holder in holders(folder)] == [GPUS[0]]
    finally:
        child.kill()
        child.wait()
    assert holders(folder) == []


def test_closing_twice_closes_nothing_of_others(folder: Path) -> None:
    lease = take(folder)
    lease.close()
    lease.close()
    assert holders(folder) == []


def test_only_what_was_chosen_stays_held(folder: Path) -> None:
    with closing(take(folder, 1)) as one:
        assert one.choice.uuids == (GPUS[0],)
        with closing(take(folder, 3)) as three:
            assert three.choice.uuids == GPUS[1:4]
            assert set(one.ports).isdisjoint(three.ports)


def test_a_refusal_says_who_wanted_and_why_and_holds_nothing(folder: Path) -> None:
    open_before = open_files()
    with pytest.raises(FailedError, match="no GPUs for big-model: 5 wanted, 4 free"):
        take(folder, 5, owner="big-model")
    assert holders(folder) == []
    assert holders(folder, "ports") == []
    assert open_files() == open_before


def test_a_chooser_that_raises_leaves_nothing_held(folder: Path) -> None:
    def fail(free: frozenset[str]) -> Choice | Refusal:
        raise ValueError("unknown GPU")

    open_before = open_files()
    with pytest.raises(ValueError, match="unknown GPU"):
        take_lease("someone", GPUS, fail, "127.0.0.1", folder)
    assert holders(folder) == []
    assert open_files() == open_before


def test_a_port_that_somebody_listens_on_is_passed_over(folder: Path) -> None:
    with closing(take(folder)) as probe:
        free = probe.ports.start
    with socket.create_server(("127.0.0.1", free)), closing(take(folder)) as lease:
        assert lease.ports.start > free
        assert len(lease.ports) == PORT_BLOCK


def test_all_ports_taken_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PORT_BLOCKS", range(20_000, 20_000 + 2 * PORT_BLOCK, PORT_BLOCK))
    with ExitStack() as held:

        def take_three() -> None:
            for _ in range(3):
                held.enter_context(closing(take(folder)))

        with pytest.raises(FailedError, match=r"no free block of 32 ports between 20000 and 20064"):
            take_three()


def test_an_address_that_is_not_this_hosts_is_named(folder: Path) -> None:
    with pytest.raises(FailedError, match=r"192\.0\.2\.1"):
        take_lease("someone", (), first(0), "192.0.2.1", folder)


def problems_of_taking(folder: Path, count: int, until_s: float) -> list[str]:
    """Take and give back until then, or until it is refused once."""
    while time.monotonic() < until_s:
        try:
            take(folder, count).close()
        except FailedError as error:
            return [str(error)]
    return []


def test_what_is_looked_at_and_not_chosen_is_never_missing_for_the_next(folder: Path) -> None:
    """Four replicas that take one of four GPUs each, over and over: there is always one left for each of them."""
    until_s = time.monotonic() + 1.5
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(problems_of_taking, folder, 1, until_s) for _ in range(4)]
        assert [run.result() for run in runs] == [[], [], [], []]


def test_looking_at_the_holders_never_takes_a_gpu_from_a_replica_that_starts(folder: Path) -> None:
    """A status page reads the locks while replicas start; for them every free GPU must stay free."""
    take(folder, 4).close()  # the lock files are there
    taking_ended = threading.Event()

    def look() -> None:
        while not taking_ended.is_set():
            holders(folder)

    with ThreadPoolExecutor(2) as pool:
        looking = pool.submit(look)
        taking = pool.submit(problems_of_taking, folder, 4, time.monotonic() + 1.5)
        problems = taking.result()
        taking_ended.set()
        looking.result()
    assert problems == []


def test_a_runtime_folder_that_is_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("RAYLANE_RUNTIME", str(blocked))
    with pytest.raises(UsageError, match=rf"{blocked} cannot be used: .*set RAYLANE_RUNTIME"):
        runtime_folder()
    monkeypatch.setenv("RAYLANE_RUNTIME", str(blocked / "below"))
    with pytest.raises(UsageError, match="Not a directory; set RAYLANE_RUNTIME"):
        runtime_folder()


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write everywhere, so be nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_runtime_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    monkeypatch.setenv("RAYLANE_RUNTIME", str(closed / "runtime"))
    with (
        without_privileges(),
        pytest.raises(UsageError, match=rf"{closed}/runtime cannot .*Permission denied; set RAYLANE_RUNTIME"),
    ):
        runtime_folder()


def test_a_runtime_folder_of_another_user_is_named() -> None:
    folder = Path(tempfile.mkdtemp(prefix="raylane-test-"))  # pytest's own folders are closed to everybody else
    try:
        for part in ("gpus", "ports", "logs"):
            (folder / part).mkdir()
        folder.chmod(0o555)
        with without_privileges(), pytest.raises(UsageError, match=str(folder)):
            take(folder)
    finally:
        shutil.rmtree(folder)


def test_a_default_runtime_folder_that_another_user_made_first_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real, other = os.getuid(), 4_000_000_000 - os.getpid()  # nobody's folder in /tmp
    folder = Path(f"/tmp/raylane-{other}")
    monkeypatch.delenv("RAYLANE_RUNTIME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: other)
    try:
        with pytest.raises(UsageError, match=rf"{folder} is user {real}'s, not {other}'s; set RAYLANE_RUNTIME"):
            runtime_folder()
        assert list(folder.iterdir()) == []
    finally:
        folder.rmdir()


def test_a_folder_that_the_user_names_may_be_another_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLANE_RUNTIME", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert runtime_folder() == tmp_path


def test_a_lock_file_that_cannot_be_opened_is_named_and_nothing_stays_held(folder: Path) -> None:
    (folder / "gpus" / GPUS[2]).mkdir()  # cannot be opened for writing, not even by root
    before = open_files()
    words = rf"gpus/{GPUS[2]}: cannot be locked: Is a directory"
    with pytest.raises(FailedError, match=words):
        take(folder)
    with pytest.raises(FailedError, match=words):
        free_gpus(GPUS[:4], folder)
    with pytest.raises(FailedError, match=words):
        holders(folder)
    with pytest.raises(FailedError, match=words), hold_free_gpus("probe", GPUS[:4], folder):
        pytest.fail("held")
    assert open_files() == before
    (folder / "gpus" / GPUS[2]).rmdir()
    assert free_gpus(GPUS[:4], folder) == set(GPUS[:4])


def test_a_folder_of_locks_that_cannot_be_listed_is_named(folder: Path) -> None:
    (folder / "gpus").rmdir()
    with pytest.raises(UsageError, match=rf"{folder} cannot be used: No such file or directory"):
        holders(folder)


def test_the_runtime_folder_is_this_users_alone(folder: Path) -> None:
    assert folder.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in folder.iterdir()) == ["gpus", "logs", "ports"]


def exactly(*uuids: str) -> Chooser:
    def choose(free: frozenset[str]) -> Choice | Refusal:
        if not free.issuperset(uuids):
            return Refusal(f"{uuids} wanted, {sorted(free)} free")
        return Choice(uuids, "these", second_best=False)

    return choose


def test_a_second_lease_may_keep_gpus_of_the_first_and_holds_them_alone_later(folder: Path) -> None:
    a, b, c, _ = GPUS[:4]
    first = take_lease("me", GPUS[:4], exactly(a, b), "127.0.0.1", folder)
    second = take_lease("me", GPUS[:4], exactly(b, c), "127.0.0.1", folder, first)
    try:
        assert [holder.resource for holder in holders(folder)] == [a, b, c]
        assert second.ports != first.ports
        first.close()
        assert [holder.resource for holder in holders(folder)] == [b, c]
        with pytest.raises(FailedError, match="wanted"):
            take_lease("other", GPUS[:4], exactly(b), "127.0.0.1", folder)
    finally:
        first.close()
        second.close()
    assert holders(folder) == []


def test_gpus_of_ones_own_that_are_not_chosen_stay_as_they_were(folder: Path) -> None:
    before = open_files()
    with closing(take(folder, 2)) as mine:
        taken = open_files()
        with pytest.raises(FailedError):
            take_lease("me", GPUS[:4], first(5), "127.0.0.1", folder, mine)
        assert open_files() == taken
        assert {holder.resource for holder in holders(folder)} == set(mine.choice.uuids)
    assert open_files() == before


def test_which_gpus_are_free_is_looked_up_without_taking_any(folder: Path) -> None:
    with closing(take(folder, 1)):
        assert free_gpus(GPUS[:4], folder) == set(GPUS[1:4])
        assert free_gpus(GPUS[:4], folder) == set(GPUS[1:4])
    assert free_gpus(GPUS[:4], folder) == set(GPUS[:4])


def test_free_gpus_are_held_for_a_while_and_the_holders_of_the_others_are_told(folder: Path) -> None:
    before = open_files()
    with closing(take(folder, 1, owner="llama one")) as lease, hold_free_gpus("probe", GPUS[:4], folder) as leased:
        assert leased == {lease.choice.uuids[0]: "llama one"}
        assert {holder.resource: holder.owner for holder in holders(folder)} == {
            GPUS[0]: "llama one",
            **dict.fromkeys(GPUS[1:4], "probe"),
        }
        assert len(holders(folder, "ports")) == 1
        with pytest.raises(FailedError, match="1 wanted, 0 free"):
            take(folder)
        with hold_free_gpus("probe", GPUS[:4], folder) as again:
            assert set(again.values()) == {"llama one", "probe"}
    assert holders(folder) == []
    assert open_files() == before


def test_a_full_disk_is_a_failure_and_nothing_stays_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(FailedError, match=f"gpus/{GPUS[0]}: cannot be signed by someone: No space left"):
            take(folder)
    assert open_files() == before
    assert free_gpus(GPUS[:4], folder) == set(GPUS[:4])


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"owner": "m"}'])
def test_a_gpu_whose_holder_did_not_sign_counts_as_someones(folder: Path, text: str) -> None:
    with closing(take(folder, 1)) as lease:
        (folder / "gpus" / lease.choice.uuids[0]).write_text(text)
        with hold_free_gpus("probe", GPUS[:2], folder) as leased:
            assert leased == {GPUS[0]: "someone"}
