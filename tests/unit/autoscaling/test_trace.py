from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.autoscaling.traces.trace import (
    COPY_JITTER_S,
    Trace,
    between,
    clipped,
    compressed,
    named,
    neighbours,
    peak_rps,
    rates_rps,
    scaled,
)
from raylane.cluster.errors import UsageError


def made(at_s: list[float], duration_s: float = 1000.0) -> Trace:
    """Request i has 100 + i tokens in and 10 + i out, so that each can be told apart."""
    rows = np.arange(len(at_s))
    return Trace("made", None, np.array(at_s), 100 + rows, 10 + rows, "by hand", duration_s)


def busy(seed: int = 5, count: int = 20_000, duration_s: float = 7200.0) -> Trace:
    rng = np.random.default_rng(seed)
    at_s = np.sort(rng.uniform(0.0, duration_s, count))
    inputs, outputs = rng.integers(1, 5000, (2, count), dtype=np.int32)
    return Trace("busy", "m", at_s, inputs, outputs, "by hand", duration_s)


traces = st.lists(st.floats(0.0, 1000.0, width=32), max_size=60).map(lambda at_s: made(sorted(at_s)))
factors = st.floats(0.05, 6.0)


@given(traces, factors, st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_scaled_traces_rise_stay_inside_and_use_only_lengths_there_are(trace: Trace, factor: float, seed: int) -> None:
    result = scaled(trace, factor, np.random.default_rng(seed))
    assert (np.diff(result.at_s) >= 0).all()
    assert not len(result) or 0 <= result.at_s[0] <= result.at_s[-1] <= trace.duration_s
    assert set(result.input_tokens) <= set(trace.input_tokens)
    # Prompt and reply of one request stay together: they differ by 90 in every request.
    assert (result.input_tokens - result.output_tokens == 90).all()
    assert int(factor) * len(trace) <= len(result) <= (int(factor) + 1) * len(trace)


@given(traces, factors, st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_same_generator_state_gives_the_same_trace(trace: Trace, factor: float, seed: int) -> None:
    first, second = (scaled(trace, factor, np.random.default_rng(seed)) for _ in range(2))
    assert first.at_s.tolist() == second.at_s.tolist()
    assert first.input_tokens.tolist() == second.input_tokens.tolist()


@pytest.mark.parametrize("factor", [0.25, 0.9, 1.0, 1.4, 2.0, 3.7])
def test_scaling_multiplies_the_number_of_requests(factor: float) -> None:
    trace = busy()
    # Kept or copied independently: the count's standard deviation is at most sqrt(n) / 2 = 71.
    assert len(scaled(trace, factor, np.random.default_rng(1))) == pytest.approx(factor * len(trace), abs=300)


def test_each_request_stays_and_its_copies_come_within_the_jitter() -> None:
    trace = made([0.0, 200.0, 400.0, 990.0])
    result = scaled(trace, 3.0, np.random.default_rng(2))
    for at_s in trace.at_s:
        near = result.at_s[np.abs(result.at_s - at_s) <= COPY_JITTER_S]
        assert len(near) == 3
        assert at_s in near
    assert len(set(result.at_s)) == len(result)


def test_copies_have_the_lengths_of_another_request_nearby() -> None:
    result = scaled(made([10.0, 500.0]), 2.0, np.random.default_rng(2))
    assert result.input_tokens[np.isin(result.at_s, [10.0, 500.0])].tolist() == [100, 101]
    assert result.input_tokens[~np.isin(result.at_s, [10.0, 500.0])].tolist() == [101, 100]


def test_copies_at_the_end_come_earlier_instead_of_piling_up() -> None:
    trace = made([1000.0] * 50)
    copies = scaled(trace, 2.0, np.random.default_rng(2)).at_s[:50]
    assert copies.max() < 1000.0
    assert copies.min() >= 1000.0 - COPY_JITTER_S


def test_a_burst_of_some_minutes_keeps_its_height() -> None:
    rng = np.random.default_rng(8)
    at_s = np.sort(np.concatenate([rng.uniform(0, 7200, 7200), rng.uniform(3600, 3900, 6000)]))
    trace = Trace("burst", None, at_s, np.full(13200, 9), np.full(13200, 9), "by hand", 7200.0)
    grown = scaled(trace, 2.5, np.random.default_rng(3))
    assert rates_rps(grown, 60.0).max() / rates_rps(trace, 60.0).max() == pytest.approx(2.5, rel=0.06)
    assert grown.at_s.searchsorted(3600.0) / 9000 == pytest.approx(1.0, abs=0.03)


def test_neighbours_are_others_of_the_same_ten_minutes() -> None:
    trace = made([10.0, 20.0, 30.0, 700.0, 1300.0, 1310.0], duration_s=2000.0)
    rows = np.repeat(np.arange(6), 200)
    drawn = neighbours(trace, rows, np.random.default_rng(4))
    seen = {row: set(drawn[rows == row].tolist()) for row in range(6)}
    assert seen == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: {3}, 4: {5}, 5: {4}}


def test_between_takes_the_begin_and_leaves_the_end() -> None:
    part = between(made([0.0, 10.0, 20.0, 20.0, 30.0]), 10.0, 30.0)
    assert part.at_s.tolist() == [0.0, 10.0, 10.0]
    assert part.input_tokens.tolist() == [101, 102, 103]
    assert part.duration_s == 20.0


@given(traces, st.floats(1.0, 999.0))
@settings(max_examples=40)
def test_two_parts_hold_every_request_once(trace: Trace, cut_s: float) -> None:
    parts = between(trace, 0.0, cut_s), between(trace, cut_s, 1001.0)
    assert [*parts[0].input_tokens, *parts[1].input_tokens] == trace.input_tokens.tolist()
    assert parts[0].duration_s + parts[1].duration_s == pytest.approx(trace.duration_s)


def test_compressed_brings_the_same_requests_faster() -> None:
    trace = made([0.0, 50.0, 1000.0])
    fast = compressed(trace, 10.0)
    assert fast.at_s.tolist() == [0.0, 5.0, 100.0]
    assert fast.duration_s == 100.0
    assert fast.mean_rps == pytest.approx(10 * trace.mean_rps)


def test_clipped_cuts_lengths_and_drops_nothing() -> None:
    short = clipped(made([1.0, 2.0, 3.0]), 101, 11)
    assert short.input_tokens.tolist() == [100, 101, 101]
    assert short.output_tokens.tolist() == [10, 11, 11]
    assert short.source.endswith("; longer ones cut to 101 in, 11 out (tokens)")


def test_clipped_without_a_limit_that_matters_is_the_trace_as_it_was() -> None:
    trace = made([1.0, 2.0, 3.0])
    same = clipped(trace, None, None, 114)
    assert (same.input_tokens.tolist(), same.output_tokens.tolist()) == ([100, 101, 102], [10, 11, 12])
    assert same.source == trace.source


def test_prompt_and_reply_share_what_the_model_can_hold() -> None:
    short = clipped(made([1.0, 2.0, 3.0]), None, None, 102)
    assert short.input_tokens.tolist() == [100, 101, 101]
    assert short.output_tokens.tolist() == [2, 1, 1]


def test_rates_count_each_window_by_its_own_length() -> None:
    trace = made([0.0, 1.0, 59.0, 60.0, 130.0], duration_s=150.0)
    assert rates_rps(trace, 60.0).tolist() == pytest.approx([3 / 60, 1 / 60, 1 / 30])
    assert peak_rps(trace, 60.0) == 3 / 60


@given(traces, st.floats(0.5, 2000.0))
@settings(max_examples=40)
def test_rates_add_up_to_the_requests(trace: Trace, window_s: float) -> None:
    rates = rates_rps(trace, window_s)
    lengths_s = np.full(len(rates), window_s)
    lengths_s[-1] = trace.duration_s - window_s * (len(rates) - 1)
    assert (rates * lengths_s).sum() == pytest.approx(len(trace))


def test_arrays_cannot_be_written_to_and_the_callers_still_can() -> None:
    at_s = np.array([1.0, 2.0])
    trace = Trace("t", None, at_s, np.array([1, 1]), np.array([1, 1]), "by hand", 5.0)
    with pytest.raises(ValueError, match="read-only"):
        trace.at_s[0] = 0.0
    at_s[0] = 0.5
    assert at_s[0] == 0.5


def test_a_name_and_a_model_can_be_given() -> None:
    trace = named(made([1.0]), "chat", "small")
    assert (trace.name, trace.model, len(trace)) == ("chat", "small", 1)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        pytest.param(lambda: made([2.0, 1.0]), "must rise", id="arrivals that fall"),
        pytest.param(lambda: made([-1.0, 1.0]), "go from -1.0", id="an arrival before the start"),
        pytest.param(lambda: made([1.0, 1001.0]), "within 0 and 1000", id="an arrival after the end"),
        pytest.param(lambda: made([float("nan")]), "must rise", id="an arrival that is no number"),
        pytest.param(lambda: made([1.0], duration_s=0.0), "above 0, is 0.0", id="no duration"),
        pytest.param(
            lambda: Trace("t", None, np.array([1.0]), np.array([1, 2]), np.array([1]), "", 5.0),
            "1 arrivals, 2 inputs",
            id="columns of different lengths",
        ),
        pytest.param(
            lambda: Trace("t", None, np.array([1.0]), np.array([5]), np.array([0]), "", 5.0),
            "the least is 5 in, 0 out",
            id="a request without output",
        ),
    ],
)
def test_what_is_no_trace_is_refused(build: Callable[[], Trace], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        pytest.param(lambda t: scaled(t, 0.0, np.random.default_rng(1)), "above 0, got 0.0", id="scale by 0"),
        pytest.param(lambda t: scaled(t, float("inf"), np.random.default_rng(1)), "got inf", id="scale by infinity"),
        pytest.param(lambda t: compressed(t, -1.0), "got -1.0", id="time backwards"),
        pytest.param(lambda t: between(t, 5.0, 5.0), "got 5.0 s to 5.0 s", id="an empty part"),
        pytest.param(lambda t: between(t, 2000.0, 3000.0), "lasts 1000 s", id="a part after the end"),
        pytest.param(lambda t: clipped(t, 0, 10), "got 0 in, 10 out", id="clip to nothing"),
        pytest.param(lambda t: clipped(t, None, None, 1), "got 1 in all", id="no room for a reply"),
        pytest.param(lambda t: rates_rps(t, 0.0), "window must be above 0", id="windows of 0 s"),
    ],
)
def test_impossible_operations_say_what_was_asked(operation: Callable[[Trace], object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        operation(made([1.0, 2.0]))
