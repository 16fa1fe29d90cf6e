"""Processes found by a mark in their environment, and their end."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

POLL_S = 0.05


def processes_with(name: str, value: str) -> list[int]:
    """Ids of other live processes that were started with this variable in their environment (readable ones only)."""
    return [pid for pid, found in marked_processes(name).items() if found == value]


def marked_processes(name: str) -> dict[int, str]:
    """Other live processes that were started with this variable in their environment, and its value."""
    prefix = f"{name}=".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                for variable in (entry / "environ").read_bytes().split(b"\0"):
                    if variable.startswith(prefix):
                        found[int(entry.name)] = variable[len(prefix) :].decode(errors="replace")
    return found


def end_processes_with(name: str, value: str, grace_s: float) -> None:
    """Wait up to `grace_s` for these processes to end by themselves, then kill what is left, until none is."""
    deadline_s = time.monotonic() + grace_s
    while left := processes_with(name, value):
        if time.monotonic() >= deadline_s:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def name_of(pid: int) -> str:
    """The kernel's name of a process (15 characters at most), empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
