from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.autoscaling.traces.lengths import Lengths, LognormalTokens, drawn_tokens
from raylane.autoscaling.traces.shapes import Diurnal, FlashCrowd, Shape, curve_of, generate, shape_from_data
from raylane.autoscaling.traces.trace import rates_rps
from raylane.cluster.errors import UsageError
from raylane.cluster.strict import StrictModel

HOUR_S = 3600.0


class Study(StrictModel):
    load: Shape


def rate_at(shape: Shape, t_s: float) -> float:
    curve = curve_of(shape)
    return float(np.interp(t_s, curve.t_s, curve.rate_rps))


# Times are chosen away from jumps. Rates by hand from the parameters.
@pytest.mark.parametrize(
    ("text", "duration_s", "rates"),
    [
        pytest.param("{kind: constant, rps: 3, duration_s: 60}", 60, {0: 3, 30: 3, 60: 3}, id="constant"),
        pytest.param(
            "{kind: step, base_rps: 1, peak_rps: 5, before_s: 100, hold_s: 200, after_s: 50}",
            350,
            {0: 1, 99: 1, 101: 5, 299: 5, 301: 1, 350: 1},
            id="step up and back",
        ),
        pytest.param(
            "{kind: step, base_rps: 0, peak_rps: 5, before_s: 100, hold_s: 200, after_s: 0}",
            300,
            {50: 0, 101: 5, 300: 5},
            id="step from silence that stays",
        ),
        pytest.param(
            "{kind: ramp, base_rps: 1, peak_rps: 5, before_s: 10, rise_s: 40, hold_s: 10, fall_s: 20, after_s: 5}",
            85,
            {5: 1, 30: 3, 50: 5, 60: 5, 70: 3, 80: 1, 85: 1},
            id="ramp",
        ),
        pytest.param(
            "{kind: lull, base_rps: 1, peak_rps: 5, before_s: 10, fall_s: 4, hold_s: 10, rise_s: 8, after_s: 5}",
            37,
            {0: 5, 10: 5, 12: 3, 14: 1, 24: 1, 28: 3, 32: 5, 37: 5},
            id="lull",
        ),
        pytest.param(
            "{kind: flash_crowd, base_rps: 1, peak_rps: 11, before_s: 10, rise_s: 4, hold_s: 6, decay_s: 100,"
            " after_s: 300}",
            320,
            {5: 1, 12: 6, 14: 11, 20: 11, 120: 1 + 10 / np.e, 220: 1 + 10 / np.e**2},
            id="flash crowd that loses all but 1/e in decay_s",
        ),
        pytest.param(
            "{kind: diurnal, base_rps: 1, peak_rps: 5, days: 2, peak_hour: 14}",
            48 * HOUR_S,
            {14 * HOUR_S: 5, 2 * HOUR_S: 1, 8 * HOUR_S: 3, 20 * HOUR_S: 3, 38 * HOUR_S: 5},
            id="two days with a peak at two in the afternoon",
        ),
    ],
)
def test_rates_over_time(text: str, duration_s: float, rates: dict[float, float]) -> None:
    shape = Study.from_data({"load": yaml.safe_load(text)}, "study.yaml").load
    assert curve_of(shape).duration_s == duration_s
    assert {t_s: rate_at(shape, t_s) for t_s in rates} == pytest.approx(rates, abs=1e-6, rel=1e-3)


def test_weekends_are_calmer_where_the_week_says_so() -> None:
    week = Diurnal(base_rps=1, peak_rps=5, peak_hour=12, weekend_factor=0.4, first_weekday=3)  # from a Thursday
    noons = [rate_at(week, (day * 24 + 12) * HOUR_S) for day in range(7)]
    assert noons == pytest.approx([5, 5, 2, 2, 5, 5, 5])


SHAPES: list[dict[str, Any]] = [
    {"kind": "constant", "rps": 2, "duration_s": 4000},
    {"kind": "step", "base_rps": 1, "peak_rps": 5},
    {"kind": "ramp", "base_rps": 1, "peak_rps": 5},
    {"kind": "flash_crowd", "base_rps": 1, "peak_rps": 8},
    {"kind": "lull", "base_rps": 0, "peak_rps": 5},
    {"kind": "diurnal", "base_rps": 0.02, "peak_rps": 0.3, "days": 3, "weekend_factor": 0.5, "first_weekday": 4},
]


@pytest.mark.parametrize("data", SHAPES, ids=lambda data: data["kind"])
@pytest.mark.parametrize("cv", [1.0, 2.5])
def test_generated_requests_follow_the_shape(data: dict[str, Any], cv: float) -> None:
    shape = shape_from_data({**data, "cv": cv, "model": "small"}, "load")
    trace = generate(shape, np.random.default_rng(21))
    curve = curve_of(shape)
    assert (trace.name, trace.model, trace.duration_s) == (data["kind"], "small", curve.duration_s)
    window_s = curve.duration_s / 10
    seen = rates_rps(trace, window_s) * window_s
    edges_s = np.arange(0, 10.5) * window_s
    expected = np.diff(np.interp(edges_s, *_filled(curve.t_s, curve.rate_rps)))
    assert (np.abs(seen - expected) < 5 * cv * np.sqrt(expected + 1)).all()


