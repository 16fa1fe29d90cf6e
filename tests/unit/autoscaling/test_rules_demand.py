"""The demand estimate: rates believed only beyond chance, trend, mix of lengths, and gaps in the readings."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_models import model

from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.rules.demand import (
    KEEP_S,
    PRIOR,
    History,
    Sample,
    dispersion,
    estimate,
    mix,
    rate_over,
    remember,
    sized,
)


def history(counts: list[float], every_s: float = 5.0) -> History:
    """Arrivals in each interval; everything finishes at once, 500 tokens in and 200 out."""
    kept: History = (Sample(0.0, 0.0, 0.0, 0.0, 0.0),)
    total = 0.0
    for n, count in enumerate(counts, 1):
        total += count
        kept = remember(kept, totals(total), n * every_s)
    return kept


def totals(arrivals: float | None, *, prompt: float = 500.0, output: float = 200.0) -> ModelObservation:
    done = arrivals or 0.0
    return model(
        arrivals_total=arrivals,
        finished_total=done,
        prompt_tokens_total=done * prompt,
        output_tokens_total=done * output,
    )


def test_a_constant_rate_is_that_rate_now_and_ahead() -> None:
    demand = estimate(history([20.0] * 180), 60.0, 2.0)
    assert demand.now_rps == pytest.approx(4.0)
    assert demand.ahead_rps == pytest.approx(4.0)
    assert demand.dispersion == 1.0


def test_a_busy_quarter_minute_within_chance_moves_nothing() -> None:
    quiet = estimate(history([20.0] * 120), 60.0, 2.0)
    busy = estimate(history([20.0] * 117 + [24.0] * 3), 60.0, 2.0)
    assert busy.now_rps < quiet.now_rps * 1.03


def test_a_fivefold_jump_is_seen_within_fifteen_seconds() -> None:
    demand = estimate(history([20.0] * 120 + [100.0] * 3), 60.0, 2.0)
    assert demand.now_rps > 2.5 * 4.0


def test_a_short_rate_is_never_believed_above_what_was_measured() -> None:
    counts = [20.0] * 120 + [100.0] * 3
    assert estimate(history(counts), 60.0, 0.0).now_rps == pytest.approx(20.0)
    assert estimate(history(counts), 60.0, 2.0).now_rps < 20.0


@given(st.lists(st.integers(0, 60), min_size=4, max_size=200), st.floats(0.0, 4.0), st.floats(0.0, 4.0))
@settings(max_examples=100)
def test_more_confidence_never_believes_more(counts: list[int], one: float, other: float) -> None:
    kept = history([float(count) for count in counts])
    less, more = sorted((one, other))
    careful, bold = estimate(kept, 60.0, more), estimate(kept, 60.0, less)
    assert 0.0 <= careful.now_rps <= bold.now_rps + 1e-9
    assert careful.now_rps <= careful.ahead_rps <= bold.ahead_rps + 1e-9


def test_a_steady_rise_goes_on_until_the_horizon() -> None:
    rising = history([20.0 + n for n in range(100)])
    soon, later = (estimate(rising, horizon_s, 0.0).ahead_rps for horizon_s in (30.0, 120.0))
    assert 25.0 < soon < 30.0  # 23.8 a second now, 0.04 more each second
    assert 28.6 < later < 34.0
    assert estimate(rising, 120.0, 2.0).ahead_rps < later


def test_a_falling_rate_is_not_taken_to_fall_further() -> None:
    demand = estimate(history([200.0 - n for n in range(100)]), 60.0, 1.0)
    assert demand.ahead_rps == demand.now_rps


def test_no_trend_is_seen_before_two_trend_windows() -> None:
    demand = estimate(history([5.0 * n for n in range(40)]), 60.0, 0.0)
    assert demand.ahead_rps == demand.now_rps


@pytest.mark.parametrize("times", [1, 4, 9], ids=["single requests", "in fours", "in nines"])
def test_dispersion_of_arrivals_that_come_together_is_their_number(times: int) -> None:
    counts = np.random.default_rng(5).poisson(20.0 / times, 4000) * times
    samples = [Sample(5.0 * n, float(total), 0.0, 0.0, 0.0) for n, total in enumerate(np.cumsum(counts))]
    assert dispersion(samples) == pytest.approx(times, rel=0.1)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param([100.0, 0.0] * 3, 1.0, id="too few samples count as Poisson"),
        pytest.param([0.0] * 100, 1.0, id="no arrivals count as Poisson"),
        pytest.param([20.0] * 100, 1.0, id="arrivals more even than Poisson count as Poisson"),
        pytest.param([0.0] * 99 + [5000.0], 30.0, id="one enormous burst is capped"),
    ],
)
def test_dispersion_at_its_edges(counts: list[float], expected: float) -> None:
    assert dispersion(history(counts)) == expected


def test_the_mix_is_the_prior_until_enough_has_finished() -> None:
    assert mix(history([0.0] * 10)) == pytest.approx(PRIOR)
    some, enough = mix(history([1.0] * 10)), mix(history([4.0] * 10))
    assert 500.0 < some.prompt < PRIOR[0]
    assert enough == pytest.approx((500.0, 200.0))


def test_the_mix_follows_the_last_quarter_of_an_hour() -> None:
    kept = history([10.0] * 400)
    done, at_s = kept[-1], kept[-1].at_s
    for n in range(1, 200):
        more = model(
            arrivals_total=done.arrivals + n,
            finished_total=done.finished + n,
            prompt_tokens_total=(done.prompt_tokens or 0.0) + n * 100,
            output_tokens_total=(done.output_tokens or 0.0) + n * 50,
        )
        kept = remember(kept, more, at_s + 5 * n)
    assert mix(kept) == pytest.approx((100.0, 50.0))


def test_an_observation_without_arrivals_leaves_no_gap_that_looks_like_a_jump() -> None:
    kept = history([20.0] * 120)
    blind = remember(kept, totals(None), 605.0)
    after = remember(blind, totals(kept[-1].arrivals + 40.0), 610.0)
    assert blind == kept
    assert estimate(after, 60.0, 2.0).now_rps == pytest.approx(4.0)


def test_tokens_that_are_missing_once_keep_their_last_total() -> None:
    kept = history([20.0] * 120)
    seen = model(arrivals_total=2420.0, finished_total=None, prompt_tokens_total=None, output_tokens_total=None)
    after = remember(kept, seen, 605.0)
    assert after[-1].arrivals == 2420.0
    assert mix(after) == mix(kept)


def test_nothing_is_remembered_until_it_is_known_how_many_finished() -> None:
    unknown = model(arrivals_total=5.0, finished_total=None)
    assert remember((), unknown, 0.0) == ()
    assert len(remember((), totals(5.0), 5.0)) == 1


def untold(kept: History, samples: int) -> History:
    """Twenty requests in each further 5 s, whose tokens are not told."""
    for _ in range(samples):
        done = kept[-1].arrivals + 20.0
        seen = model(arrivals_total=done, finished_total=done, prompt_tokens_total=None, output_tokens_total=None)
        kept = remember(kept, seen, kept[-1].at_s + 5.0)
    return kept


def test_what_finished_while_tokens_are_untold_does_not_shorten_the_mix() -> None:
    told = history([20.0] * 120)
    for samples in (1, 60, 150):
        kept = untold(told, samples)
        assert mix(kept) == pytest.approx((500.0, 200.0))
        assert sized(kept)
        assert estimate(kept, 0.0, 2.0).now_rps == pytest.approx(4.0)


def test_tokens_told_again_are_those_of_all_that_finished_meanwhile() -> None:
    kept = untold(history([20.0] * 120), 60)
    kept = remember(kept, totals(kept[-1].arrivals + 20.0), kept[-1].at_s + 5.0)
    assert mix(kept) == pytest.approx((500.0, 200.0))


@pytest.mark.parametrize(
    ("kept", "known"),
    [
        pytest.param((), False, id="nothing was seen"),
        pytest.param(untold((Sample(0.0, 0.0, 0.0, None, None),), 50), False, id="never told"),
        pytest.param(history([0.0]), True, id="told now, though nothing finished"),
        pytest.param(untold(history([20.0] * 60), 60), True, id="told while enough finished"),
        pytest.param(untold(history([0.0] * 60), 1), False, id="told while nothing finished"),
        pytest.param(untold(history([20.0] * 60), 200), False, id="told longer ago than the mix lasts"),
    ],
)
def test_whether_the_cost_of_a_request_is_known(kept: History, known: bool) -> None:
    assert sized(kept) is known
    assert known or mix(kept) == pytest.approx(PRIOR)


@pytest.mark.parametrize(
    ("arrivals", "at_s"),
    [pytest.param(10.0, 605.0, id="totals that fall"), pytest.param(2500.0, 100.0, id="a clock set back")],
)
def test_history_begins_anew_after(arrivals: float, at_s: float) -> None:
    assert len(remember(history([20.0] * 120), totals(arrivals), at_s)) == 1


def test_two_observations_at_one_moment_are_one_sample() -> None:
    kept = history([20.0] * 10)
    again = remember(kept, totals(300.0), kept[-1].at_s)
    assert len(again) == len(kept)
    assert again[-1].arrivals == 300.0


def test_history_is_kept_for_a_bounded_time() -> None:
    kept = history([1.0] * 1000)
    assert KEEP_S <= kept[-1].at_s - kept[0].at_s <= KEEP_S + 5.0


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param([], None, id="one sample has no rate"),
        pytest.param([10.0], 2.0, id="a short history is used whole"),
        pytest.param([10.0] * 20 + [50.0] * 12, 10.0, id="a long one by its last window"),
    ],
)
def test_rate_over_a_window(counts: list[float], expected: float | None) -> None:
    assert rate_over(history(counts), 60.0) == expected
    assert rate_over((), 60.0) is None


@given(st.lists(st.integers(0, 200), min_size=1, max_size=100))
@settings(max_examples=100)
def test_more_arrivals_never_estimate_less_without_slack(counts: list[int]) -> None:
    few = estimate(history([float(count) for count in counts]), 0.0, 0.0)
    many = estimate(history([float(count + 1) for count in counts]), 0.0, 0.0)
    assert few.now_rps <= many.now_rps
    assert math.isfinite(many.now_rps)
