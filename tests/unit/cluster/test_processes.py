"""Processes found by their mark and ended: real children, also ones that do not want to end."""

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from raylane.cluster.processes import end_processes_with, processes_with

NAME = "RAYLANE_TEST_MARK"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
QUICK = "import time; print(1, flush=True); time.sleep(0.3)"


@contextmanager
def child(code: str, mark: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], env={NAME: mark}, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_process_is_found_by_its_mark_and_by_nothing_else() -> None:
    mark = uuid.uuid4().hex
    with child(DEAF, mark) as process:
        assert processes_with(NAME, mark) == [process.pid]
        assert processes_with(NAME, mark[:-1]) == []
        assert processes_with(NAME[:-1], mark) == []


def test_a_process_that_is_dead_but_not_yet_collected_is_not_found() -> None:
    mark = uuid.uuid4().hex
    with child(DEAF, mark) as process:
        process.kill()
        deadline_s = time.monotonic() + 20
        while processes_with(NAME, mark) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert processes_with(NAME, mark) == []


def test_what_does_not_end_by_itself_is_killed_after_the_grace() -> None:
    mark = uuid.uuid4().hex
    with child(DEAF, mark) as process:
        began_s = time.monotonic()
        end_processes_with(NAME, mark, grace_s=0.3)
        assert 0.3 <= time.monotonic() - began_s < 20
        assert process.wait(20) == -9


def test_what_ends_by_itself_within_the_grace_is_left_to_do_so() -> None:
    mark = uuid.uuid4().hex
    with child(QUICK, mark) as process:
        end_processes_with(NAME, mark, grace_s=30.0)
        assert process.wait(20) == 0


def test_without_such_processes_it_returns_at_once() -> None:
    began_s = time.monotonic()
    end_processes_with(NAME, uuid.uuid4().hex, grace_s=30.0)
    assert time.monotonic() - began_s < 20
