"""Which requests the engine works on in each step, as vLLM V1 decides it. Pure: no clock, no I/O.

A step gives every running request its next token first, then spends what is left of the token budget on prompts: the
one begun, then waiting ones in order of arrival. KV memory is counted in blocks of 16 tokens. When it runs out, the
youngest running request is put back to the head of the queue and computed again later. (vllm/v1/core/sched/scheduler.py
of vLLM 0.29 is the reference.)

Running requests are kept in sums, not in a list that every step walks through, so `k` steps that only decode cost as
much as one: with `step` counting steps, a request's context is `phase + step` for a constant phase.
"""

from collections import deque
from heapq import heappop, heappush

from raylane.deployments.simulator.prefix_cache import PrefixCache
from raylane.deployments.simulator.request import Limits, Request

BLOCK = 16


class Sequence:
    """One request inside the scheduler."""

    __slots__ = (
        "cached_tokens",
        "computed",
        "finish_step",
        "first_token_s",
        "generated",
        "order",
        "phase",
        "preemptions",
        "request",
        "shared",
        "target",
    )

    def __init__(self, request: Request, order: int) -> None:
        self.request = request
        self.order = order
        self.generated = 0
        self.target = request.input_tokens  # tokens to compute before the next new one
        self.computed = 0
        self.phase = 0
        self.finish_step = -1  # meaningful while decoding; the heap's stale entries differ from it
        self.first_token_s: float | None = None
        self.preemptions = 0
        self.cached_tokens = 0
        self.shared: list[int] | tuple[()] = ()


