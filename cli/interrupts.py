"""Signals that end a command: at once while nothing has been started yet, by unwinding from then on."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self


@contextmanager
def ends_at_once() -> Iterator[None]:
    """While it lasts, Ctrl-C ends this process without unwinding: for imports, before anything was started.

    An interrupt that is raised while an extension module is initialised may end in an abort of Python.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # a background job, which Ctrl-C does not concern
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Interruptions:
    """While it is entered, the signals that end a command unwind it, so that contexts clean up.

    `seen` tells whether Ctrl-C was pressed: what is raised then, by whatever it hit, is no error of its own.
    """

    def __init__(self) -> None:
        self.seen = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        handlers: dict[int, Callable[[int, object], Any]] = {
            signal.SIGINT: self._interrupt,
            signal.SIGTERM: terminate,
            signal.SIGHUP: terminate,
        }
        for number, handler in handlers.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # a background job, or nohup
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt


def terminate(number: int, _: object) -> None:
    """End with the status that shells give to a process that the signal ended."""
    sys.exit(128 + number)
