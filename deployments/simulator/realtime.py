"""The simulated engine on the wall clock: the virtual-time replica, told the real time and waited for."""

import asyncio
import time
from collections.abc import Callable

from raylane.deployments.simulator.replica import EngineModel, Replica, Signals
from raylane.deployments.simulator.request import Outcome, Request

Token = Callable[[bool], None]
"""Called once for each output token of a request; True with the last one."""


class RealTimeEngine:
    """Runs one replica at `speedup` times real time and calls each request's `Token` when a step ends.

    Steps end on the simulated clock, so a late wake-up delays tokens but never shifts later ones. `lag_s` is how late
    the last step was handed out, in real seconds: more than a few ms means that this process is out of CPU.
    """

    def __init__(self, engine: EngineModel, *, speedup: float = 1.0) -> None:
        self._speedup = speedup
        self._origin_s = time.monotonic()
        self._replica = Replica(engine, deliver=self._deliver)
        self._streams: dict[int | str, tuple[Token, int]] = {}
        self._wake = asyncio.Event()
        self._last_end_s = 0.0
        self._frozen_s: float | None = None
        self.lag_s = 0.0
        self.gaps: Callable[[float, int], None] | None = None
        """Where given, called after each step with the real seconds since the last one and the tokens it gave."""

    def now_s(self) -> float:
        """The simulated clock: real seconds since the start, times the speed-up."""
        if self._frozen_s is not None:
            return self._frozen_s
        return (time.monotonic() - self._origin_s) * self._speedup

    def freeze(self) -> None:
        """Stop the simulated clock for good: requests are taken and never answered."""
        self._frozen_s = self.now_s()

    def submit(self, key: int | str, input_tokens: int, output_tokens: int, hashes: tuple[int, ...], on: Token) -> None:
        """A request arrives now. ValueError when it can never run here."""
        self._replica.advance(self.now_s())
        self._replica.submit(Request(self._replica.now_s, input_tokens, output_tokens, key, hashes))
        self._streams[key] = (on, output_tokens)
        self._wake.set()

    def cancel(self, key: int | str) -> None:
        """The client went away; nothing happens when the request is finished already."""
        if self._streams.pop(key, None) is not None:
            self._replica.cancel(key)

    def signals(self) -> Signals:
        self._replica.advance(self.now_s())
        return self._replica.signals()

    def take_finished(self) -> list[Outcome]:
        """Requests finished since the last call, times on the simulated clock."""
        return self._replica.take_finished()

    def cache_totals(self) -> tuple[int, int]:
        """Prompt tokens looked up in the prefix cache, and found there."""
        return self._replica.cache_totals()

    async def run(self) -> None:
        """Hand out tokens until cancelled or frozen."""
        while self._frozen_s is None:
            self._replica.advance(self.now_s())
            event_s = self._replica.next_event_s()
            if event_s is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            await asyncio.sleep(max(0.0, (event_s - self.now_s()) / self._speedup))

    def _deliver(self, end_s: float, keys: list[int | str]) -> None:
        self.lag_s = max(0.0, (self.now_s() - end_s) / self._speedup)
        if self.gaps is not None:
            self.gaps((end_s - self._last_end_s) / self._speedup, len(keys))
        self._last_end_s = end_s
        for key in keys:
            stream = self._streams.get(key)
            if stream is None:
                continue
            on, left = stream
            if left == 1:
                del self._streams[key]
            else:
                self._streams[key] = (on, left - 1)
            on(left == 1)
