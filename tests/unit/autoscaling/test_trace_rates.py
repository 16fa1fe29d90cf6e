from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.autoscaling.traces.arrivals import RateCurve, arrivals_s
from raylane.autoscaling.traces.lengths import Lengths, LognormalTokens
from raylane.autoscaling.traces.rates import load_rate_curve, rate_curve_between, requests_at
from raylane.autoscaling.traces.trace import Trace
from raylane.cluster.errors import UsageError


def curve(*points: tuple[float, float]) -> RateCurve:
    t_s, rate_rps = np.array(points, dtype=np.float64).T
    return RateCurve(t_s, rate_rps)


UP_AND_DOWN = curve((0, 0), (100, 20), (300, 20), (300, 2), (500, 2), (600, 0))


def test_expected_requests_are_the_area_under_the_curve() -> None:
    # Triangle 1000, plateau 4000, the jump nothing, low plateau 400, triangle 100.
    assert UP_AND_DOWN.expected_until.tolist() == [0, 1000, 5000, 5000, 5400, 5500]


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_arrivals_in_each_part_follow_the_curve(cv: float) -> None:
    rng = np.random.default_rng(12)
    runs = [arrivals_s(UP_AND_DOWN, cv, rng) for _ in range(150)]
    edges = [0, 50, 100, 300, 500, 600]
    counted = np.mean([np.histogram(run, edges)[0] for run in runs], axis=0)
    # Of the first triangle a quarter lies in its first half. Standard deviation of a mean: cv sqrt(count / 150).
    expected = np.array([250, 750, 4000, 400, 100])
    assert (np.abs(counted - expected) < 4 * max(cv, 1) * np.sqrt(expected / 150) + 0.5).all()


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_asked_burstiness(cv: float) -> None:
    gaps_s = np.diff(arrivals_s(curve((0, 50), (4000, 50)), cv, np.random.default_rng(13)))
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.04)
    assert 1 / gaps_s.mean() == pytest.approx(50, rel=0.03)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_the_start_is_like_any_other_moment(cv: float) -> None:
    rng = np.random.default_rng(14)
    runs = [arrivals_s(curve((0, 1), (20, 1)), cv, rng) for _ in range(6000)]
    first, later = (np.mean([((run >= a) & (run < a + 2)).sum() for run in runs]) for a in (0, 15))
    assert first == pytest.approx(2.0, abs=0.25)
    assert later == pytest.approx(2.0, abs=0.25)


rising = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 8)), min_size=1, max_size=8)


@given(rising, st.floats(0, 8), st.floats(0.2, 4.0), st.integers(0, 2**32 - 1))
@settings(max_examples=80)
def test_arrivals_rise_inside_any_curve(
    pieces: list[tuple[float, float]], start_rps: float, cv: float, seed: int
) -> None:
    t_s = np.concatenate([[0.0], np.cumsum([length_s for length_s, _ in pieces]), [400.0]])
    shape = RateCurve(t_s, np.array([start_rps, *(rate for _, rate in pieces), 0.0]))
    at_s = arrivals_s(shape, cv, np.random.default_rng(seed))
    assert (np.diff(at_s) >= 0).all()
    assert not len(at_s) or 0 <= at_s[0] <= at_s[-1] <= 400.0
    again = arrivals_s(shape, cv, np.random.default_rng(seed))
    assert at_s.tolist() == again.tolist()


def test_nothing_arrives_while_the_rate_is_zero() -> None:
    at_s = arrivals_s(curve((0, 5), (10, 5), (10, 0), (90, 0), (90, 5), (100, 5)), 1.0, np.random.default_rng(15))
    assert len(at_s) > 50
    assert not ((at_s > 10) & (at_s < 90)).any()
    assert len(arrivals_s(curve((0, 0), (10, 0)), 1.0, np.random.default_rng(15))) == 0


def test_a_part_of_a_curve_has_its_area() -> None:
    part = rate_curve_between(UP_AND_DOWN, 50.0, 550.0)
    assert (part.duration_s, part.rate_rps[0], part.rate_rps[-1]) == (500.0, 10.0, 1.0)
    # Without the quarters cut off both ends: 250 of the first triangle and 25 of the last.
    assert part.expected_until[-1] == pytest.approx(5500 - 250 - 25)
    with pytest.raises(UsageError, match="600 s cannot go from 50 s to 700 s"):
        rate_curve_between(UP_AND_DOWN, 50.0, 700.0)


def test_lengths_are_those_of_whole_requests_of_the_other_trace() -> None:
    other = Trace("o", None, np.array([0.0, 1.0]), np.array([10, 2000]), np.array([1, 300]), "by hand", 2.0)
    trace = requests_at(UP_AND_DOWN, other, np.random.default_rng(16), name="week", factor=2.0, cv=2.0, model="small")
    assert len(trace) == pytest.approx(11_000, rel=0.05)
    pairs = set(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
    assert pairs == {(10, 1), (2000, 300)}
    assert (trace.input_tokens == 10).mean() == pytest.approx(0.5, abs=0.03)
    assert (trace.name, trace.model, trace.duration_s) == ("week", "small", 600.0)
    assert trace.source == "generated from a rate curve times 2, gaps of cv 2, lengths o by bootstrap"


def test_lengths_may_be_lognormal() -> None:
    lengths = Lengths(input_tokens=LognormalTokens(mean=500, p99=500), output_tokens=LognormalTokens(mean=9, p99=9))
    trace = requests_at(UP_AND_DOWN, lengths, np.random.default_rng(16), name="week")
    assert set(trace.input_tokens) == {500}
    assert set(trace.output_tokens) == {9}


@pytest.mark.parametrize(("factor", "cv"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_factor_and_burstiness_must_be_above_0(factor: float, cv: float) -> None:
    with pytest.raises(UsageError, match=f"got {factor} and {cv}"):
        requests_at(UP_AND_DOWN, Lengths(), np.random.default_rng(1), name="week", factor=factor, cv=cv)


def test_a_curve_file_is_read_and_begins_at_0(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("t_s,rate_rps,rate_lo_rps\n60,4,3\n120,8,7\n")
    read = load_rate_curve(path)
    assert (read.t_s.tolist(), read.rate_rps.tolist()) == ([0, 60, 120], [4, 4, 8])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("t_s,rate_rps\n0,1\n60,2\n60,3\n", "line 4: t_s: 60 does not come after 60", id="a time twice"),
        pytest.param("t_s,rate_rps\n0,1\n60,-2\n", "line 3: rate_rps: '-2' is below 0", id="a negative rate"),
        pytest.param("t_s,rate_rps\n0,1\n", "needs two points", id="one point"),
        pytest.param("t_s,input_tokens\n0,1\n", "column rate_rps is missing", id="requests instead of rates"),
    ],
)
def test_a_bad_curve_file_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        load_rate_curve(path)


@pytest.mark.parametrize(
    ("t_s", "rate_rps", "says"),
    [
        pytest.param([0.0], [1.0], "two points", id="one point"),
        pytest.param([0.0, 1.0], [1.0], "2 times and 1 rates", id="a rate short"),
        pytest.param([1.0, 2.0], [1.0, 1.0], "rise from 0, got 1.0", id="a late start"),
        pytest.param([0.0, 2.0, 1.0], [1.0, 1.0, 1.0], "rise from 0", id="time going back"),
        pytest.param([0.0, 1.0], [1.0, -1.0], "the least is -1.0", id="a rate below 0"),
    ],
)
def test_what_is_no_curve_is_refused(t_s: list[float], rate_rps: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RateCurve(np.array(t_s), np.array(rate_rps))
