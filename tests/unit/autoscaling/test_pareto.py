import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylane.autoscaling.lab.pareto import Point, envelope, gpu_hours_at, on_front

SWEEP = [Point(0.90, 10), Point(0.98, 20), Point(0.97, 25), Point(0.995, 35), Point(0.994, 60)]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        pytest.param([Point(0.9, 10), Point(0.99, 20)], (True, True), id="a trade-off"),
        pytest.param([Point(0.9, 10), Point(0.89, 11)], (True, False), id="worse in both"),
        pytest.param([Point(0.9, 10), Point(0.9, 11)], (True, False), id="as good and dearer"),
        pytest.param([Point(0.9, 10), Point(0.8, 10)], (True, False), id="as dear and worse"),
        pytest.param([Point(0.9, 10), Point(0.9, 10)], (True, True), id="equal points"),
        pytest.param([Point(0.5, 3)], (True,), id="alone"),
        pytest.param([], (), id="nobody"),
    ],
)
def test_who_is_on_the_front(points: list[Point], expected: tuple[bool, ...]) -> None:
    assert on_front(points) == expected


@pytest.mark.parametrize(
    ("attainment", "hours"),
    [
        pytest.param(0.98, 20.0, id="at a setting"),
        pytest.param(0.94, 15.0, id="halfway between two"),
        pytest.param(0.99, 30.0, id="past a setting that fell back"),
        pytest.param(0.5, 10.0, id="below the sweep costs its cheapest"),
        pytest.param(0.995, 35.0, id="at the best"),
        pytest.param(0.9951, None, id="never reached"),
    ],
)
def test_hours_at_an_attainment(attainment: float, hours: float | None) -> None:
    assert gpu_hours_at(SWEEP, attainment) == (None if hours is None else pytest.approx(hours))


def test_an_empty_sweep_reaches_nothing() -> None:
    assert gpu_hours_at([], 0.5) is None


sweeps = st.lists(st.builds(Point, st.floats(0, 1), st.floats(1, 1000)), min_size=1, max_size=20)


@given(sweeps, st.floats(0, 1), st.floats(0, 1))
def test_more_attainment_never_costs_less(points: list[Point], one: float, other: float) -> None:
    low, high = (gpu_hours_at(points, attainment) for attainment in sorted((one, other)))
    assert high is None or (low is not None and low <= high * (1 + 1e-12))


@given(sweeps)
def test_the_envelope_rises_in_both_and_no_point_beats_it(points: list[Point]) -> None:
    curve = envelope(points)
    for before, after in itertools.pairwise(curve):
        assert before.attainment < after.attainment
        assert before.gpu_hours < after.gpu_hours
    for point in points:
        assert any(kept.attainment >= point.attainment and kept.gpu_hours <= point.gpu_hours for kept in curve)
    assert max(point.attainment for point in points) == curve[-1].attainment
