import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.autoscaling.lab.statistics import (
    Interval,
    block_ratio,
    block_sums,
    paired_difference,
    paired_saving,
    student_t,
)


# Printed t tables: two-sided 95 % and 99 %.
@pytest.mark.parametrize(
    ("degrees", "confidence", "t"),
    [
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (3, 0.95, 3.182),
        (4, 0.95, 2.776),
        (9, 0.95, 2.262),
        (10, 0.95, 2.228),
        (30, 0.95, 2.042),
        (1000, 0.95, 1.962),
        (9, 0.99, 3.250),
        (10, 0.99, 3.169),
    ],
)
def test_student_t_is_that_of_the_printed_table(degrees: int, confidence: float, t: float) -> None:
    assert student_t(degrees, confidence) == pytest.approx(t, abs=6e-4)


def test_pairs_remove_what_runs_share() -> None:
    rng = np.random.default_rng(31)
    shared = rng.normal(100, 30, 12)
    a, b = shared - 5 + rng.normal(0, 1, 12), shared
    difference = paired_difference(a, b, seed=1)
    assert difference.pairs == 12
    assert difference.bootstrap.value == pytest.approx(-5, abs=1)
    assert difference.significant
    assert difference.bootstrap.low is not None
    assert difference.bootstrap.high is not None
    assert difference.bootstrap.high - difference.bootstrap.low < 2.5


def test_student_interval_of_a_sample_by_hand() -> None:
    # Differences 1, 2, 3, 4, 5: mean 3, standard error sqrt(2.5 / 5), t of 4 degrees 2.776.
    interval = paired_difference([2, 4, 6, 8, 10], [1, 2, 3, 4, 5], seed=1).student
    assert interval.value == 3.0
    assert interval.low == pytest.approx(3 - 2.776 * math.sqrt(0.5), abs=1e-3)
    assert interval.high == pytest.approx(3 + 2.776 * math.sqrt(0.5), abs=1e-3)


def test_no_difference_is_not_significant() -> None:
    rng = np.random.default_rng(32)
    a, b = rng.normal(10, 2, (2, 20))
    assert not paired_difference(a, b, seed=1).significant


def test_three_pairs_of_one_sign_are_no_proof() -> None:
    difference = paired_difference([2.0, 1.0, 0.2], [0.0, 0.0, 0.0], seed=1)
    assert difference.bootstrap.excludes_zero
    assert not difference.student.excludes_zero
    assert not difference.significant


def test_both_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(33)
    held = np.zeros(2)
    for seed in range(400):
        difference = paired_difference(rng.normal(1.0, 1.0, 12), np.zeros(12), seed, draws=500)
        for which, interval in enumerate((difference.bootstrap, difference.student)):
            assert interval.low is not None
            assert interval.high is not None
            held[which] += interval.low <= 1.0 <= interval.high
    bootstrap, student = held / 400
    assert 0.86 <= bootstrap <= 0.97  # too narrow for few pairs, as its docstring says
    assert 0.92 <= student <= 0.98


def test_a_saving_is_relative_to_the_other() -> None:
    b = np.linspace(80, 120, 10)
    saving = paired_saving(b * 0.75, b, seed=1)
    assert (saving.value, saving.low, saving.high) == pytest.approx((0.25, 0.25, 0.25))
    worse = paired_saving(b * 1.1 + np.arange(10), b, seed=1)
    assert worse.high is not None
    assert worse.high < 0


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=2, max_size=15), st.integers(0, 1000))
@settings(max_examples=40)
def test_intervals_hold_their_value_and_turn_with_the_sign(pairs: list[tuple[float, float]], seed: int) -> None:
    a, b = np.array(pairs).T
    there, back = (paired_difference(x, y, seed, draws=400).student for x, y in ((a, b), (b, a)))
    assert there.low is not None
    assert there.high is not None
    assert there.low <= there.value <= there.high
    assert back.low == pytest.approx(-there.high, abs=1e-6)
    saving = paired_saving(a, b, seed, draws=400)
    assert saving.low is not None
    assert saving.high is not None
    assert 1 - (a / b).max() - 1e-9 <= saving.low <= saving.high <= 1 - (a / b).min() + 1e-9


def test_same_seed_same_interval() -> None:
    a, b = np.random.default_rng(34).exponential(5.0, (2, 10))
    assert paired_difference(a, b, seed=7) == paired_difference(a, b, seed=7)
    assert paired_difference(a, b, seed=7).bootstrap != paired_difference(a, b, seed=8).bootstrap


def test_one_pair_has_a_value_and_no_interval() -> None:
    assert paired_difference([3.0], [1.0], seed=1).student == Interval(2.0, None, None)
    assert not paired_difference([3.0], [1.0], seed=1).significant
    assert paired_saving([3.0], [4.0], seed=1) == Interval(0.25, None, None)


def test_sums_by_hour() -> None:
    sums = block_sums([0.0, 10.0, 3600.0, 9000.0], [1, 2, 4, 8], 3600.0, 9000.0)
    assert sums.tolist() == [3, 4, 8]


def test_blocks_are_wider_than_requests_when_load_has_days() -> None:
    rng = np.random.default_rng(35)
    good_share = np.repeat(rng.uniform(0.9, 1.0, 14), 1000)
    good = (rng.random(14_000) < good_share).astype(np.float64)
    at_s = np.repeat(np.arange(14), 1000) * 86_400.0
    parts, wholes = (block_sums(at_s, values, 86_400.0, 14 * 86_400.0) for values in (good, np.ones(14_000)))
    by_day = block_ratio(parts, wholes, seed=1)
    alone = block_ratio(good, np.ones(14_000), seed=1, draws=300)
    assert by_day.value == alone.value == pytest.approx(good.mean())
    assert None not in (by_day.low, by_day.high, alone.low, alone.high)
    assert (by_day.high or 0) - (by_day.low or 0) > 3 * ((alone.high or 0) - (alone.low or 0))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        pytest.param(0.1, 0.5, True, id="above zero"),
        pytest.param(-0.5, -0.1, True, id="below zero"),
        pytest.param(-0.1, 0.5, False, id="across zero"),
        pytest.param(0.0, 0.5, False, id="touching zero"),
        pytest.param(None, None, False, id="unknown"),
    ],
)
def test_no_claim_when_zero_is_inside(low: float | None, high: float | None, expected: bool) -> None:
    assert Interval(0.2, low, high).excludes_zero is expected


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        paired_difference([1, 2], [1, 2, 3], seed=1)
    with pytest.raises(ValueError, match="leave out a seed"):
        paired_difference([1, float("nan")], [1, 2], seed=1)
    with pytest.raises(ValueError, match=r"the least is 0\.0"):
        paired_saving([1, 2], [0, 2], seed=1)
    with pytest.raises(ValueError, match=r"their sum is 0\.0"):
        block_ratio([0, 0], [0, 0], seed=1)
    with pytest.raises(ValueError, match=r"blocks of 10.0 s do not fit into 5.0 s"):
        block_sums([1.0], [1.0], 10.0, 5.0)
    with pytest.raises(ValueError, match="1 degree of freedom"):
        student_t(0)
