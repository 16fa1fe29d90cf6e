from dataclasses import replace
from typing import Any

import pytest

from raylane.benchmarks import metrics
from raylane.benchmarks.metrics import CaseFacts, StreamPlan, Window, case_result
from raylane.benchmarks.records import RequestRecord
from raylane.benchmarks.results import CaseResult
from raylane.deployments.slo import Slo

SLO = Slo(ttft_ms=200, ttft_ms_per_input_token=1.0, tpot_ms=60, attainment=0.9)
WINDOW = Window(10.0, 20.0)
# Due at 10 s, sent at 10.01 s; content at 10.11, 10.16, 10.31 s: 5 tokens in 3 chunks.
RECORD = RequestRecord(
    case="c",
    stream="s",
    model="m",
    t_sched_s=10.0,
    t_send_s=10.01,
    t_end_s=10.32,
    asked_input_tokens=8,
    asked_output_tokens=5,
    http_status=200,
    error=None,
    finish="length",
    prompt_tokens=9,
    completion_tokens=5,
    content_times_s=(10.11, 10.16, 10.31),
)
FAILED = replace(
    RECORD, error="HTTP 503: busy", http_status=503, finish=None, completion_tokens=None, content_times_s=()
)


def moved(by_s: float, record: RequestRecord = RECORD) -> RequestRecord:
    return replace(
        record,
        t_sched_s=record.t_sched_s + by_s,
        t_send_s=record.t_send_s + by_s,
        t_end_s=record.t_end_s + by_s,
        content_times_s=tuple(t_s + by_s for t_s in record.content_times_s),
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(metrics.ttft_ms(RECORD), 100.0, id="TTFT counts from the send"),
        pytest.param(metrics.ttft_from_schedule_ms(RECORD), 110.0, id="TTFT from the schedule counts the lag too"),
        pytest.param(metrics.tpot_ms(RECORD), 50.0, id="TPOT is 200 ms over 4 further tokens"),
        pytest.param(metrics.e2e_ms(RECORD), 300.0, id="E2E ends with the last content"),
        pytest.param(metrics.dispatch_lag_ms(RECORD), 10.0, id="dispatch lag"),
    ],
)
def test_one_request_by_hand(value: float | None, expected: float) -> None:
    assert value == pytest.approx(expected)


def test_gaps_between_chunks() -> None:
    assert metrics.gaps_ms(RECORD) == pytest.approx([50.0, 150.0])


def test_absent_figures_are_none() -> None:
    assert (metrics.ttft_ms(FAILED), metrics.tpot_ms(FAILED), metrics.e2e_ms(FAILED)) == (None, None, None)
    assert metrics.tpot_ms(replace(RECORD, completion_tokens=1, content_times_s=(10.11,))) is None


@pytest.mark.parametrize(
    ("tokens", "times_s", "expected"),
    [
        pytest.param(64, [11.3] * 64, True, id="one write"),
        pytest.param(64, [11.3] * 40 + [11.3004] * 24, True, id="one write that the network cut"),
        pytest.param(2, [10.2, 10.2], True, id="two tokens at once"),
        pytest.param(16, [11.3], True, id="tokens without text"),
        pytest.param(1, [10.2], False, id="a single token"),
        pytest.param(None, [10.2, 10.2], False, id="of unknown length"),
        pytest.param(64, [10.3] * 16 + [10.6] * 16 + [10.9] * 16 + [11.3] * 16, False, id="bursts"),
        pytest.param(5, [11.3, 11.301, 11.302, 11.303, 11.304], False, id="a slow start, then quick tokens one by one"),
        pytest.param(64, [10.011] * 40 + [10.012] * 24, False, id="an endpoint as quick as the network"),
    ],
)
def test_replies_in_one_piece(tokens: int | None, times_s: list[float], expected: bool) -> None:
    record = replace(RECORD, completion_tokens=tokens, content_times_s=tuple(times_s))
    assert metrics.in_one_piece(record) is expected
    assert (metrics.tpot_ms(record) is None) is (expected or tokens in (None, 1))
    assert len(metrics.gaps_ms(record)) == (0 if expected else len(set(times_s)) - 1)
    assert 0.0 not in metrics.gaps_ms(record)


def test_a_few_replies_in_one_piece_are_a_note() -> None:
    whole = replace(RECORD, content_times_s=(10.11,))
    few, many = result_of(*[RECORD] * 20, whole), result_of(*[RECORD] * 10, whole)
    assert (few.valid, len(few.notes)) == (True, 1)
    assert (many.valid, len(many.notes)) == (False, 0)


def test_uncounted_tokens_have_no_rate_and_no_tokens_have_the_rate_0() -> None:
    uncounted = replace(RECORD, completion_tokens=None)
    assert result_of(uncounted).output_tokens_per_s is None
    assert result_of(FAILED).output_tokens_per_s == 0.0
    assert result_of(RECORD, uncounted).output_tokens_per_s == pytest.approx(0.5)  # and the case is not valid


