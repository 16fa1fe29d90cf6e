"""Invariants of the simulated engine under any load: nothing lost, nothing counted twice, memory never exceeded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.deployments.simulator.prefix_cache import PrefixCache
from raylane.deployments.simulator.replica import EngineModel, Replica
from raylane.deployments.simulator.request import Limits, Request
from raylane.deployments.simulator.scheduler import Scheduler
from raylane.deployments.simulator.step_model import StepModel

STEPS = StepModel(0.001, (0.02,), 6e-5, 0.0, 2e-7, 1e-9, 0.005)
ROOMY = EngineModel(Limits(100_000, 64, 2048, 4096), STEPS)


@st.composite
def engines(draw: st.DrawFn) -> Limits:
    longest = draw(st.sampled_from([48, 160, 640]))
    seqs = draw(st.integers(1, 12))
    return Limits(
        kv_tokens=longest + 16 * draw(st.integers(0, 60)),
        max_num_seqs=seqs,
        max_num_batched_tokens=seqs + draw(st.integers(0, 200)),
        max_model_len=longest,
    )


@st.composite
def loads(draw: st.DrawFn, longest: int) -> list[Request]:
    now_s, requests = 0.0, []
    for key in range(draw(st.integers(1, 25))):
        now_s += draw(st.sampled_from([0.0, 0.0, 0.011, 0.2, 3.0]))
        tokens = draw(st.integers(1, longest - 1))
        family = draw(st.integers(0, 2))
        hashes = tuple(family * 1000 + i for i in range(tokens // 16)) if family else ()
        requests.append(Request(now_s, tokens, draw(st.integers(1, longest - tokens)), key, hashes))
    return requests


@settings(max_examples=150)
@given(st.data())
def test_every_request_ends_once_with_its_tokens_and_memory_is_never_exceeded(data: st.DataObject) -> None:
    limits = data.draw(engines())
    requests = data.draw(loads(limits.max_model_len))
    core = Scheduler(limits)
    for request in requests:
        core.add(request)
    started: list[object] = []
    ended: list[int | str] = []
    while core.plan():
        assert core.used_blocks() <= core.total_blocks
        assert core.used_blocks(core.steps - 1) <= core.total_blocks
        assert core.batch + core.chunk_tokens <= limits.max_num_batched_tokens
        assert core.running <= limits.max_num_seqs
        begun, done = core.complete(core.steps)
        started += begun
        ended += [sequence.request.key for sequence in done]
        assert all(sequence.generated == sequence.request.output_tokens for sequence in done)
    assert sorted(ended, key=int) == [request.key for request in requests]
    assert core.idle
    assert core.used_blocks() == 0
    assert core.generated_tokens_total == sum(request.output_tokens for request in requests)
    assert core.prompt_tokens_total == sum(request.input_tokens for request in requests)


@settings(max_examples=60)
@given(st.data())
def test_a_replica_accounts_for_every_request(data: st.DataObject) -> None:
    limits = data.draw(engines())
    requests = data.draw(loads(limits.max_model_len))
    replica = Replica(EngineModel(limits, STEPS))
    last_tokens = last_busy_s = 0.0
    for request in requests:
        replica.advance(request.arrival_s)
        replica.submit(request)
        signals = replica.signals()
        assert 0 <= signals.kv_usage <= 1
        assert signals.generated_tokens_total >= last_tokens
        assert last_busy_s <= signals.busy_s_total <= request.arrival_s + 1e-9
        assert signals.waiting + signals.running == replica.in_system
        last_tokens, last_busy_s = signals.generated_tokens_total, signals.busy_s_total
    replica.advance(1e6)
    outcomes = replica.take_finished()
    assert sorted(int(outcome.request.key) for outcome in outcomes) == list(range(len(requests)))
    for outcome in outcomes:
        assert outcome.request.arrival_s + STEPS.first_token_extra_s < outcome.first_token_s <= outcome.finished_s


@given(st.integers(1, 400), st.integers(1, 60), st.integers(2, 30))
def test_equal_arrivals_keep_their_order(tokens: int, output: int, count: int) -> None:
    replica = Replica(ROOMY)
    for key in range(count):
        replica.submit(Request(0.0, tokens, output, key))
    replica.advance(1e6)
    outcomes = replica.take_finished()
    assert [outcome.request.key for outcome in outcomes] == list(range(count))
    firsts = [outcome.first_token_s for outcome in outcomes]
    assert firsts == sorted(firsts)


def test_one_request_takes_its_steps_and_nothing_else() -> None:
    replica = Replica(ROOMY)
    replica.submit(Request(1.0, 100, 3))
    replica.advance(10)
    (outcome,) = replica.take_finished()
    prompt_s = 0.001 + 0.02 + 100 * 6e-5 + 100 * 50 * 1e-9
    assert outcome.ttft_s == pytest.approx(0.005 + prompt_s)
    assert outcome.finished_s - outcome.first_token_s == pytest.approx(2 * 0.021 + (101 + 102) * 2e-7)


def test_a_long_prompt_is_computed_in_pieces_beside_decoding() -> None:
    core = Scheduler(Limits(4096, 4, 100, 1024))
    core.add(Request(0.0, 40, 50))
    core.plan()
    core.complete(1)
    core.add(Request(0.0, 250, 5))
    pieces = []
    for _ in range(3):
        core.plan()
        pieces.append((core.batch, core.chunk_tokens, core.chunk_past, core.steps))
        core.complete(1)
    assert pieces == [(1, 99, 0, 1), (1, 99, 99, 1), (1, 52, 198, 1)]


def test_out_of_memory_puts_back_the_youngest_and_loses_nothing() -> None:
    core = Scheduler(Limits(96, 4, 256, 96))
    old, young = core.add(Request(0.0, 40, 50, "old")), core.add(Request(0.0, 40, 50, "young"))
    ended = []
    while core.plan():
        ended += [sequence.request.key for sequence in core.complete(core.steps)[1]]
    assert ended == ["old", "young"]
    assert (old.preemptions, young.preemptions) == (0, 1)
    assert core.generated_tokens_total == 100


@pytest.mark.parametrize(
    ("tokens", "output", "words"),
    [
        pytest.param(4000, 200, "4000 prompt and 200 output.*4096", id="longer than the model allows"),
        pytest.param(0, 5, "at least one", id="no prompt"),
        pytest.param(5, 0, "at least one", id="no output"),
    ],
)
def test_what_can_never_run_is_refused(tokens: int, output: int, words: str) -> None:
    replica = Replica(ROOMY)
    with pytest.raises(ValueError, match=words):
        replica.submit(Request(0.0, tokens, output))
    assert replica.in_system == 0


def test_the_past_cannot_be_submitted() -> None:
    replica = Replica(ROOMY)
    replica.advance(5)
    with pytest.raises(ValueError, match=r"4 s.*5"):
        replica.submit(Request(4, 10, 10))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        pytest.param((1000, 64, 32, 100), "max_num_seqs 64", id="more requests than tokens a step"),
        pytest.param((90, 4, 32, 90), "kv_tokens 90", id="memory in whole blocks holds no full request"),
    ],
)
def test_limits_that_contradict_themselves(limits: tuple[int, int, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Limits(*limits)


def test_a_killed_replica_gives_back_what_it_had() -> None:
    replica = Replica(ROOMY)
    for key in range(5):
        replica.submit(Request(0.0, 100, 10 if key else 2, key))
    replica.advance(0.12)
    finished = [outcome.request.key for outcome in replica.take_finished()]
    lost = [request.key for request in replica.kill()]
    assert finished == [0]
    assert lost == [1, 2, 3, 4]
    assert replica.in_system == 0
    assert replica.next_event_s() is None


def test_a_slow_replica_takes_longer_from_the_next_step_on() -> None:
    usual, slow = Replica(ROOMY), Replica(ROOMY)
    for replica in (usual, slow):
        replica.submit(Request(0.0, 100, 101))
        replica.advance(1.0)
    slow.slow_down(3)
    for replica in (usual, slow):
        replica.advance(100)
    (first,), (second,) = usual.take_finished(), slow.take_finished()
    rest_s = first.finished_s - 1.0
    assert second.finished_s - 1.0 == pytest.approx(3 * rest_s, abs=2 * 0.022)
    assert second.first_token_s == first.first_token_s


@pytest.mark.parametrize("at_s", [0.0, 0.01, 0.5], ids=["still arriving", "in its prompt", "while decoding"])
def test_a_cancelled_request_leaves_and_the_others_go_on(at_s: float) -> None:
    replica = Replica(ROOMY)
    for key in range(3):
        replica.submit(Request(0.0, 100, 100, key))
    replica.advance(at_s)
    assert replica.cancel(1)
    assert not replica.cancel(99)
    replica.advance(100)
    assert [outcome.request.key for outcome in replica.take_finished()] == [0, 2]
    signals = replica.signals()
    assert (signals.running, signals.waiting, signals.kv_usage) == (0, 0, 0)
    assert 200 <= signals.generated_tokens_total <= 230


def test_a_batching_window_holds_arrivals_to_its_end() -> None:
    windowed = Replica(EngineModel(ROOMY.limits, STEPS, batching_window_s=0.12))
    for at_s in (0.01, 0.05, 0.1):
        windowed.advance(at_s)
        windowed.submit(Request(at_s, 10, 1, at_s))  # type: ignore[arg-type]
    windowed.advance(1)
    starts = {round(outcome.first_token_s, 6) for outcome in windowed.take_finished()}
    assert len(starts) == 1
    assert starts.pop() > 0.12


def test_sharing_a_prompt_saves_its_computation() -> None:
    def ttft_s(hashes: tuple[int, ...]) -> float:
        replica = Replica(ROOMY)
        replica.submit(Request(0.0, 1600, 1, "first", tuple(range(100))))
        replica.advance(1)
        replica.submit(Request(1.0, 1600, 1, "second", hashes))
        replica.advance(2)
        return replica.take_finished()[-1].ttft_s

    assert ttft_s(tuple(range(100))) < ttft_s(tuple(range(500, 600))) / 2


def test_the_cache_evicts_the_longest_unused_and_the_end_of_prompts_first() -> None:
    cache = PrefixCache()
    assert cache.store([1, 2, 3]) == [1, 2, 3]
    cache.take([1, 2])
    assert cache.overcount == 2
    cache.release([1, 2, 3])
    cache.release([1, 2])
    assert (cache.overcount, len(cache.idle)) == (0, 3)
    cache.shrink_to(2)
    assert cache.leading_hits([1, 2, 3]) == 2
    cache.shrink_to(1)
    assert cache.leading_hits([1, 2, 3]) == 1
