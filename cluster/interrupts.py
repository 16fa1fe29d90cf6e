"""Signals that may end this process at once, as nothing has been started that would be left behind."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ends_at_once(*numbers: signal.Signals) -> Iterator[None]:
    """While it lasts, these signals (Ctrl-C by default) end this process without unwinding: for imports, where an
    interrupt may make Python abort, and for calls into Ray that would not hear of it for minutes."""
    before = {number: signal.getsignal(number) for number in numbers or (signal.SIGINT,)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # not in background jobs
    for number in heard:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