@pytest.mark.parametrize(
    ("record", "slo", "good"),
    [
        pytest.param(RECORD, SLO, True, id="100 ms of 209, 50 ms of 60"),
        pytest.param(RECORD, SLO.model_copy(update={"ttft_ms": 91.0}), True, id="91 + 9 tokens x 1 ms just holds 100"),
        pytest.param(RECORD, SLO.model_copy(update={"ttft_ms": 90.5}), False, id="90.5 + 9 ms is too little"),
        pytest.param(RECORD, SLO.model_copy(update={"tpot_ms": 49.9}), False, id="tokens too slow"),
        pytest.param(FAILED, SLO, False, id="an error is a miss"),
        pytest.param(replace(RECORD, error="cut"), SLO, False, id="a cut stream is a miss"),
        pytest.param(
            replace(RECORD, completion_tokens=1, content_times_s=(10.11,)), SLO, True, id="one token has no TPOT"
        ),
        pytest.param(replace(RECORD, completion_tokens=None), SLO, False, id="unknown length cannot be shown good"),
        pytest.param(
            replace(RECORD, content_times_s=(10.11, 10.11, 10.11)),
            SLO,
            False,
            id="a TPOT that is unknown is no good one",
        ),
        pytest.param(replace(RECORD, prompt_tokens=None), SLO, True, id="prompt length as asked without usage"),
    ],
)
def test_good(record: RequestRecord, slo: Slo, good: bool) -> None:
    # 90.5 and 91 leave room for the rounding of 10.11 - 10.01.
    slack = slo.model_copy(update={"ttft_ms": slo.ttft_ms + 1e-6})
    assert metrics.is_good(record, slack) is good


def facts(**changes: Any) -> CaseFacts:
    base = CaseFacts("c", WINDOW, complete=True, warmup_timed_out=False, client_cpu_share=0.3)
    return replace(base, **changes)


def result_of(*records: RequestRecord, slo: Slo | None = SLO, **changes: Any) -> CaseResult:
    return case_result(facts(**changes), records, [StreamPlan("s", "m", slo)], None, seed=1)


def test_rates_and_attainment_of_a_small_case_by_hand() -> None:
    records = (
        moved(-1.0),  # warm-up: due and back before the window
        moved(-0.2),  # due before the window; content at 9.91, 9.96 and 10.11: a third of its 5 tokens inside
        moved(0.0),
        moved(5.0),
        moved(5.0, FAILED),
        moved(9.8),  # due inside; content at 19.91, 19.96 and 20.11: two thirds inside, finished in the drain
        moved(10.0),  # due in the drain
    )
    stream = result_of(*records).streams[0]
    assert (stream.attempted, stream.completed, stream.errors) == (4, 3, {"HTTP 503: busy": 1})
    assert stream.output_tokens_per_s == pytest.approx((5 / 3 + 5 + 5 + 10 / 3) / 10)
    assert stream.requests_per_s == pytest.approx(3 / 10)  # finished inside: moved by -0.2, 0 and 5
    assert stream.input_tokens_per_s == pytest.approx(3 * 9 / 10)  # first content inside: moved by 0, 5 and 9.8
    assert stream.goodput_rps == pytest.approx(3 / 10)
    assert stream.attainment is not None
    assert (stream.attainment.good, stream.attainment.attempted, stream.attainment.share) == (3, 4, 0.75)
    assert stream.ttft_ms is not None
    assert stream.ttft_ms.samples == 3
    assert stream.itl_ms is not None
    assert stream.itl_ms.samples == 6
    assert stream.itl_ms.p50.value == pytest.approx(100.0)


def test_without_slo_goodput_is_blank() -> None:
    stream = result_of(RECORD, slo=None).streams[0]
    assert (stream.goodput_rps, stream.attainment) == (None, None)


def late(by_s: float) -> RequestRecord:
    return replace(RECORD, t_sched_s=RECORD.t_send_s - by_s + 5, t_send_s=RECORD.t_send_s + 5)


@pytest.mark.parametrize(
    ("record", "changes", "reason"),
    [
        pytest.param(late(0.19), {}, None, id="190 ms late is valid"),
        pytest.param(late(0.21), {}, "210 ms late", id="210 ms late is coordinated omission"),
        pytest.param(RECORD, {"client_cpu_share": 0.80}, None, id="80 % of a core is valid"),
        pytest.param(RECORD, {"client_cpu_share": 0.81}, "81% of a core", id="81 % is not"),
        pytest.param(RECORD, {"complete": False}, "interrupted", id="a cut case"),
        pytest.param(RECORD, {"warmup_timed_out": True}, "warm-up", id="warm-up not finished"),
        pytest.param(moved(30), {}, "no request was due", id="nothing in the window"),
        pytest.param(replace(RECORD, completion_tokens=None), {}, "without usage", id="no usage"),
    ],
)
def test_validity(record: RequestRecord, changes: dict[str, Any], reason: str | None) -> None:
    result = result_of(record, **changes)
    assert result.valid is (reason is None)
    assert len(result.reasons) == (0 if reason is None else 1)
    assert reason is None or reason in result.reasons[0]


def test_streams_of_a_mixed_case_are_kept_apart() -> None:
    other = replace(RECORD, stream="other", model="n", completion_tokens=10)
    plans = [StreamPlan("s", "m", SLO), StreamPlan("other", "n", None)]
    result = case_result(facts(), [RECORD, other], plans, None, seed=1)
    assert [(stream.stream, stream.output_tokens_per_s) for stream in result.streams] == [("s", 0.5), ("other", 1.0)]
    assert result.output_tokens_per_s == 1.5
