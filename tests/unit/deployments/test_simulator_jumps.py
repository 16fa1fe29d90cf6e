"""Virtual time that jumps against a plain step-by-step engine written out request by request."""

import random
from collections import OrderedDict
from dataclasses import dataclass, field

import pytest

from raylane.deployments.simulator.replica import EngineModel, Replica
from raylane.deployments.simulator.request import Limits, Request
from raylane.deployments.simulator.step_model import StepModel

STEPS = StepModel(
    fixed_s=0.0013,
    weights_s=(0.0171,),
    token_s=6.1e-5,
    token_link_s=0.7e-6,
    context_s=1.9e-7,
    pair_s=1.1e-9,
    first_token_extra_s=0.0093,
)


@dataclass(eq=False)
class Item:
    """One request of the plain engine: every token and every block is counted one by one."""

    request: Request
    generated: int = 0
    computed: int = 0
    blocks: int = 0
    shared: list[int] = field(default_factory=list)
    first_token_s: float = 0.0
    preemptions: int = 0
    decoding: bool = False

    @property
    def known(self) -> int:
        return self.request.input_tokens + self.generated


class PlainEngine:
    """vLLM V1's schedule, one step after the other, with lists."""

    def __init__(self, limits: Limits, steps: StepModel) -> None:
        self.limits, self.steps = limits, steps
        self.total = limits.kv_tokens // 16
        self.waiting: list[Item] = []
        self.running: list[Item] = []
        self.users: dict[int, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.most_used = 0
        self.busy_s = 0.0

    def used(self) -> int:
        return sum(item.blocks - len(item.shared) for item in self.running) + len(self.users)

    def allocate(self, item: Item, upto: int) -> bool:
        more = -(-upto // 16) - item.blocks
        if self.used() + more > self.total:
            return False
        item.blocks += more
        self.most_used = max(self.most_used, self.used())
        while len(self.idle) > self.total - self.used():
            self.idle.popitem(last=False)
        return True

    def free(self, item: Item) -> None:
        for block in reversed(item.shared):
            self.users[block] -= 1
            if not self.users[block]:
                del self.users[block]
                self.idle[block] = None
        item.shared, item.blocks, item.computed, item.decoding = [], 0, 0, False

    def schedule(self) -> list[tuple[Item, int]]:
        budget = self.limits.max_num_batched_tokens
        work: list[tuple[Item, int]] = []
        preempted = False
        i = 0
        while i < len(self.running):
            item = self.running[i]
            tokens = min(item.known - item.computed, budget)
            while not self.allocate(item, item.computed + tokens):
                preempted = True
                victim = self.running.pop()
                self.free(victim)
                victim.preemptions += 1
                self.waiting.insert(0, victim)
                if victim is item:
                    break
            else:
                work.append((item, tokens))
                budget -= tokens
            i += 1
        while self.waiting and not preempted and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            item = self.waiting[0]
            hits = []
            for block in item.request.block_hashes[: (item.known - 1) // 16]:
                if block not in self.users and block not in self.idle:
                    break
                hits.append(block)
            new = -(-item.known // 16) - len(hits) + sum(block in self.idle for block in hits)
            if self.used() + new > self.total:
                break
            self.waiting.pop(0)
            for block in hits:
                self.idle.pop(block, None)
                self.users[block] = self.users.get(block, 0) + 1
            item.shared, item.blocks, item.computed = hits, len(hits), len(hits) * 16
            tokens = min(item.known - item.computed, budget)
            self.running.append(item)
            assert self.allocate(item, item.computed + tokens)
            work.append((item, tokens))
            budget -= tokens
        return work

    def duration_s(self, work: list[tuple[Item, int]]) -> float:
        decodes = [item for item, _ in work if item.decoding]
        chunks = [(item, tokens) for item, tokens in work if not item.decoding]
        new = sum(tokens for _, tokens in chunks)
        read = sum(item.known for item in decodes) + sum(item.computed for item, _ in chunks)
        pairs = sum(tokens * (item.computed + tokens / 2) for item, tokens in chunks)
        seconds = self.steps.fixed_s + max(self.steps.weights_s[0], self.steps.token_s * len(decodes))
        seconds += read * self.steps.context_s + new * self.steps.token_s
        return seconds + (new + len(decodes)) * self.steps.token_link_s + pairs * self.steps.pair_s

    def finish_step(self, work: list[tuple[Item, int]], now_s: float) -> list[Item]:
        done = []
        for item, tokens in work:
            item.computed += tokens
            if item.computed < item.known:
                continue
            full = () if item.decoding else item.request.block_hashes[: item.request.input_tokens // 16]
            for block in full[len(item.shared) :]:
                if block not in self.users and block not in self.idle:
                    self.users[block] = 1
                    item.shared.append(block)
            if not item.generated:
                item.first_token_s = now_s
            item.generated += 1
            item.decoding = True
            if item.generated == item.request.output_tokens:
                done.append(item)
        for item in done:
            self.running.remove(item)
            self.free(item)
        return done

    def run(self, requests: list[Request]) -> dict[int | str, tuple[float, float, int]]:
        pending = [(request.arrival_s + self.steps.first_token_extra_s, Item(request)) for request in requests]
        now_s = 0.0
        results = {}
        while pending or self.waiting or self.running:
            if not self.waiting and not self.running:
                now_s = max(now_s, pending[0][0])
            while pending and pending[0][0] <= now_s:
                self.waiting.append(pending.pop(0)[1])
            work = self.schedule()
            step_s = self.duration_s(work)
            now_s += step_s
            self.busy_s += step_s
            for item in self.finish_step(work, now_s):
                results[item.request.key] = (item.first_token_s, now_s, item.preemptions)
        return results


def random_run(seed: int) -> tuple[Limits, list[Request]]:
    """Small engines under loads from idle to hopeless; a third of the runs share prompts."""
    rng = random.Random(seed)
    longest = rng.choice([64, 200, 900])
    seqs = rng.choice([1, 3, 8, 40])
    limits = Limits(
        kv_tokens=-(-longest // 16) * 16 + 16 * rng.choice([0, 3, 40, 400]),
        max_num_seqs=seqs,
        max_num_batched_tokens=seqs + rng.choice([0, 5, 60, 500]),
        max_model_len=longest,
    )
    gap_s = rng.choice([0.0, 0.003, 0.05, 0.5])
    families = rng.choice([0, 0, 3])
    now_s, requests = 0.0, []
    for key in range(rng.randint(1, 40)):
        now_s += rng.expovariate(1 / gap_s) if gap_s else 0.0
        tokens = rng.randint(1, longest - 1)
        output = rng.randint(1, longest - tokens)
        own = rng.randint(0, tokens // 16)
        family = rng.randrange(families) if families else 0
        hashes = [family * 1000 + i if i < own else (key + 10) * 1000 + i for i in range(tokens // 16)]
        requests.append(Request(now_s, tokens, output, key, tuple(hashes) if families else ()))
    return limits, requests


@pytest.mark.parametrize("block", range(10))
def test_jumps_equal_single_steps_on_a_thousand_random_runs(block: int) -> None:
    preemptions = 0
    for seed in range(block * 100, block * 100 + 100):
        limits, requests = random_run(seed)
        plain = PlainEngine(limits, STEPS)
        expected = plain.run(requests)
        replica = Replica(EngineModel(limits, STEPS))
        for request in requests:
            replica.advance(request.arrival_s)
            replica.submit(request)
        replica.advance(1e9)
        found = {outcome.request.key: outcome for outcome in replica.take_finished()}
        assert found.keys() == expected.keys(), f"seed {seed}"
        for key, (first_s, finished_s, times) in expected.items():
            outcome = found[key]
            assert outcome.preemptions == times, f"seed {seed}, request {key}"
            assert outcome.first_token_s == pytest.approx(first_s, rel=1e-9), f"seed {seed}, request {key}"
            assert outcome.finished_s == pytest.approx(finished_s, rel=1e-9), f"seed {seed}, request {key}"
        assert replica.signals().busy_s_total == pytest.approx(plain.busy_s, rel=1e-9)
        preemptions += replica.signals().preemptions_total
        assert plain.most_used <= plain.total
    assert preemptions > 0, "the runs are meant to run out of memory sometimes"


@pytest.mark.parametrize("seed", range(20))
def test_results_do_not_depend_on_how_often_the_clock_is_read(seed: int) -> None:
    limits, requests = random_run(seed)
    rng = random.Random(seed)
    seldom, often = (Replica(EngineModel(limits, STEPS)) for _ in range(2))
    for request in requests:
        seldom.advance(request.arrival_s)
        seldom.submit(request)
        for at_s in sorted(rng.uniform(often.now_s, request.arrival_s) for _ in range(5)):
            often.advance(at_s)
            often.signals()
            often.next_event_s()
        often.advance(request.arrival_s)
        often.submit(request)
    seldom.advance(1e9)
    while (event_s := often.next_event_s()) is not None:
        often.advance(event_s)
    assert often.take_finished() == seldom.take_finished()
