"""Drive one case: keep every stream's load going, open the window after the warm-up, close it, drain.

The load does not pause between warm-up and window, so the window begins in steady state.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from raylane.benchmarks.arrivals import arrival_times_s
from raylane.benchmarks.client import Clock, LoadClient
from raylane.benchmarks.plan import BenchmarkPlan, Case, ConcurrencyLoad, Stream
from raylane.benchmarks.prompts import PlannedRequest, planned_requests
from raylane.benchmarks.records import RawReply
from raylane.benchmarks.sse import has_failed

Keep = Callable[[Stream, RawReply], None]
Phase = Literal["warm-up", "window", "drain"]
_TICK_S = 0.02
# A closed loop meets an endpoint that refuses at once with thousands of requests a second; nobody learns from those.
_PAUSE_AFTER_FAILURE_S = 0.1
_SEEDS_PER_PLAN_SEED = 1_000


@dataclass(slots=True)
class CaseTimes:
    """When one case did what, in seconds on the run's clock. Filled in as the case goes, so a cut case has it too."""

    phase: Phase = "warm-up"
    window_start_s: float | None = None
    window_end_s: float | None = None
    window_cpu_s: float | None = None
    warmup_timed_out: bool = False
    finished: int = 0
    failed: int = 0


class _StreamLoad:
    """One stream's requests and how many of them were sent and came back."""

    def __init__(self, stream: Stream, plan: BenchmarkPlan, index: int) -> None:
        self.stream = stream
        self.seed = plan.seed * _SEEDS_PER_PLAN_SEED + index
        self.requests: Iterator[PlannedRequest] = planned_requests(stream, plan.prompt_token_ids, self.seed)
        self.sent = 0
        self.finished = 0
        self.sent_in_warmup = 0


class CaseLoad:
    """Runs one case once. `times` may be read at any moment, also after a cancellation."""

    def __init__(self, plan: BenchmarkPlan, case: Case, client: LoadClient, clock: Clock, keep: Keep) -> None:
        self._plan = plan
        self._case = case
        self._client = client
        self._clock = clock
        self._keep = keep
        self._loads = [_StreamLoad(stream, plan, index) for index, stream in enumerate(case.streams)]
        self._stopping = False
        self._dispatchers: list[asyncio.Task[None]] = []
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None
        self.times = CaseTimes()

    async def run(self) -> None:
        """Warm-up, window, drain. When cancelled, requests in flight are kept as cut ones before it raises."""
        try:
            self._start()
            await self._warm_up()
            await self._window()
            self._stop_sending()
            self.times.phase = "drain"
            await self._drain()
        finally:
            self._stop_sending()
            await self._cut()

    def _start(self) -> None:
        for load in self._loads:
            shape = load.stream.load
            if isinstance(shape, ConcurrencyLoad):
                for _ in range(shape.concurrency):
                    self._spawn(self._closed_loop(load))
            else:
                self._dispatchers.append(asyncio.create_task(self._open_loop(load)))

    async def _closed_loop(self, load: _StreamLoad) -> None:
        while not self._stopping:
            if not await self._send(load, next(load.requests), self._clock()):
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)

    async def _open_loop(self, load: _StreamLoad) -> None:
        shape = load.stream.load
        if isinstance(shape, ConcurrencyLoad):
            raise TypeError(f"{load.stream.label} is a closed loop")
        start_s = self._clock()
        for due_s in arrival_times_s(shape, load.seed):
            request = next(load.requests)  # built before it is due, so that building does not delay it
            await self._sleep_until(start_s + due_s)
            self._spawn(self._send(load, request, start_s + due_s))

    async def _sleep_until(self, t_s: float) -> None:
        """Returns at or after `t_s`; event loops' timers may fire up to a millisecond early."""
        await asyncio.sleep(0)
        while (left_s := t_s - self._clock()) > 0:  # noqa: ASYNC110 - waits for a time, which sets no event
            await asyncio.sleep(left_s)

    async def _send(self, load: _StreamLoad, request: PlannedRequest, t_sched_s: float) -> bool:
        """Whether the endpoint answered the request; what came back goes to `keep`."""
        failed = False

        def keep(reply: RawReply) -> None:
            nonlocal failed
            failed = reply.error is not None or reply.http_status != 200 or has_failed(reply.body)
            load.finished += 1
            self.times.finished += 1
            self.times.failed += failed
            self._keep(load.stream, reply)

        load.sent += 1
        await self._client.send(request, t_sched_s, keep)
        return not failed

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._in_flight.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._in_flight.discard(task)
        if not task.cancelled():
            failure = task.exception()
            self._failure = self._failure or failure

    async def _warm_up(self) -> None:
        deadline_s = self._clock() + self._plan.warmup.timeout_s
        while any(load.finished < self._plan.warmup.requests_for(load.stream) for load in self._loads):
            if self._clock() > deadline_s:
                self.times.warmup_timed_out = True
                return
            await self._tick(_TICK_S)

    async def _window(self) -> None:
        cpu_start_s = time.process_time()
        start_s = self.times.window_start_s = self._clock()
        self.times.phase = "window"
        for load in self._loads:
            load.sent_in_warmup = load.sent
        try:
            while (left_s := self._window_left_s(start_s)) > 0:
                await self._tick(min(_TICK_S, left_s))
        finally:
            self.times.window_end_s = self._clock()
            self.times.window_cpu_s = time.process_time() - cpu_start_s

    def _window_left_s(self, start_s: float) -> float:
        """Seconds left; when the window ends by count, one tick as long as a stream has more to send."""
        if self._case.duration_s is not None:
            return start_s + self._case.duration_s - self._clock()
        wanted = self._case.requests or 0
        return _TICK_S if any(load.sent - load.sent_in_warmup < wanted for load in self._loads) else 0.0

    async def _tick(self, seconds: float) -> None:
        """Wait, then raise what stopped a stream: a reply that could not be kept, say."""
        await asyncio.sleep(seconds)
        if self._failure is not None:
            raise self._failure
        for task in self._dispatchers:
            if task.done():
                task.result()

    def _stop_sending(self) -> None:
        self._stopping = True
        for task in self._dispatchers:
            task.cancel()

    async def _drain(self) -> None:
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=self._plan.drain_timeout_s)

    async def _cut(self) -> None:
        left = [*self._in_flight, *self._dispatchers]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
