"""From request records to the figures of one case. Pure: records and a window in, results out.

Latencies and attainment cover the requests due inside the window, however late they came back. Rates (tokens, requests,
goodput) count what came back inside the window, whenever it was sent, so neither warm-up nor drain flatters them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np

from raylane.benchmarks.declared import (
    REQUEST_METRICS,
    STREAM_METRICS,
    StreamRecords,
    Window,
    in_one_piece,
    tokens_per_arrival,
    tpot_ms,
    ttft_ms,
)
from raylane.benchmarks.doubts import SHORT_SHARE, case_doubts, stream_doubts, stream_notes
from raylane.benchmarks.records import RequestRecord
from raylane.benchmarks.results import Attainment, CaseResult, Energy, StreamResult
from raylane.benchmarks.stats import wilson_interval
from raylane.deployments.slo import Slo, judge

_ERRORS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What the metrics need to know of a stream."""

    label: str
    model: str
    slo: Slo | None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """How the case itself went."""

    case: str
    window: Window
    complete: bool
    warmup_timed_out: bool
    client_cpu_share: float | None


def is_good(record: RequestRecord, slo: Slo) -> bool:
    """Completed, TTFT <= ttft_ms + ttft_ms_per_input_token x input tokens, TPOT <= tpot_ms.

    A one-token answer has no TPOT to miss. What could not be measured (an answer of unknown length, the TPOT of a reply
    in one piece) cannot be shown to be good, so it is not.
    """
    first_ms, each_ms, tokens = ttft_ms(record), tpot_ms(record), record.completion_tokens
    if tokens == 1:
        each_ms = 0.0
    first_s, each_s = (nan if ms is None or tokens is None else ms / 1e3 for ms in (first_ms, each_ms))
    return judge(slo.limits(), record.completed, first_s, each_s, record.input_tokens).good


def attainment(records: Sequence[RequestRecord], slo: Slo) -> Attainment:
    """Good / attempted; errors, rejections and cut streams are attempts that missed."""
    good = sum(is_good(record, slo) for record in records)
    low, high = wilson_interval(good, len(records))
    share = good / len(records) if records else None
    return Attainment(slo=slo, attempted=len(records), good=good, share=share, low=low, high=high)


def is_short(record: RequestRecord) -> bool:
    """Whether an answer has less than 90 % of the tokens that were asked for."""
    return record.completion_tokens is not None and record.completion_tokens < SHORT_SHARE * record.asked_output_tokens


def stream_result(records: Sequence[RequestRecord], plan: StreamPlan, window: Window, seed: int) -> StreamResult:
    """All figures of one stream. `records` are the stream's own, warm-up and drain included."""
    slo = plan.slo
    parts = StreamRecords.of(records, window, None if slo is None else lambda record: is_good(record, slo))
    due, done = parts.due, parts.done
    per_arrival = [each for record in done if (each := tokens_per_arrival(record)) is not None]
    figures: dict[str, Any] = {metric.name: metric.summary(parts, seed) for metric in REQUEST_METRICS}
    figures |= {metric.name: metric.formula(parts) for metric in STREAM_METRICS}
    own = StreamResult.model_fields.keys()
    return StreamResult(
        stream=plan.label,
        model=plan.model,
        attempted=len(due),
        completed=len(done),
        errors=_errors(due),
        attainment=None if slo is None else attainment(due, slo),
        in_one_piece=sum(map(in_one_piece, done)),
        short=sum(map(is_short, done)) if plan.ignore_eos else 0,
        tokens_per_arrival=float(np.median(per_arrival)) if per_arrival else None,
        further={name: value for name, value in figures.items() if name not in own},
        **{name: value for name, value in figures.items() if name in own},
    )


def case_result(
    facts: CaseFacts,
    records: Sequence[RequestRecord],
    plans: Sequence[StreamPlan],
    energy: Energy | None,
    seed: int,
) -> CaseResult:
    """All figures of a case, with the reasons why they may not be trusted."""
    by_label = {plan.label: [record for record in records if record.stream == plan.label] for plan in plans}
    streams = tuple(stream_result(by_label[plan.label], plan, facts.window, seed) for plan in plans)
    reasons = (*case_doubts(facts), *(doubt for stream in streams for doubt in stream_doubts(stream, by_label)))
    rates = [stream.output_tokens_per_s for stream in streams]
    counted = [rate for rate in rates if rate is not None]
    return CaseResult(
        case=facts.case,
        complete=facts.complete,
        valid=not reasons,
        reasons=reasons,
        notes=tuple(note for stream in streams for note in stream_notes(stream)),
        window_start_s=facts.window.start_s,
        window_s=facts.window.length_s,
        client_cpu_share=facts.client_cpu_share,
        output_tokens_per_s=sum(counted) if len(counted) == len(rates) else None,
        streams=streams,
        energy=energy,
    )


def _errors(records: Iterable[RequestRecord]) -> dict[str, int]:
    return dict(Counter(record.error for record in records if record.error is not None).most_common(_ERRORS_SHOWN))
