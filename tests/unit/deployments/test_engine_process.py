"""Engines as supervised process trees: whoever dies first, and however, nothing is left. Real processes only."""

import asyncio
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from raylane.cluster.processes import processes_with
from raylane.deployments.engines.process import MARK, EngineFailed, EngineProcess, Launch, log_tail

pytestmark = pytest.mark.process

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
GONE_WITHIN_S = 20.0
SLEEPER = (sys.executable, "-I", "-S", "-c", "import time; print('here', flush=True); time.sleep(600)")


@pytest.fixture
def token() -> Iterator[str]:
    """A mark of its own for each test; what carries it afterwards is killed and is a failure."""
    mark = f"test-{uuid.uuid4().hex}"
    yield mark
    left = processes_with(MARK, mark)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == [], "processes left behind"


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


def fake_engine(**options: object) -> tuple[str, ...]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return (sys.executable, "-I", "-S", str(FIXTURES / "fake_engine.py"), "127.0.0.1", str(port), json.dumps(options))


async def until(condition: Callable[[], bool], within_s: float = GONE_WITHIN_S) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s} s"
        await asyncio.sleep(0.02)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def files_of(pid: int) -> set[str]:
    return {str(entry.readlink()) for entry in (Path("/proc") / str(pid) / "fd").iterdir()}


def text(path: Path) -> str:
    return path.read_text()


