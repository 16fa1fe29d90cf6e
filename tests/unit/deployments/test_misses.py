"""Missed requests read off an engine's histograms."""

import pytest

from raylane.deployments.engines.load import read_page
from raylane.deployments.engines.misses import above, missed_total
from raylane.deployments.engines.vllm.engine import NAMES as VLLM
from raylane.deployments.slo import SloLimits

NAMES = {"ttft": "vllm:time_to_first_token_seconds", "tpot": "vllm:request_time_per_output_token_seconds"}
LIMITS = SloLimits(ttft_s=1.0, ttft_s_per_token=0.0, tpot_s=0.06)


def page(name: str, counts: dict[str, int], engine: int = 0) -> str:
    label = f'engine="{engine}",model_name="m"'
    return "".join(f'{name}_bucket{{{label},le="{bound}"}} {count}\n' for bound, count in counts.items())


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        pytest.param(1.0, 4, id="a limit on a bound counts what is above it"),
        pytest.param(1.75, 3, id="within a bucket a straight line"),
        pytest.param(2.5, 2, id="the last finite bound"),
        pytest.param(9.0, 2, id="beyond it all of the last bucket"),
        pytest.param(0.0, 10, id="nothing is allowed"),
    ],
)
def test_above(limit: float, expected: float) -> None:
    assert above({1.0: 6, 2.5: 8, float("inf"): 10}, limit) == pytest.approx(expected)


def test_the_larger_of_late_and_slow_counts() -> None:
    text = page(NAMES["ttft"], {"1.0": 7, "+Inf": 10}) + page(NAMES["tpot"], {"0.05": 2, "0.075": 7, "+Inf": 10})
    assert missed_total(text, NAMES, LIMITS, None) == pytest.approx(10 - 2 - 0.4 * 5)


def test_engines_of_one_server_are_added_up() -> None:
    text = page(NAMES["ttft"], {"1.0": 7, "+Inf": 10}) + page(NAMES["ttft"], {"1.0": 1, "+Inf": 3}, engine=1)
    assert missed_total(text, NAMES, LIMITS, None) == 5


def test_long_prompts_may_take_longer() -> None:
    text = page(NAMES["ttft"], {"1.0": 4, "2.5": 8, "+Inf": 10})
    limits = SloLimits(1.0, 0.001, 0.06)
    assert missed_total(text, NAMES, limits, prompt_tokens_total=15_000) == 2
    assert missed_total(text, NAMES, limits, prompt_tokens_total=0) == 6


def test_an_engine_without_histograms_tells_nothing() -> None:
    assert missed_total("vllm:num_requests_running 3\n", NAMES, LIMITS, 100) is None
    assert read_page(page(NAMES["ttft"], {"1.0": 7, "+Inf": 10}), VLLM).missed_total is None
    assert read_page(page(NAMES["ttft"], {"1.0": 7, "+Inf": 10}), VLLM, LIMITS).missed_total == 3
