"""The one judge of requests: limits, what could not be measured, and that everybody asks it."""

from math import nan

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raylane.benchmarks.declared import in_one_piece
from raylane.benchmarks.metrics import is_good
from raylane.benchmarks.records import RequestRecord
from raylane.deployments.engines.misses import above
from raylane.deployments.slo import Slo, SloLimits, judge, judge_all

SLO = Slo(ttft_ms=1000, ttft_ms_per_input_token=0.5, tpot_ms=50)
LIMITS = SLO.limits()
SECONDS = st.one_of(st.just(nan), st.floats(0.0, 5.0))


@pytest.mark.parametrize(
    ("completed", "ttft_s", "tpot_s", "input_tokens", "good"),
    [
        pytest.param(True, 1.25, 0.05, 500, True, id="at both limits"),
        pytest.param(True, 1.2501, 0.05, 500, False, id="first token late"),
        pytest.param(True, 1.2501, 0.05, 600, True, id="a longer prompt may take longer"),
        pytest.param(True, 0.1, 0.0501, 500, False, id="tokens slow"),
        pytest.param(False, 0.1, 0.01, 500, False, id="did not complete"),
        pytest.param(True, nan, 0.01, 500, False, id="first token not measured"),
        pytest.param(True, 0.1, nan, 500, False, id="time per token not measured"),
        pytest.param(True, 0.1, 0.0, 500, True, id="one token"),
    ],
)
def test_a_good_request(completed: bool, ttft_s: float, tpot_s: float, input_tokens: int, good: bool) -> None:
    assert judge(LIMITS, completed, ttft_s, tpot_s, input_tokens).good is good


@given(st.lists(st.tuples(st.booleans(), SECONDS, SECONDS, st.integers(0, 9000)), min_size=1, max_size=20))
def test_arrays_are_judged_as_each_request_alone(requests: list[tuple[bool, float, float, int]]) -> None:
    completed, ttft_s, tpot_s, tokens = (np.asarray(column) for column in zip(*requests, strict=True))
    together = judge_all(LIMITS, completed, ttft_s.astype(float), tpot_s.astype(float), tokens.astype(float))
    for index, request in enumerate(requests):
        alone = judge(LIMITS, *request)
        found = (together.late[index], together.slow[index], together.unproven[index], together.good[index])
        assert found == (alone.late, alone.slow, alone.unproven, alone.good)


@given(st.floats(0.0, 3.0), st.floats(0.001, 0.2), st.integers(1, 4000), st.integers(2, 100))
def test_a_benchmark_and_the_lab_judge_the_same_request_alike(
    ttft_s: float, each_s: float, inputs: int, outputs: int
) -> None:
    last_s = ttft_s + each_s * (outputs - 1)
    times_s = (*(ttft_s + each_s * number for number in range(outputs - 1)), last_s)
    record = RequestRecord(
        case="a",
        stream="b",
        model="c",
        t_sched_s=0.0,
        t_send_s=0.0,
        t_end_s=last_s,
        asked_input_tokens=inputs,
        asked_output_tokens=outputs,
        http_status=200,
        error=None,
        finish="length",
        prompt_tokens=inputs,
        completion_tokens=outputs,
        content_times_s=times_s,
    )
    measured = judge(LIMITS, True, ttft_s, (last_s - ttft_s) / (outputs - 1), inputs)
    assume(not in_one_piece(record))
    border = min(abs(ttft_s - LIMITS.allowed_ttft_s(inputs)), abs(each_s - LIMITS.tpot_s)) < 1e-9
    assert border or is_good(record, SLO) == measured.good


@given(st.floats(0.1, 3.0), st.integers(0, 4000))
def test_an_engines_histogram_is_held_to_the_same_limit(ttft_s: float, inputs: int) -> None:
    limits = SloLimits(ttft_s, 0.0005, 1.0)
    limit_s = limits.allowed_ttft_s(inputs)
    one_late = {limit_s: 3.0, limit_s * 2: 4.0, float("inf"): 4.0}
    assert above(one_late, limit_s) == 1.0
    assert [judge(limits, True, second, 0.0, inputs).late for second in (limit_s, limit_s * 1.001)] == [False, True]