class Scheduler:
    """The state of one engine. `plan` chooses the next step, `complete` carries it out.

    After `plan`: `batch` requests decode with `context` tokens in all, `chunks` are pieces of prompts of
    `chunk_tokens` tokens in all, and the same step can be repeated `steps` times with the context growing by `batch`.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.total_blocks = limits.kv_tokens // BLOCK
        self.cache = PrefixCache()
        self.waiting: deque[Sequence] = deque()
        self.decoding: dict[Sequence, None] = {}  # in order of admission
        self.partial: Sequence | None = None  # the one prompt begun and not finished; always the youngest running
        self.chunks: list[tuple[Sequence, int]] = []
        self.batch = 0
        self.context = 0
        self.step = 0
        self.steps = 0
        self.chunk_tokens = 0
        self.chunk_pairs = 0.0  # prompt tokens x tokens they attend to
        self.chunk_past = 0  # cached tokens read for the chunks
        self.prompt_tokens_total = 0
        self.generated_tokens_total = 0
        self.preemptions_total = 0
        self.cache_queries_total = 0
        self.cache_hits_total = 0
        self._longest = limits.max_model_len
        self._phases = 0
        self._residues = [0] * BLOCK
        self._finish: list[tuple[int, int, Sequence]] = []
        self._chunk_blocks = 0  # blocks of the partial prompt and of the chunks planned
        self._orders = 0
        self._cancelled: set[Sequence] = set()  # in a step that is running; dropped at its end

    def add(self, request: Request) -> Sequence:
        """Queue a request. ValueError when it can never run here."""
        self.check(request)
        return self.queue(request)

    def check(self, request: Request) -> None:
        """ValueError when a request can never run here."""
        tokens, output = request.input_tokens, request.output_tokens
        if tokens + output > self._longest:
            raise ValueError(
                f"{tokens} prompt and {output} output tokens are more than max_model_len {self.limits.max_model_len}"
            )
        if tokens < 1 or output < 1:
            raise ValueError(f"a request needs at least one prompt and one output token, got {request}")

    def queue(self, request: Request) -> Sequence:
        """Queue a request that was checked."""
        self._orders += 1
        sequence = Sequence(request, self._orders)
        self.waiting.append(sequence)
        return sequence

    @property
    def running(self) -> int:
        """Requests that have been given memory."""
        return self.batch + len(self.chunks) + (self.partial is not None)

    @property
    def idle(self) -> bool:
        return not (self.batch or self.waiting or self.chunks or self.partial)

    def used_blocks(self, ahead: int = 0) -> int:
        """Blocks in use during the step `ahead` of the next one."""
        at = self.step + ahead
        fill = sum(count * (-(residue + at) % BLOCK) for residue, count in enumerate(self._residues) if count)
        return (self._phases + self.batch * at + fill) // BLOCK + self._chunk_blocks - self.cache.overcount

    def kv_usage(self, ahead: int = 0) -> float:
        """Share of the KV blocks in use by requests, 0 to 1."""
        return min(1.0, self.used_blocks(ahead) / self.total_blocks)

    def plan(self, most_steps: int | None = None) -> bool:
        """Choose the next step; False when there is nothing to do. `most_steps` bounds how often it may repeat."""
        batch = self.batch
        self.context = context = self._phases + batch * self.step
        at_most = (context + batch * (BLOCK - 1)) // BLOCK + self._chunk_blocks
        preempted = at_most > self.total_blocks and self._make_room()
        if self.partial is not None:
            budget = self.limits.max_num_batched_tokens - self.batch
            budget -= self._continue_partial(budget)
            preempted = preempted or not self.chunks
            if self.waiting and not preempted:
                self._admit(budget)
        elif self.waiting and not preempted:
            self._admit(self.limits.max_num_batched_tokens - batch)
        if preempted:
            self.context = self._phases + self.batch * self.step
        if self.chunks:
            self._count_chunks()
            self.steps = 1
            return True
        if not self.batch:
            return False
        if self.chunk_tokens:
            self.chunk_tokens = self.chunk_past = 0
            self.chunk_pairs = 0.0
        self.steps = self._repeatable(1 if preempted else most_steps)  # what was put back may start again next time
        return True

    def complete(self, steps: int) -> tuple[list[Sequence], list[Sequence]]:
        """Carry out `steps` of the planned step: (requests whose prompt ended with a token, requests now finished)."""
        self.step = step = self.step + steps
        self.generated_tokens_total += self.batch * steps
        if self.cache.idle:
            self.cache.shrink_to(self.total_blocks - self.used_blocks(-1))
        started: list[Sequence] = []
        done: list[Sequence] = []
        heap = self._finish
        while heap and heap[0][0] <= step:
            finish_step, _, sequence = heappop(heap)
            if sequence.finish_step == finish_step:
                sequence.generated = sequence.request.output_tokens
                self._leave(sequence)
                done.append(sequence)
        if self.chunks:
            self._complete_chunks(started, done)
        return started, done

    def cancel(self, sequence: Sequence) -> None:
        """Forget a request wherever it is: its client went away."""
        if sequence in self.decoding:
            self._leave(sequence)
        elif sequence is self.partial:
            self._drop_partial()
        elif any(sequence is planned for planned, _ in self.chunks):
            self._cancelled.add(sequence)
        else:
            self.waiting.remove(sequence)

    def unfinished(self) -> list[Sequence]:
        """Every request in the engine, the oldest first."""
        partial = [] if self.partial is None else [self.partial]
        every = {*self.decoding, *(sequence for sequence, _ in self.chunks), *partial, *self.waiting}
        return sorted(every - self._cancelled, key=lambda sequence: sequence.order)

    def _surely_used(self) -> int:
        """An upper bound of the blocks the next decode step needs, cheap to compute."""
        return (self._phases + self.batch * (self.step + BLOCK - 1)) // BLOCK + self._chunk_blocks

    def _make_room(self) -> bool:
        """Put back the youngest running requests until every other one has a slot for its next token."""
        preempted = False
        while self.used_blocks() > self.total_blocks:
            preempted = True
            self.cache.shrink_to(0)  # memory was full before this request's new block could not be had
            if self.partial is not None:
                self._preempt_partial()
            else:
                youngest = next(reversed(self.decoding))
                youngest.generated = youngest.request.output_tokens - (youngest.finish_step - self.step)
                self._leave(youngest)
                self._requeue(youngest)
        return preempted

    def _continue_partial(self, budget: int) -> int:
        """Give the begun prompt its next piece, or put it back when memory is out; returns the tokens spent."""
        sequence = self.partial
        if sequence is None:
            return 0
        self._evict()
        tokens = min(sequence.target - sequence.computed, budget)
        more = _blocks(sequence.computed + tokens) - _blocks(sequence.computed)
        if self._surely_used() + more > self.total_blocks and self.used_blocks() + more > self.total_blocks:
            self._preempt_partial()
            return 0
        self._chunk_blocks += more
        self.partial = None
        self.chunks.append((sequence, tokens))
        return tokens

    def _admit(self, budget: int) -> None:
        """Start waiting requests in order while budget, memory and slots last. A whole prompt must find room."""
        slots = self.limits.max_num_seqs - self.batch - len(self.chunks)
        if slots <= 0:
            return
        if self.cache.idle:
            self._evict()
        used = self._surely_used()
        waiting, total = self.waiting, self.total_blocks
        while waiting and budget > 0 and slots > 0:
            sequence = waiting[0]
            tokens = sequence.target
            needed = (tokens + BLOCK - 1) // BLOCK
            hashes: tuple[int, ...] = ()
            if sequence.request.block_hashes:
                hashes, costs = self._cached_prefix(sequence)
                needed += costs - len(hashes)
            if used + needed > total:
                used = self.used_blocks()
                if used + needed > total:
                    return
            waiting.popleft()
            if sequence.request.block_hashes:
                self._start_cached(sequence, hashes)
                tokens -= sequence.computed
            if tokens > budget:
                tokens = budget
            blocks = (sequence.computed + tokens + BLOCK - 1) // BLOCK
            self._chunk_blocks += blocks
            self.chunks.append((sequence, tokens))
            if self.cache.idle:
                self._evict()
            used += blocks
            budget -= tokens
            slots -= 1

    def _cached_prefix(self, sequence: Sequence) -> tuple[tuple[int, ...], int]:
        """The blocks of a prompt that are cached, and how many of them would leave the idle ones."""
        if not self.limits.prefix_caching:
            return (), 0
        hashes = sequence.request.block_hashes
        usable = (sequence.target - 1) // BLOCK  # the last token is always computed: its output is wanted
        found = hashes[: self.cache.leading_hits(hashes[:usable])]
        return found, self.cache.idle_among(found)

    def _start_cached(self, sequence: Sequence, hashes: tuple[int, ...]) -> None:
        """Begin a prompt behind its cached blocks."""
        hit = len(hashes) * BLOCK
        self.cache_queries_total += sequence.target
        self.cache_hits_total += hit
        self.cache.take(hashes)
        sequence.shared = list(hashes)
        sequence.computed = sequence.cached_tokens = hit

    def _evict(self) -> None:
        """Idle cached blocks make room for what the requests use by now."""
        if self.cache.idle:
            self.cache.shrink_to(self.total_blocks - self.used_blocks())

    def _count_chunks(self) -> None:
        total = past = 0
        pairs = 0.0
        for sequence, tokens in self.chunks:
            computed = sequence.computed
            total += tokens
            past += computed
            pairs += tokens * (computed + tokens * 0.5)
        self.chunk_tokens, self.chunk_past, self.chunk_pairs = total, past, pairs

    def _repeatable(self, most_steps: int | None) -> int:
        """How many decode steps pass before a request finishes or a new block cannot be had."""
        heap = self._finish
        while heap[0][0] != heap[0][2].finish_step:  # left by a preemption or a cancellation
            heappop(heap)
        steps = heap[0][0] - self.step
        if most_steps is not None and most_steps < steps:
            steps = most_steps
        at_most = self._phases + self.batch * (self.step + steps + BLOCK - 2)
        room = (self.total_blocks - self._chunk_blocks) * BLOCK
        if at_most > room and self.used_blocks(steps - 1) > self.total_blocks:
            return self._largest_fitting(steps)
        return steps

    def _largest_fitting(self, steps: int) -> int:
        low, high = 1, steps
        while low < high:
            middle = (low + high + 1) // 2
            if self.used_blocks(middle - 1) <= self.total_blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def _complete_chunks(self, started: list[Sequence], done: list[Sequence]) -> None:
        self._chunk_blocks = 0
        for sequence, tokens in self.chunks:
            if self._cancelled and sequence in self._cancelled:
                self._unshare(sequence)
                continue
            sequence.computed = computed = sequence.computed + tokens
            if computed < sequence.target:
                self.partial = sequence
                self._chunk_blocks = _blocks(computed)
                continue
            request = sequence.request
            if request.block_hashes:
                self._share(sequence)
            started.append(sequence)
            if not sequence.generated:
                self.prompt_tokens_total += request.input_tokens
            sequence.generated += 1
            self.generated_tokens_total += 1
            if sequence.generated == request.output_tokens:
                self._unshare(sequence)
                done.append(sequence)
            else:
                self._join(sequence, request)
        self.chunks = []
        if self._cancelled:
            self._cancelled.clear()

    def _share(self, sequence: Sequence) -> None:
        """Let later prompts find this one's full blocks."""
        if self.limits.prefix_caching:
            hashes = sequence.request.block_hashes
            full = hashes[len(sequence.shared) : sequence.request.input_tokens // BLOCK]
            sequence.shared = [*sequence.shared, *self.cache.store(full)]

    def _join(self, sequence: Sequence, request: Request) -> None:
        output = request.output_tokens
        sequence.finish_step = finish = self.step + output - sequence.generated
        sequence.phase = phase = request.input_tokens + output - finish
        self._phases += phase
        self._residues[phase % BLOCK] += 1
        self.batch += 1
        self.decoding[sequence] = None
        heappush(self._finish, (finish, sequence.order, sequence))

    def _leave(self, sequence: Sequence) -> None:
        phase = sequence.phase
        sequence.finish_step = -1
        self._phases -= phase
        self._residues[phase % BLOCK] -= 1
        self.batch -= 1
        del self.decoding[sequence]
        if sequence.shared:
            self._unshare(sequence)

    def _unshare(self, sequence: Sequence) -> None:
        if sequence.shared:
            self.cache.release(sequence.shared)
            sequence.shared = ()

    def _preempt_partial(self) -> None:
        sequence = self.partial
        if sequence is not None:
            self._drop_partial()
            self._requeue(sequence)

    def _drop_partial(self) -> None:
        if self.partial is not None:
            self._chunk_blocks -= _blocks(self.partial.computed)
            self._unshare(self.partial)
            self.partial = None

    def _requeue(self, sequence: Sequence) -> None:
        sequence.computed = 0
        sequence.target = sequence.request.input_tokens + sequence.generated
        sequence.preemptions += 1
        self.preemptions_total += 1
        self.waiting.appendleft(sequence)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)
