"""What is read off an engine's metrics page, whatever stands on it: a number, or None where nothing can be known."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylane.deployments.engines.load import EngineLoad, read_page
from raylane.deployments.engines.misses import Limits, above
from raylane.deployments.engines.samples import buckets, number, read_samples
from raylane.deployments.engines.trtllm.load import read_iterations
from raylane.deployments.engines.vllm.engine import NAMES

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
LIMITS = Limits(ttft_s=1.0, ttft_s_per_token=0.0, tpot_s=0.06)
NOT_NUMBERS = """\
vllm:num_requests_running{engine="0"} NaN
vllm:num_requests_waiting{engine="0"} +Inf
vllm:kv_cache_usage_perc{engine="0"} NaN
vllm:prompt_tokens_total{engine="0"} 12.0
vllm:generation_tokens_total{engine="0"} NaN
"""
TWO_ENGINES = """\
vllm:num_requests_running{engine="0"} 2
vllm:num_requests_running{engine="1"} 3
vllm:num_requests_waiting{engine="0"} 0
vllm:num_requests_waiting{engine="1"} 1
vllm:kv_cache_usage_perc{engine="0"} 0.75
vllm:kv_cache_usage_perc{engine="1"} 0.5
"""
HTML = "<html><body>vllm:num_requests_running was not found: <b>502</b> Bad Gateway 7</body></html>"
RUNNING = "vllm:num_requests_running"


@pytest.mark.parametrize(
    ("page", "load"),
    [
        pytest.param(NOT_NUMBERS, EngineLoad(prompt_tokens_total=12.0), id="NaN and infinity"),
        pytest.param(TWO_ENGINES, EngineLoad(waiting=1, running=5, kv_use=0.625), id="counts add up, shares do not"),
        pytest.param(
            TWO_ENGINES.replace(" 2\n", " NaN\n").replace("0.5", "NaN"), EngineLoad(waiting=1), id="one of two"
        ),
        pytest.param(f"{RUNNING} -1", EngineLoad(), id="negative"),
        pytest.param(f"{RUNNING} 1e309", EngineLoad(), id="beyond every float"),
        pytest.param(f"{RUNNING} 1e308\n" * 2, EngineLoad(), id="a sum beyond every float"),
        pytest.param(f"{RUNNING} 1.2e1", EngineLoad(running=12), id="an exponent"),
        pytest.param(f'{RUNNING}{{a="}} 9"}} 4', EngineLoad(running=4), id="a brace in a label"),
        pytest.param(f'{RUNNING}{{a="\\"}} 9\\\\"}} 4', EngineLoad(running=4), id="escaped quotes in a label"),
        pytest.param(f"{RUNNING}{{}} 4 1769000000000", EngineLoad(running=4), id="a time"),
        pytest.param(f'{RUNNING}{{a="1"}} 4 # {{b="c"}} 9 1.0\n# EOF\n', EngineLoad(running=4), id="OpenMetrics"),
        pytest.param(f"{RUNNING} 4\r\n{RUNNING} 1\r\n", EngineLoad(running=5), id="line ends of Windows"),
        pytest.param(f"{RUNNING}_by_reason 4\nx:{RUNNING} 5\n", EngineLoad(), id="longer names"),
        pytest.param(f'{RUNNING}{{engine="0"}} 4\n{RUNNING}{{engine="1', EngineLoad(), id="cut in a label"),
        pytest.param(f'{RUNNING}{{engine="0"}} 4\n{RUNNING}{{engine="1"}} ', EngineLoad(), id="cut before a value"),
        pytest.param(f"{TWO_ENGINES}{RUNNING}", EngineLoad(waiting=1, kv_use=0.625), id="cut after a name"),
        pytest.param(f"{RUNNING} 4_0", EngineLoad(), id="a number as Python alone writes it"),
        pytest.param(HTML, EngineLoad(), id="an error page in HTML"),
        pytest.param(f"{HTML}\n{RUNNING} was not found", EngineLoad(), id="a page of words"),
    ],
)
def test_a_page(page: str, load: EngineLoad) -> None:
    assert read_page(page, NAMES) == load


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("3", 3),
        ("3.0", 3),
        ("NaN", None),
        ("Infinity", None),
        ("-Infinity", None),
        ("-1", None),
        ("1" + "0" * 400, None),
        ("1" + "0" * 5000, None),
        ('"3"', None),
        ("true", None),
        ("null", None),
        ("[3]", None),
        ("{}", None),
    ],
)
def test_an_iteration_of_tensorrt_llm(value: str, read: int | None) -> None:
    page = f'[{{"numActiveRequests": {value}, "kvCacheStats": {{"usedNumBlocks": {value}, "maxNumBlocks": 4}}}}]'
    share = None if read is None else 0.75
    assert read_iterations(page) == EngineLoad(running=read, kv_use=share)


def test_iterations_nested_beyond_all_measure_are_unknown() -> None:
    assert read_iterations("[" * 200_000) == EngineLoad()


def histogram(*counts: str, name: str = NAMES.ttft) -> str:
    bounds = ("0.5", "1.0", "+Inf")
    return "".join(f'{name}_bucket{{le="{bound}"}} {count}\n' for bound, count in zip(bounds, counts, strict=False))


@pytest.mark.parametrize(
    ("page", "missed"),
    [
        pytest.param(histogram("1", "4", "10"), 6, id="all are numbers"),
        pytest.param(histogram("1", "NaN", "10"), None, id="NaN in the middle"),
        pytest.param(histogram("1", "4", "+Inf"), None, id="an infinite count"),
        pytest.param(histogram("1", "4"), None, id="cut before the last bucket"),
        pytest.param(histogram("1", "4", "10") + histogram("9", "12"), None, id="cut in the second engine's"),
        pytest.param(histogram("1", "4", "10") + histogram("1", "2", "NaN", name=NAMES.tpot), None, id="one of two"),
        pytest.param(histogram("1", "4", "10").replace("1.0", "one"), None, id="a bound that is no number"),
        pytest.param(histogram("1", "4", "10").replace("1.0", "NaN"), None, id="a bound that is NaN"),
        pytest.param(histogram("0", "0", "0"), 0, id="no request yet"),
    ],
)
def test_misses_of_a_page(page: str, missed: float | None) -> None:
    assert read_page(page, NAMES, LIMITS).missed_total == missed


def test_without_prompt_tokens_their_allowance_is_not_known() -> None:
    limits = Limits(ttft_s=1.0, ttft_s_per_token=0.001, tpot_s=0.06)
    page = histogram("1", "4", "10")
    assert read_page(page, NAMES, limits).missed_total is None
    assert read_page(f"{page}vllm:prompt_tokens_total NaN\n", NAMES, limits).missed_total is None
    assert read_page(f"{page}vllm:prompt_tokens_total 0\n", NAMES, limits).missed_total == 6


def test_a_first_bucket_up_to_nothing_has_no_width() -> None:
    assert above({0.0: 3.0, 1.0: 5.0, math.inf: 9.0}, 0.0) == 6.0


WORDS = st.sampled_from(
    [
        *(NAMES.waiting, NAMES.running, *NAMES.kv_use, NAMES.prompt_tokens_total, NAMES.output_tokens_total),
        *(NAMES.ttft, NAMES.tpot),
        f"{NAMES.ttft}_bucket",
        "{",
        "}",
        '"',
        "\\",
        'le="',
        "+Inf",
        "NaN",
        "1e400",
        " ",
        "\n",
        "#",
        "[",
    ]
)


@given(st.lists(WORDS | st.text(max_size=3), max_size=25).map("".join))
def test_no_page_raises_and_nothing_read_is_no_number(page: str) -> None:
    for load in (read_page(page, NAMES, LIMITS), read_iterations(page)):
        assert all(value is None or number(value) == value for value in vars(load).values())


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["kvCacheStats", "maxNumBlocks"]), inner)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(["numActiveRequests", "numQueuedRequests", "kvCacheStats"])


@given(st.lists(st.dictionaries(KEYS, JSON) | JSON, max_size=2))
def test_no_list_of_iterations_raises(iterations: list[Any]) -> None:
    load = read_iterations(json.dumps(iterations))
    assert all(value is None or number(value) == value for value in vars(load).values())


def test_only_the_lines_that_are_asked_for_are_read() -> None:
    page = (FIXTURES / "vllm_metrics.txt").read_text()
    read = read_samples(page, {RUNNING, "vllm:not_there"})
    assert list(read) == [RUNNING]
    assert buckets(read[RUNNING]) is None
