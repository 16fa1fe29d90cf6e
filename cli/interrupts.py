"""Signals that end a command, by unwinding it."""

import atexit
import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn, Self

SIGNALLED = 128  # plus the signal's number: the status that shells give to what a signal ended


class Interruptions:
    """While it is entered, the signals that end a command unwind it, so that contexts clean up.

    `seen` is the last of them that came: what is raised then, by whatever it hit, is no error of its own.
    """

    def __init__(self) -> None:
        self.seen: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a background job, or nohup
                self._before[number] = signal.signal(number, self._unwind)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _unwind(self, number: int, _: object) -> None:
        self.seen = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(SIGNALLED + number)


def leave(status: int, seen: int | None) -> NoReturn:
    """End the process with this status. One that a signal ended gets the shells' status for that signal, unless the
    command said itself what became of its work, and is not taken apart: Ray's libraries may crash at that."""
    if seen is None:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(status if seen == signal.SIGINT else SIGNALLED + seen)
