"""Public traces read in full, where they are: RAYLANE_TRACES, else ../shared/traces beside the checkout."""

import os
from pathlib import Path

import numpy as np
import pytest

from raylane.autoscaling.traces.lengths import Lengths
from raylane.autoscaling.traces.rates import load_rate_curve, requests_at
from raylane.autoscaling.traces.readers import load_trace, read_trace
from raylane.autoscaling.traces.resample import variant
from raylane.autoscaling.traces.trace import peak_rps, rates_rps

FOLDER = Path(os.environ.get("RAYLANE_TRACES", Path(__file__).resolve().parents[4] / "shared" / "traces"))


def public(name: str) -> Path:
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no public trace at {path}; set RAYLANE_TRACES to their folder")
    return path


# Rows, span, mean rate, highest rate in 60 s and 10 s, mean input and output tokens, as published with the files.
@pytest.mark.parametrize(
    ("name", "rows", "span_s", "mean_rps", "peak60_rps", "peak10_rps", "tokens"),
    [
        ("azure2023_conv.csv.gz", 19_366, 3_502, 5.53, 8.45, 9.8, (1155, 211)),
        ("azure2023_code.csv.gz", 8_819, 3_436, 2.57, 10.5, 32.7, (2048, 28)),
        ("mooncake_conversation.csv.gz", 12_031, 3_537, 3.40, 4.12, 6.7, (12035, 343)),
        ("mooncake_synthetic.csv.gz", 3_993, 1_022, 3.91, 4.55, 5.5, (15325, 149)),
        ("mooncake_conversation_trace.raw.jsonl.gz", 12_031, 3_537, 3.40, 4.12, 6.7, (12035, 343)),
        ("servegen_m-large_7d_1rps.csv.gz", 600_404, 604_800, 0.99, 4.80, 10.0, (927, 162)),
        ("servegen_m-large_1h_peak_4rps.csv.gz", 14_169, 3_600, 3.94, 4.88, 7.6, (516, 226)),
        ("servegen_m-mid_7d_2rps_days7-13.csv.gz", 1_211_766, 604_800, 2.00, 15.9, 27.4, (320, 50)),
        ("servegen_deepseek-r1_1d_0.5rps.csv.gz", 43_239, 86_400, 0.50, 1.88, 5.6, (1102, 1401)),
    ],
)
def test_figures_of_the_whole_trace(
    name: str,
    rows: int,
    span_s: float,
    mean_rps: float,
    peak60_rps: float,
    peak10_rps: float,
    tokens: tuple[int, int],
) -> None:
    reading = read_trace(public(name))
    trace = reading.trace
    assert (reading.rows, len(trace), reading.without_output) == (rows, rows, 0)
    assert trace.duration_s == pytest.approx(span_s, abs=5)
    assert trace.mean_rps == pytest.approx(mean_rps, abs=0.006)
    assert peak_rps(trace, 60.0) == pytest.approx(peak60_rps, abs=0.051)
    assert peak_rps(trace, 10.0) == pytest.approx(peak10_rps, abs=0.051)
    assert (trace.input_tokens.mean(), trace.output_tokens.mean()) == pytest.approx(tokens, abs=0.51)


@pytest.mark.parametrize(
    ("name", "mean_rps", "peak_over_mean"),
    [
        ("azure2024_code_1week_rate_digitized.csv.gz", 27.8, 3.18),
        ("azure2024_conv_1week_rate_digitized.csv.gz", 45.1, 1.76),
    ],
)
def test_a_week_of_rates_becomes_requests(name: str, mean_rps: float, peak_over_mean: float) -> None:
    curve = load_rate_curve(public(name))
    assert curve.duration_s == pytest.approx(7 * 86_400, abs=600)
    assert curve.expected_until[-1] / curve.duration_s == pytest.approx(mean_rps, abs=0.06)
    assert curve.rate_rps.max() / mean_rps == pytest.approx(peak_over_mean, abs=0.02)
    trace = requests_at(curve, Lengths(), np.random.default_rng(1), name="week", factor=0.01)
    hours = rates_rps(trace, 3600.0)
    expected = np.interp((np.arange(len(hours)) + 0.5) * 3600.0, curve.t_s, curve.rate_rps) * 0.01
    assert np.corrcoef(hours, expected)[0, 1] > 0.97
    assert trace.mean_rps == pytest.approx(0.01 * mean_rps, rel=0.01)


def test_the_uneven_hour_of_code_completion_stays_uneven_in_every_variant() -> None:
    trace = load_trace(public("azure2023_code.csv.gz"))
    for seed in range(10):
        other = variant(trace, seed)
        assert len(other) == pytest.approx(len(trace), rel=0.03)
        assert peak_rps(other, 60.0) == pytest.approx(peak_rps(trace, 60.0), rel=0.1)
