import itertools

import numpy as np
import pytest

from raylane.autoscaling.traces.resample import shuffled_lengths, variant
from raylane.autoscaling.traces.trace import LENGTH_WINDOW_S, Trace, rates_rps
from raylane.cluster.errors import UsageError


def recorded() -> Trace:
    """Three hours: quiet, a tripled hour with long prompts, quiet. No two requests alike."""
    rng = np.random.default_rng(9)
    at_s = np.sort(np.concatenate([rng.uniform(0, 10800, 5400), rng.uniform(3600, 7200, 3600)]))
    middle = (at_s >= 3600) & (at_s < 7200)
    return Trace("r", "m", at_s, 1 + np.arange(9000) + 10_000 * middle, 1 + np.arange(9000), "recorded", 10800.0)


def test_ten_seeds_give_ten_traces_of_the_same_load() -> None:
    trace = recorded()
    variants = [variant(trace, seed) for seed in range(10)]
    for other in variants:
        assert len(other) == pytest.approx(9000, abs=150)
        assert rates_rps(other, 1800.0) == pytest.approx(rates_rps(trace, 1800.0), rel=0.1)
        assert other.duration_s == trace.duration_s
        assert np.isin(other.at_s, trace.at_s).mean() == pytest.approx(0.9, abs=0.02)
    for a, b in itertools.combinations(variants, 2):
        assert not np.array_equal(a.at_s, b.at_s)
        assert np.isin(a.at_s, b.at_s).mean() == pytest.approx(0.81, abs=0.03)


def test_counts_do_not_drift_over_many_seeds() -> None:
    trace = recorded()
    # One count has a standard deviation under sqrt(9000 x 0.2) = 42, the mean of 60 one of 5.5.
    assert np.mean([len(variant(trace, seed)) for seed in range(60)]) == pytest.approx(9000, abs=25)


def test_a_seed_always_gives_the_same_variant() -> None:
    first, second = variant(recorded(), 3), variant(recorded(), 3)
    assert first.at_s.tolist() == second.at_s.tolist()
    assert first.input_tokens.tolist() == second.input_tokens.tolist()
    assert first.source == "recorded; variant 3 with keep 0.9"


def test_lengths_move_within_their_ten_minutes_only() -> None:
    trace = recorded()
    mixed = shuffled_lengths(trace, np.random.default_rng(1))
    window = trace.at_s // LENGTH_WINDOW_S
    for number in np.unique(window):
        here = window == number
        assert sorted(mixed.input_tokens[here]) == sorted(trace.input_tokens[here])
    assert (mixed.input_tokens != trace.input_tokens).mean() > 0.9
    assert ((mixed.input_tokens - mixed.output_tokens) % 10_000 == 0).all()
    assert mixed.at_s.tolist() == trace.at_s.tolist()


def test_keeping_everything_only_shuffles() -> None:
    trace = recorded()
    assert variant(trace, 1, keep=1.0).at_s.tolist() == trace.at_s.tolist()


@pytest.mark.parametrize("keep", [0.0, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(keep: float) -> None:
    with pytest.raises(UsageError, match=f"got {keep}"):
        variant(recorded(), 1, keep)