def _filled(t_s: np.ndarray[Any, Any], rate_rps: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Expected requests until each of 100 000 moments, by adding up small steps."""
    moments_s = np.linspace(0, t_s[-1], 100_001)
    middles = np.interp((moments_s[1:] + moments_s[:-1]) / 2, t_s, rate_rps)
    return moments_s, np.concatenate([[0], np.cumsum(middles * np.diff(moments_s))])


@pytest.mark.parametrize("data", SHAPES, ids=lambda data: data["kind"])
def test_same_seed_same_requests_and_another_seed_others(data: dict[str, Any]) -> None:
    shape = shape_from_data(data, "load")
    first, second, third = (generate(shape, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert first.at_s.tolist() == second.at_s.tolist()
    assert first.output_tokens.tolist() == second.output_tokens.tolist()
    assert first.at_s.tolist() != third.at_s.tolist()


@pytest.mark.parametrize("data", SHAPES, ids=lambda data: data["kind"])
def test_a_shape_written_out_reads_back(data: dict[str, Any]) -> None:
    study = Study(load=shape_from_data(data, "load"))
    assert Study.from_data(yaml.safe_load(study.to_yaml()), "again") == study


@given(
    st.floats(0, 3), st.floats(3, 9), st.floats(1, 500), st.floats(1, 500), st.floats(0, 500), st.integers(0, 2**32 - 1)
)
@settings(max_examples=40)
def test_a_crowd_never_leaves_base_and_peak(
    base: float, peak: float, before_s: float, decay_s: float, hold_s: float, seed: int
) -> None:
    shape = FlashCrowd(base_rps=base, peak_rps=peak, before_s=before_s, decay_s=decay_s, hold_s=hold_s)
    rates = curve_of(shape).rate_rps
    assert rates.max() == peak
    assert rates.min() >= base
    assert generate(shape, np.random.default_rng(seed)).duration_s == pytest.approx(before_s + hold_s + 30 + 3600)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param({"kind": "spike"}, r"load: .*'spike'.*'constant', 'step', 'ramp'", id="an unknown kind"),
        pytest.param({"base_rps": 1}, r"load: .*discriminator 'kind'", id="no kind"),
        pytest.param({"kind": "step", "base_rps": 5, "peak_rps": 1}, r"base_rps 5.0 is above peak_rps 1.0",
                     id="upside down"),
        pytest.param({"kind": "step", "peak_rps": 1}, r"step.base_rps: required key is missing", id="a rate missing"),
        pytest.param({"kind": "constant", "rps": 0}, r"constant.rps: .*greater than 0", id="no load at all"),
        pytest.param({"kind": "constant", "rps": 1, "cv": 0}, r"constant.cv: .*greater than 0", id="no burstiness"),
        pytest.param({"kind": "constant", "rps": 1, "rate": 2}, r"constant.rate: unknown key", id="a key it has not"),
        pytest.param({"kind": "diurnal", "base_rps": 1, "peak_rps": 2, "peak_hour": 24}, r"peak_hour", id="hour 24"),
        pytest.param({"kind": "constant", "rps": float("inf")}, r"constant.rps", id="endless load"),
    ],
)  # fmt: skip
def test_impossible_shapes_are_refused_with_key_and_value(data: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        shape_from_data(data, "load")


def test_a_load_too_large_to_hold_is_refused() -> None:
    shape = shape_from_data({"kind": "constant", "rps": 1e6, "duration_s": 86_400}, "load")
    with pytest.raises(UsageError, match=r"8.64e\+10 requests, at most 5e\+07"):
        generate(shape, np.random.default_rng(1))


@pytest.mark.parametrize(("mean", "p99"), [(1155, 4142), (211, 601), (54, 505), (100, 1400), (100, 130)])
def test_lognormal_lengths_have_the_mean_and_p99_asked_for(mean: float, p99: float) -> None:
    tokens = drawn_tokens(LognormalTokens(mean=mean, p99=p99, max=10**7), 400_000, np.random.default_rng(22))
    assert tokens.mean() == pytest.approx(mean, rel=0.03)
    assert np.quantile(tokens, 0.99) == pytest.approx(p99, rel=0.03)


def test_lengths_stay_within_min_and_max() -> None:
    tokens = drawn_tokens(LognormalTokens(mean=100, p99=900, min=20, max=500), 20_000, np.random.default_rng(23))
    assert (tokens.min(), tokens.max()) == (20, 500)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param({"mean": 100, "p99": 90}, "p99 90.0 is below the mean 100.0", id="p99 below the mean"),
        pytest.param({"mean": 100, "p99": 1600}, "a lognormal reaches 1497", id="p99 out of reach"),
        pytest.param({"mean": 100, "p99": 200, "min": 9, "max": 8}, "min 9 is above max 8", id="min above max"),
    ],
)
def test_impossible_lengths_are_refused(data: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LognormalTokens.from_data(data, "lengths")


def test_lengths_of_a_shape_come_from_its_file() -> None:
    lengths = Lengths(input_tokens=LognormalTokens(mean=7, p99=7), output_tokens=LognormalTokens(mean=3, p99=3))
    shape = shape_from_data({"kind": "constant", "rps": 1, "name": "tiny", "lengths": lengths.model_dump()}, "load")
    trace = generate(shape, np.random.default_rng(24))
    assert (trace.name, set(trace.input_tokens), set(trace.output_tokens)) == ("tiny", {7}, {3})
