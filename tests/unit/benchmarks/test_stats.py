import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylane.benchmarks.stats import bootstrap_interval, summarize, wilson_interval


def test_percentiles_of_one_to_hundred_by_hand() -> None:
    # Position q x 99 among 1..100: p50 at 49.5 -> 50.5, p90 at 89.1 -> 90.1, p95 at 94.05 -> 95.05.
    summary = summarize(list(range(100, 0, -1)), seed=1)
    assert summary is not None
    assert (summary.samples, summary.mean) == (100, 50.5)
    assert [summary.p50.value, summary.p90.value, summary.p95.value] == pytest.approx([50.5, 90.1, 95.05])


@pytest.mark.parametrize(
    ("samples", "shown"),
    [pytest.param(499, False, id="499 samples are too few"), pytest.param(500, True, id="500 are enough")],
)
def test_p99_needs_500_samples(samples: int, shown: bool) -> None:
    summary = summarize(np.arange(samples), seed=1)
    assert summary is not None
    assert (summary.p99 is not None) is shown


def test_nothing_measured_is_none() -> None:
    assert summarize([], seed=1) is None


def test_single_value_has_a_point_interval() -> None:
    summary = summarize([7.0], seed=1)
    assert summary is not None
    assert (summary.p95.low, summary.p95.value, summary.p95.high) == (7.0, 7.0, 7.0)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(3).exponential(1.0, 200)
    assert summarize(values, seed=5) == summarize(values, seed=5)
    assert summarize(values, seed=5) != summarize(values, seed=6)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95])
def test_interval_agrees_with_resampling_in_full(q: float) -> None:
    draws = np.random.default_rng(11)
    ordered = np.sort(draws.exponential(100.0, 300))
    low, high = bootstrap_interval(ordered, q, np.random.default_rng(1))
    resampled = [np.quantile(draws.choice(ordered, ordered.size), q) for _ in range(4000)]
    expected_low, expected_high = np.quantile(resampled, [0.025, 0.975])
    width = expected_high - expected_low
    assert low == pytest.approx(expected_low, abs=0.12 * width)
    assert high == pytest.approx(expected_high, abs=0.12 * width)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_interval_holds_inside_the_sample(values: list[float]) -> None:
    summary = summarize(values, seed=1)
    assert summary is not None
    assert summary.p90.low is not None
    assert summary.p90.high is not None
    assert min(values) <= summary.p90.low <= summary.p90.high <= max(values)


@pytest.mark.parametrize(
    ("good", "attempted", "low", "high"),
    [
        # Published worked values of the Wilson score interval (Newcombe 1998, table I).
        pytest.param(81, 263, 0.2553, 0.3662, id="81 of 263"),
        pytest.param(15, 148, 0.0624, 0.1605, id="15 of 148"),
        pytest.param(0, 20, 0.0, 0.1611, id="none of 20"),
        pytest.param(29, 29, 0.8830, 1.0, id="all of 29"),
        pytest.param(0, 0, 0.0, 1.0, id="nothing tried says nothing"),
    ],
)
def test_wilson(good: int, attempted: int, low: float, high: float) -> None:
    assert wilson_interval(good, attempted) == pytest.approx((low, high), abs=5e-5)