def alive(pid: int) -> bool:
    """True for a process that runs; False when it is gone or only waits to be collected."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def running(
    token: str, log_path: Path, command: tuple[str, ...], processes: int, hold_fds: tuple[int, ...] = ()
) -> AsyncIterator[tuple[EngineProcess, int]]:
    """A started engine of so many processes that has written its first line."""
    process = EngineProcess(token, Launch(command, {}, log_path))
    pid = await process.start(hold_fds)
    try:
        await until(lambda: len(processes_with(MARK, token)) == processes and log_path.stat().st_size > 0)
        yield process, pid
    finally:
        await asyncio.wait_for(process.stop(0.0), GONE_WITHIN_S)


TREES = [
    pytest.param({}, 1, id="one process"),
    pytest.param({"ignore_term": True}, 1, id="an engine deaf to TERM"),
    pytest.param({"child": True, "ignore_term": True}, 2, id="with a child in a session of its own, both deaf to TERM"),
]


@pytest.mark.parametrize(("options", "processes"), TREES)
async def test_nothing_is_left_when_the_owner_is_killed(
    token: str, tmp_path: Path, log_path: Path, options: dict[str, bool], processes: int
) -> None:
    command = [sys.executable, str(FIXTURES / "owner.py"), token, str(log_path), str(tmp_path / "lock")]
    owner = subprocess.Popen([*command, *fake_engine(**options)], stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        assert owner.stdout is not None
        pids = json.loads(await asyncio.to_thread(owner.stdout.readline))
        await until(lambda: len(processes_with(MARK, token)) == processes)
        assert pids["engine"] in processes_with(MARK, token)
    finally:
        owner.kill()
        owner.communicate()
    await until(lambda: not processes_with(MARK, token))
    await until(lambda: not alive(pids["supervisor"]))


@pytest.mark.parametrize(("options", "processes"), TREES)
async def test_nothing_is_left_when_the_supervisor_is_killed(
    token: str, log_path: Path, options: dict[str, bool], processes: int
) -> None:
    async with running(token, log_path, fake_engine(**options), processes) as (process, _):
        assert process.supervisor_pid is not None
        os.kill(process.supervisor_pid, signal.SIGKILL)
        await asyncio.wait_for(process.ended.wait(), GONE_WITHIN_S)
        await until(lambda: not processes_with(MARK, token))


@pytest.mark.parametrize(("options", "processes"), TREES)
async def test_nothing_is_left_when_the_engine_is_killed(
    token: str, log_path: Path, options: dict[str, bool], processes: int
) -> None:
    async with running(token, log_path, fake_engine(**options), processes) as (process, pid):
        os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(process.ended.wait(), GONE_WITHIN_S)
        assert process.exit_code == -signal.SIGKILL
        await until(lambda: not processes_with(MARK, token))
        await until(lambda: not alive(process.supervisor_pid or 0))


@pytest.mark.parametrize(("options", "processes"), TREES)
async def test_stop_returns_when_nothing_is_left(
    token: str, log_path: Path, options: dict[str, bool], processes: int
) -> None:
    async with running(token, log_path, fake_engine(**options), processes) as (process, _):
        grace_s = 0.3 if options else 15.0
        began_s = time.monotonic()
        await process.stop(grace_s)
        took_s = time.monotonic() - began_s
        assert processes_with(MARK, token) == []
        assert took_s < GONE_WITHIN_S
        assert (took_s >= grace_s) is bool(options)  # only what is deaf needs the whole grace
        assert process.ended.is_set()


async def test_an_engine_may_use_the_grace_to_finish(token: str, log_path: Path) -> None:
    code = """if True:
        import signal, sys, time
        def finish(*_):
            time.sleep(0.5)
            print("finished", flush=True)
            sys.exit()
        signal.signal(signal.SIGTERM, finish)
        print("here", flush=True)
        time.sleep(600)"""
    command = (sys.executable, "-I", "-S", "-c", code)
    async with running(token, log_path, command, 1) as (process, _):
        await process.stop(10.0)
        assert text(log_path).endswith("finished\n")


async def test_stopping_twice_and_stopping_the_dead_is_harmless(token: str, log_path: Path) -> None:
    async with running(token, log_path, SLEEPER, 1) as (process, _):
        await asyncio.gather(process.stop(0.0), process.stop(0.0))
        await process.stop(5.0)
        await asyncio.wait_for(process.stop(0.0), GONE_WITHIN_S)


async def test_stopping_what_was_never_started_is_harmless(token: str, log_path: Path) -> None:
    process = EngineProcess(token, Launch(SLEEPER, {}, log_path))
    await asyncio.wait_for(process.stop(0.0), GONE_WITHIN_S)


async def test_the_end_of_a_log_is_shown_without_the_engines_secrets(token: str, log_path: Path) -> None:
    command = fake_engine(fail_with="ValueError: ab-word123-cd and http://u:word456@host")
    process = EngineProcess(token, Launch(command, {"HF_TOKEN": "ab-word123-cd"}, log_path))
    await process.start()
    await asyncio.wait_for(process.ended.wait(), GONE_WITHIN_S)
    assert "ValueError: *** and http://***@host" in str(process.failure("died"))
    await process.stop(0.0)


async def test_an_engine_that_fails_at_once_is_explained_by_its_status_and_its_log(token: str, log_path: Path) -> None:
    process = EngineProcess(token, Launch(fake_engine(fail_with="ValueError: no kernel image"), {}, log_path))
    await process.start()
    await asyncio.wait_for(process.ended.wait(), GONE_WITHIN_S)
    failure = process.failure("ended before it was ready")
    assert isinstance(failure, EngineFailed)
    for part in ("engine ended before it was ready", "exit status 3", str(log_path), "ValueError: no kernel image"):
        assert part in str(failure)
    await process.stop(0.0)


async def test_a_command_that_does_not_exist_is_named(token: str, log_path: Path) -> None:
    process = EngineProcess(token, Launch(("/no/such/engine", "--flag"), {}, log_path))
    with pytest.raises(EngineFailed, match=r"(?s)did not start \(exit status 127\).*/no/such/engine.*No such file"):
        await asyncio.wait_for(process.start(), GONE_WITHIN_S)
    await process.stop(0.0)


async def test_a_log_that_cannot_be_written_is_named_with_its_reason(token: str, tmp_path: Path) -> None:
    log_path = tmp_path / "absent" / "engine.log"
    process = EngineProcess(token, Launch(SLEEPER, {}, log_path))
    with pytest.raises(EngineFailed, match=r"(?s)did not start.*No such file or directory"):
        await asyncio.wait_for(process.start(), GONE_WITHIN_S)
    await process.stop(0.0)


async def test_lock_files_are_held_by_the_supervisor_and_not_by_the_engine(
    token: str, tmp_path: Path, log_path: Path
) -> None:
    lock = os.open(tmp_path / "gpu", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    other = os.open(tmp_path / "gpu", os.O_RDWR)

    def free() -> bool:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(other, fcntl.LOCK_UN)
        return True

    try:
        async with running(token, log_path, fake_engine(), 1, (lock,)) as (process, pid):
            os.close(lock)
            assert not free()
            assert str(tmp_path / "gpu") not in files_of(pid)
            assert process.supervisor_pid is not None
            os.kill(process.supervisor_pid, signal.SIGKILL)
            await until(free)
        assert free()
    finally:
        os.close(other)


async def test_the_lock_is_free_once_stop_has_returned(token: str, tmp_path: Path, log_path: Path) -> None:
    lock = os.open(tmp_path / "gpu", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    async with running(token, log_path, SLEEPER, 1, (lock,)) as (process, _):
        os.close(lock)
        await process.stop(0.0)
        with (tmp_path / "gpu").open() as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_start_that_is_cancelled_leaves_nothing_and_can_be_stopped(token: str, tmp_path: Path) -> None:
    """The log is a pipe that nobody reads yet, so the supervisor waits before it starts the engine."""
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    process = EngineProcess(token, Launch(SLEEPER, {}, fifo))
    starting = asyncio.create_task(process.start())
    await asyncio.sleep(0.5)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await asyncio.wait_for(process.stop(0.0), GONE_WITHIN_S)
        await until(lambda: not processes_with(MARK, token))
    finally:
        os.close(reader)


async def test_the_engine_gets_its_own_environment_and_nothing_ray_set_for_its_workers(
    token: str, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_JOB_ID", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "set by Ray")
    monkeypatch.setenv("HOME_OF_USER", "kept")
    command = (
        sys.executable,
        "-c",
        "import json, os, time; print(json.dumps(dict(os.environ)), flush=True); time.sleep(60)",
    )
    process = EngineProcess(token, Launch(command, {"VLLM_PORT": "20001", "OMP_NUM_THREADS": "2"}, log_path))
    await process.start()
    try:
        await until(lambda: text(log_path).endswith("\n"))
        env = json.loads(text(log_path))
    finally:
        await process.stop(0.0)
    assert (env["VLLM_PORT"], env["OMP_NUM_THREADS"], env["HOME_OF_USER"]) == ("20001", "2", "kept")
    assert env[MARK] == token
    assert [name for name in env if name.startswith("RAY_") or name == "CUDA_VISIBLE_DEVICES"] == []


async def test_the_log_is_added_to_and_holds_both_outputs(token: str, log_path: Path) -> None:
    with log_path.open("w") as log:
        log.write("from before\n")
    code = "import os; os.write(1, b'out\\n'); os.write(2, b'err\\n')"
    process = EngineProcess(token, Launch((sys.executable, "-I", "-S", "-c", code), {}, log_path))
    await process.start()
    await asyncio.wait_for(process.ended.wait(), GONE_WITHIN_S)
    await process.stop(0.0)
    assert process.exit_code == 0
    assert text(log_path) == "from before\nout\nerr\n"


async def test_the_whole_tree_is_kept_to_the_cpus_given(token: str, log_path: Path) -> None:
    one = min(os.sched_getaffinity(0))
    process = EngineProcess(token, Launch(fake_engine(child=True), {}, log_path), (one,))
    await process.start()
    await until(lambda: len(processes_with(MARK, token)) == 2)
    assert [os.sched_getaffinity(pid) for pid in processes_with(MARK, token)] == [{one}, {one}]
    await process.stop(0.0)


async def test_cpus_that_are_not_there_are_told_in_the_log_and_the_engine_runs(token: str, log_path: Path) -> None:
    process = EngineProcess(token, Launch(SLEEPER, {}, log_path), (100_000,))
    pid = await process.start()
    await until(lambda: "here" in text(log_path))
    assert "not kept to CPUs [100000]" in text(log_path)
    assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
    await process.stop(0.0)


async def test_many_engines_start_and_stop_at_once_without_leaks(token: str, tmp_path: Path) -> None:
    open_before = open_files()
    engines = [EngineProcess(token, Launch(SLEEPER, {}, tmp_path / f"{number}.log")) for number in range(5)]
    pids = await asyncio.gather(*(engine.start() for engine in engines))
    # A process in the midst of its exec shows no environment.
    await until(lambda: sorted(processes_with(MARK, token)) == sorted(pids))
    await asyncio.gather(*(engine.stop(0.0) for engine in engines))
    assert open_files() == open_before


def test_the_tail_of_a_log_begins_with_the_first_errors(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = ["starting", "ValueError: the cause", *(f"line {number}" for number in range(100)), "last"]
    path.write_text("\n".join(lines))
    tail = log_tail(path).splitlines()
    assert tail[:2] == ["ValueError: the cause", "..."]
    assert tail[-1] == "last"
    assert len(tail) == 27


@pytest.mark.parametrize(
    ("content", "tail"),
    [
        pytest.param(None, "", id="no file"),
        pytest.param(b"", "", id="an empty file"),
        pytest.param(b"one\ntwo\n", "one\ntwo", id="a short file as it is"),
        pytest.param(b"caf\xe9 \xff\n", "caf\ufffd \ufffd", id="bytes that are no text"),
    ],
)
def test_tails_of_other_logs(tmp_path: Path, content: bytes | None, tail: str) -> None:
    path = tmp_path / "log"
    if content is not None:
        path.write_bytes(content)
    assert log_tail(path) == tail


def test_the_supervisor_needs_nothing_but_the_standard_library() -> None:
    """It is started with -I -S, where site-packages and this package cannot be found."""
    text = (Path(__file__).parents[3] / "deployments" / "engines" / "supervisor.py").read_text()
    imported = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
    assert [name for name in imported if name not in sys.stdlib_module_names] == []
