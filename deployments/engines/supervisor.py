"""The parent of one engine: starts it, reports its end, and takes its whole process tree down with the replica.

Standard library only and run by path (`python -I -S supervisor.py`), so that it starts in milliseconds and stays small.
It leaves the caller's process group and parentage at once (Ray kills the group and the direct children of a worker,
but nothing below them), becomes the reaper of every descendant, and holds what it was handed to hold: the lock files of
the replica's GPUs and ports, released by the kernel when it dies.

stdin:  one JSON line {"command", "env", "log_path", "grace_s", "cpus"}, then "stop SECONDS" or end of file (the replica
        died).
stdout: JSON lines {"event": "started", "supervisor_pid", "engine_pid"} and {"event": "exited", "code"}.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_S = 0.05


def leave_caller() -> None:
    """Become nobody's direct child, in a session of its own."""
    if os.fork():
        os._exit(0)
    os.setsid()


def become_subreaper() -> None:
    """Orphaned descendants are handed to this process instead of to init."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants() -> list[int]:
    """Process ids below this one, children before grandchildren; zombies are left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry.name))
    found: list[int] = []
    layer = [os.getpid()]
    while layer:
        layer = [child for parent in layer for child in children.get(parent, [])]
        found += layer
    return found


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # gone between the listing and the signal
            os.kill(pid, number)


def reap() -> None:
    """Collect ended children, adopted ones included."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def end_tree(grace_s: float) -> None:
    """TERM to all descendants, KILL to what is left after the grace, until nothing is left."""
    signal_all(descendants(), signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while left := descendants():
        if time.monotonic() > deadline:
            signal_all(left, signal.SIGKILL)
        reap()
        time.sleep(POLL_S)
    reap()


def report(event: str, **values: int | str) -> None:
    with suppress(BrokenPipeError):  # the replica is gone; end of file on stdin says the same
        os.write(1, (json.dumps({"event": event, **values}) + "\n").encode())


def read_line() -> str:
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit(1)  # the caller died before it said what to start
        line += byte
    return line.decode()


def watch(engine: subprocess.Popen[bytes]) -> float | None:
    """Wait for the engine's end or the replica's word; the grace asked for in seconds, None if the replica died."""
    engine_end = os.pidfd_open(engine.pid)
    poller = select.poll()
    poller.register(engine_end, select.POLLIN)
    poller.register(0, select.POLLIN | select.POLLHUP)
    while True:
        ready = {fd for fd, _ in poller.poll(1000)}
        reap_adopted(engine.pid)
        if engine_end in ready:
            report("exited", code=engine.wait())
            return 0.0
        if 0 in ready:
            words = os.read(0, 4096).decode().split()
            return float(words[1]) if words[:1] == ["stop"] else None


def reap_adopted(engine_pid: int) -> None:
    """Collect adopted orphans, but leave the engine's own status to its Popen."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == engine_pid:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)


def keep_to(cpus: list[int] | None, log: BinaryIO) -> None:
    """Run on these CPUs from here on, with everything that is started; slower memory is no reason not to serve."""
    if cpus is None:
        return
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        log.write(f"not kept to CPUs {cpus}: {error}\n".encode())


def main() -> None:
    leave_caller()
    become_subreaper()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    spec = json.loads(read_line())
    try:
        opened = open(spec["log_path"], "ab", buffering=0)  # noqa: PTH123, SIM115 - closed below
    except OSError as error:
        report("failed", reason=f"cannot write {spec['log_path']}: {error.strerror}")
        sys.exit(1)
    with opened as log:
        keep_to(spec["cpus"], log)
        try:
            engine = subprocess.Popen(
                spec["command"],
                env=spec["env"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"cannot start {spec['command'][0]}: {error}\n".encode())
            report("exited", code=127)
            sys.exit(1)
    report("started", supervisor_pid=os.getpid(), engine_pid=engine.pid)
    grace_s = watch(engine)
    end_tree(spec["grace_s"] if grace_s is None else grace_s)


if __name__ == "__main__":
    main()
