"""One simulated replica in virtual time: it is told what time it is, and jumps from event to event."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from raylane.deployments.simulator.request import Limits, Outcome, Request
from raylane.deployments.simulator.scheduler import Scheduler, Sequence
from raylane.deployments.simulator.step_model import StepModel

new_outcome = tuple.__new__  # half the time of Outcome(...)
Deliver = Callable[[float, list[int | str]], None]


@dataclass(frozen=True)
class EngineModel:
    """Everything a simulated engine is: what it can hold and how long its steps take."""

    limits: Limits
    steps: StepModel
    batching_window_s: float = 0.0
    """Arrivals are held back to the next multiple of this; 0 starts them with the next step, as real engines do."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What a replica's metrics endpoint would say at one moment. Totals count from its start."""

    at_s: float
    waiting: int
    running: int
    kv_usage: float
    prompt_tokens_total: int
    generated_tokens_total: int
    preemptions_total: int
    busy_s_total: float
    """Time with a step running: the difference over a window is the GPU utilisation of that window."""
    finished_total: int


class Replica:
    """A replica driven by an event loop: `submit` what arrives, `advance` the clock, read `signals`, `take_finished`.

    Time never runs backwards. A request that arrives at the moment a step ends takes part in the next step, provided it
    is submitted before the clock is advanced further. The results do not depend on how often `advance` is called.

    `deliver`, where given, is called at the end of every single step with its end and the keys of the requests that got
    a token, so steps are taken one by one; this is how the HTTP server runs.
    """

    def __init__(self, engine: EngineModel, *, starts_s: float = 0.0, deliver: Deliver | None = None) -> None:
        self._engine = engine
        self._deliver = deliver
        self._most_steps = 1 if deliver else None
        self._use(engine.steps)
        self._scheduler = Scheduler(engine.limits)
        self._inbox: deque[tuple[float, Request]] = deque()
        self._now_s = starts_s
        self._clock_s = starts_s  # start of the steps in flight, else the end of the last one
        self._in_flight = False
        self._steps = 0  # how often the planned step is repeated before something else happens
        self._first_s = 0.0  # its duration, the first time
        self._growth_s = 0.0  # and by how much each repetition is longer
        self._end_s = starts_s
        self._busy_s = 0.0
        self._finished: list[Outcome] = []
        self._finished_total = 0

    @property
    def now_s(self) -> float:
        return self._now_s

    @property
    def in_system(self) -> int:
        """Requests submitted and not finished as of the last `advance`: the router's measure of load."""
        return len(self._inbox) + len(self._scheduler.waiting) + self._scheduler.running

    def submit(self, request: Request) -> None:
        """A request arrives. ValueError when it lies in the past or can never run here."""
        if request.arrival_s < self._now_s:
            raise ValueError(f"request {request.key} arrives at {request.arrival_s} s; the clock is at {self._now_s} s")
        self._scheduler.check(request)
        ready_s = self._ready_s(request.arrival_s)
        if self._steps > 1 and self._in_flight and not self._inbox and not self._scheduler.waiting:
            self._land_by(ready_s)
        self._inbox.append((ready_s, request))

    def advance(self, to_s: float) -> None:
        """Let everything happen that ends at or before `to_s`."""
        inbox, core = self._inbox, self._scheduler
        while not self._in_flight or self._end_s <= to_s:
            if self._in_flight:
                self._land()
            if self._clock_s >= to_s:
                break
            if (inbox or not core.batch) and (not self._ready(to_s) or self._clock_s >= to_s):
                break  # without an arrival the running requests go on
            if not self._take_off():
                break
        if to_s > self._now_s:
            self._now_s = to_s

    def next_event_s(self) -> float | None:
        """The next moment at which something changes if nothing else arrives; None when idle.

        Ask after submitting everything that arrives now: a step that is due now begins with this call.
        """
        if not self._in_flight and self._ready(self._now_s):
            self._take_off()
        if self._in_flight:
            return self._end_s
        return self._inbox[0][0] if self._inbox else None

    def take_finished(self) -> list[Outcome]:
        """Requests finished since the last call, in the order they finished."""
        finished, self._finished = self._finished, []
        return finished

    def signals(self) -> Signals:
        """What the replica's metrics say now (as of the last `advance`)."""
        core = self._scheduler
        done, busy = 0, self._busy_s
        if self._in_flight:
            done = self._steps_done(self._now_s)
            busy += self._now_s - self._clock_s
        return Signals(
            at_s=self._now_s,
            waiting=len(core.waiting) + len(self._inbox),
            running=core.running,
            kv_usage=core.kv_usage(done if self._in_flight else -1),
            prompt_tokens_total=core.prompt_tokens_total,
            generated_tokens_total=core.generated_tokens_total + done * core.batch,
            preemptions_total=core.preemptions_total,
            busy_s_total=busy,
            finished_total=self._finished_total,
        )

    @property
    def waiting_since_s(self) -> float | None:
        """Arrival of the request that is first in the queue, as of the last `advance`; None when none waits."""
        waiting = self._scheduler.waiting
        if waiting:
            return waiting[0].request.arrival_s
        return self._inbox[0][1].arrival_s if self._inbox else None

    def cache_totals(self) -> tuple[int, int]:
        """Prompt tokens looked up in the prefix cache, and found there, since the start."""
        return self._scheduler.cache_queries_total, self._scheduler.cache_hits_total

    def slow_down(self, factor: float) -> None:
        """From the next step on everything takes `factor` times as long as the engine's model says."""
        self._use(self._engine.steps.slowed(factor))
        if self._in_flight and self._steps > 1:
            self._shorten(self._steps_done(self._now_s) + 1)

    def kill(self) -> list[Request]:
        """The engine dies now. Returns the requests it had not finished, the oldest first; it is empty afterwards."""
        lost = [sequence.request for sequence in self._scheduler.unfinished()]
        lost += [request for _, request in self._inbox]
        self._inbox.clear()
        self._scheduler = Scheduler(self._engine.limits)
        if self._in_flight:
            self._busy_s += self._now_s - self._clock_s
        self._in_flight = False
        self._clock_s = self._now_s
        return lost

    def cancel(self, key: int | str) -> bool:
        """The client of this request went away: it takes part until the step in flight ends. False when unknown."""
        for entry in self._inbox:
            if entry[1].key == key:
                self._inbox.remove(entry)
                return True
        for sequence in self._scheduler.unfinished():
            if sequence.request.key == key:
                self._cancel(sequence)
                return True
        return False

    def _cancel(self, sequence: Sequence) -> None:
        if self._in_flight and self._steps > 1:
            done = self._steps_done(self._now_s)
            self._scheduler.generated_tokens_total += done if sequence in self._scheduler.decoding else 0
            self._shorten(done + 1)
        self._scheduler.cancel(sequence)

    def _ready_s(self, arrival_s: float) -> float:
        """When the scheduler sees a request: after the frontend's work, and the batching window where there is one."""
        ready_s = arrival_s + self._extra_s
        window_s = self._window_s
        return math.ceil(ready_s / window_s) * window_s if window_s else ready_s

    def _ready(self, to_s: float) -> bool:
        """Move what has arrived into the scheduler; False when there is nothing to run before `to_s`."""
        inbox, core = self._inbox, self._scheduler
        if inbox:
            ready_s = inbox[0][0]
            if ready_s > self._clock_s and not core.batch and core.idle:
                if ready_s > to_s:
                    return False
                self._clock_s = ready_s
            while inbox and inbox[0][0] <= self._clock_s:
                core.queue(inbox.popleft()[1])
        return core.batch > 0 or not core.idle

    def _take_off(self) -> bool:
        """Begin the next step, and repeat it as often as nothing changes."""
        core = self._scheduler
        if not core.plan(self._most_steps):
            return False
        batch, steps = core.batch, core.steps
        if core.chunks:
            first_s = self._mixed_s(batch, core.context, core.chunk_tokens, core.chunk_pairs, core.chunk_past)
        else:
            first_s = self._decode_s[batch] + core.context * self._context_s
        self._first_s = first_s
        self._steps = steps
        self._in_flight = True
        if steps == 1:
            self._end_s = self._clock_s + first_s
            return True
        self._growth_s = growth_s = self._context_s * batch
        self._end_s = self._clock_s + steps * (first_s + growth_s * (steps - 1) * 0.5)
        if self._inbox and not core.waiting:
            self._land_by(self._inbox[0][0])
        return True

    def _land(self) -> None:
        """The steps in flight have ended: hand out tokens."""
        end_s = self._end_s
        self._busy_s += end_s - self._clock_s
        self._clock_s = end_s
        self._in_flight = False
        core, deliver = self._scheduler, self._deliver
        keys = [sequence.request.key for sequence in core.decoding] if deliver else []
        started, done = core.complete(self._steps)
        for sequence in started:
            if sequence.first_token_s is None:
                sequence.first_token_s = end_s
        if deliver:
            deliver(end_s, keys + [sequence.request.key for sequence in started])
        for item in done:
            outcome = (item.request, item.first_token_s, end_s, item.preemptions, item.cached_tokens)
            self._finished.append(new_outcome(Outcome, outcome))
            self._finished_total += 1

    def _use(self, model: StepModel) -> None:
        """Take step times from this model from the next step on."""
        self._model = model
        self._context_s = model.context_s
        most = self._engine.limits.max_num_seqs
        self._decode_s = [model.step_s(batch, 0) for batch in range(most + 1)]
        self._extra_s, self._window_s = model.first_token_extra_s, self._engine.batching_window_s
        self._chunk_token_s, self._pair_s = model.token_s + model.token_link_s, model.pair_s
        self._mixture = len(model.weights_s) > 1

    def _mixed_s(self, batch: int, context: int, tokens: int, pairs: float, past: int) -> float:
        """Seconds of a step that computes prompts too: what `StepModel.step_s` says, from the table where it can."""
        if self._mixture:  # how much of the weights is read depends on the prompts as well
            return self._model.step_s(batch, context, tokens, pairs, past)
        reading_s = (context + past) * self._context_s
        return self._decode_s[batch] + reading_s + tokens * self._chunk_token_s + pairs * self._pair_s

    def _shorten(self, steps: int) -> None:
        if steps < self._steps:
            self._steps = steps
            self._end_s = self._time_after(steps)

    def _time_after(self, steps: int) -> float:
        """End of `steps` repetitions: start + steps x first + growth x steps (steps - 1) / 2."""
        return self._clock_s + steps * (self._first_s + self._growth_s * (steps - 1) * 0.5)

    def _land_by(self, at_s: float) -> None:
        """Stop repeating the step in flight at the first end at or after `at_s`."""
        if self._end_s >= at_s:
            self._shorten(self._steps_until(at_s))

    def _steps_until(self, at_s: float) -> int:
        """The fewest repetitions, at least one, that end at or after `at_s`."""
        if self._end_s < at_s:
            return self._steps
        start_s, first_s, half_s = self._clock_s, self._first_s, self._growth_s * 0.5
        steps = max(1, int(self._root(at_s - start_s) + 0.5))
        while steps > 1 and start_s + (steps - 1) * (first_s + half_s * (steps - 2)) >= at_s:
            steps -= 1
        while start_s + steps * (first_s + half_s * (steps - 1)) < at_s:
            steps += 1
        return steps if steps < self._steps else self._steps

    def _steps_done(self, at_s: float) -> int:
        """Repetitions that have ended at or before `at_s`."""
        if self._steps == 1:
            return 0
        steps = self._steps_until(at_s)
        return steps if self._time_after(steps) <= at_s else steps - 1

    def _root(self, elapsed_s: float) -> float:
        """The real number of repetitions that take `elapsed_s`: the positive root of the closed form."""
        half = self._growth_s * 0.5
        if half <= 0.0 or elapsed_s <= 0.0:
            return elapsed_s / self._first_s
        linear = self._first_s - half
        return (math.sqrt(linear * linear + 4.0 * half * elapsed_s) - linear) / (2.0 * half)
