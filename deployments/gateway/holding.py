"""Requests that wait for a replica of their model, in order of arrival."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

MOST_BYTES = 512 << 20  # of all waiting bodies together, so that large prompts cannot fill the host's memory
STOPPING = "no replica is ready, and this gateway is stopping"


@dataclass(frozen=True)
class HoldLimits:
    """How long and how many requests may wait; a timeout of 0 means that none does."""

    timeout_s: float = 300.0
    requests: int = 1000  # of one model


@dataclass(eq=False)
class Place:
    """One waiting request."""

    model: str
    size_bytes: int
    since_s: float = field(default_factory=time.monotonic)
    news: asyncio.Future[None] | None = None


class Holding:
    """The queues of one worker process. `begun` is called with the model when its first request begins to wait."""

    def __init__(self, limits: HoldLimits, begun: Callable[[str], None]) -> None:
        self.limits = limits
        self._begun = begun
        self._queues: dict[str, dict[Place, None]] = {}
        self._size_bytes = 0
        self.closed = False

    def enter(self, model: str, size_bytes: int) -> Place | str:
        """A place at the end of the model's queue, or why there is none to be had."""
        if self.closed:
            return STOPPING
        if not self.limits.timeout_s:
            return "no replica is ready"
        if self.held(model) >= self.limits.requests:
            return f"no replica is ready, and {self.limits.requests} requests wait for one already"
        if self._size_bytes + size_bytes > MOST_BYTES:
            return f"no replica is ready, and the requests that wait already fill {MOST_BYTES >> 20} MiB"
        place = Place(model, size_bytes)
        if model not in self._queues:
            self._queues[model] = {}
            self._begun(model)
        self._queues[model][place] = None
        self._size_bytes += size_bytes
        return place

    def leave(self, place: Place) -> None:
        queue = self._queues[place.model]
        del queue[place]
        self._size_bytes -= place.size_bytes
        if not queue:
            del self._queues[place.model]

    async def news(self, place: Place, timeout_s: float) -> None:
        """Wait for the next tell(); those who wait go on in the order of their places."""
        place.news = asyncio.get_running_loop().create_future()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await place.news

    def tell(self) -> None:
        """Something has changed: everybody looks again."""
        for queue in self._queues.values():
            for place in queue:
                if place.news is not None and not place.news.done():
                    place.news.set_result(None)

    def close(self) -> None:
        """Nobody may wait any more."""
        self.closed = True
        self.tell()

    def in_vain(self) -> str:
        """Why a request waits no longer."""
        return STOPPING if self.closed else f"no replica became ready within {self.limits.timeout_s:.0f} s"

    def held(self, model: str) -> int:
        return len(self._queues.get(model, ()))

    def oldest_age_s(self, model: str) -> float | None:
        """How long the first in the model's queue has waited; None when there is none."""
        first = next(iter(self._queues.get(model, ())), None)
        return None if first is None else time.monotonic() - first.since_s
