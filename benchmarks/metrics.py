"""From request records to the figures of one case. Pure: records and a window in, results out.

Latencies and attainment cover the requests due inside the window, however late they came back. Rates (tokens, requests,
goodput) count what came back inside the window, whenever it was sent, so neither warm-up nor drain flatters them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan

import numpy as np

from raylane.benchmarks.doubts import BURST_TOKENS, SHORT_SHARE, case_doubts, stream_doubts, stream_notes
from raylane.benchmarks.records import RequestRecord
from raylane.benchmarks.results import Attainment, CaseResult, Energy, StreamResult, Summary
from raylane.benchmarks.stats import summarize, wilson_interval
from raylane.deployments.slo import Slo, judge

_ERRORS_SHOWN = 10
_PIECES_WITHIN_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Window:
    """The measured part of a case: [start_s, end_s) on the run's clock."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Seconds."""
        return self.end_s - self.start_s

    def holds(self, t_s: float | None) -> bool:
        """Whether a moment lies inside; no moment lies nowhere."""
        return t_s is not None and self.start_s <= t_s < self.end_s


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


def ttft_ms(record: RequestRecord) -> float | None:
    """First content - send; None without content."""
    return None if record.t_first_s is None else (record.t_first_s - record.t_send_s) * 1e3


def ttft_from_schedule_ms(record: RequestRecord) -> float | None:
    """First content - schedule: includes what the client itself delayed."""
    return None if record.t_first_s is None else (record.t_first_s - record.t_sched_s) * 1e3


def e2e_ms(record: RequestRecord) -> float | None:
    """Last content - send."""
    return None if record.t_last_s is None else (record.t_last_s - record.t_send_s) * 1e3


def tokens_per_arrival(record: RequestRecord) -> float | None:
    """Output tokens / moments at which content came: about 1 when each token is streamed as it is made."""
    if record.completion_tokens is None or not record.content_times_s:
        return None
    return record.completion_tokens / len(set(record.content_times_s))


def in_one_piece(record: RequestRecord) -> bool:
    """Whether several tokens came at one moment, or in large pieces that followed each other at once.

    The network may cut what a proxy had held back: then the pieces lie within 1 % of the time that the reply took.
    """
    each, first_s, last_s = tokens_per_arrival(record), record.t_first_s, record.t_last_s
    if record.completion_tokens is None or record.completion_tokens < 2 or first_s is None or last_s is None:
        return False
    at_once = last_s - first_s < _PIECES_WITHIN_SHARE * (last_s - record.t_send_s)
    return first_s == last_s or (each is not None and each >= BURST_TOKENS and at_once)


def tpot_ms(record: RequestRecord) -> float | None:
    """(last - first content) / (output tokens - 1); None for one token, without usage, or for a reply in one piece."""
    tokens = record.completion_tokens
    if tokens is None or tokens < 2 or record.t_first_s is None or record.t_last_s is None or in_one_piece(record):
        return None
    return (record.t_last_s - record.t_first_s) * 1e3 / (tokens - 1)


def dispatch_lag_ms(record: RequestRecord) -> float:
    """Send - schedule."""
    return (record.t_send_s - record.t_sched_s) * 1e3


def gaps_ms(record: RequestRecord) -> list[float]:
    """Times between one arrival of content and the next; none for a reply in one piece.

    Events that were read at one moment are one arrival: nobody knows what lies between them, and it is not 0.
    """
    times = () if in_one_piece(record) else dict.fromkeys(record.content_times_s)
    return [(later - earlier) * 1e3 for earlier, later in pairwise(times)]


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


def output_tokens_in(record: RequestRecord, window: Window) -> float | None:
    """Output tokens of a completed request that came inside the window: its tokens spread evenly over its chunks.

    None when content came inside and the endpoint did not count it.
    """
    inside = sum(window.holds(t_s) for t_s in record.content_times_s) if record.completed else 0
    if inside == 0:
        return 0.0
    return None if record.completion_tokens is None else record.completion_tokens * inside / len(record.content_times_s)


def output_tokens_of(records: Iterable[RequestRecord], window: Window) -> float | None:
    """Output tokens that came inside the window; None when content came and none of it was counted."""
    found = [output_tokens_in(record, window) for record in records]
    counted = [tokens for tokens in found if tokens is not None]
    return None if None in found and not any(counted) else sum(counted)


def is_short(record: RequestRecord) -> bool:
    """Whether an answer has less than 90 % of the tokens that were asked for."""
    return record.completion_tokens is not None and record.completion_tokens < SHORT_SHARE * record.asked_output_tokens


def stream_result(records: Sequence[RequestRecord], plan: StreamPlan, window: Window, seed: int) -> StreamResult:
    """All figures of one stream. `records` are the stream's own, warm-up and drain included."""
    due = [record for record in records if window.holds(record.t_sched_s)]
    done = [record for record in due if record.completed]
    came = [record for record in records if record.completed and window.holds(record.t_last_s)]
    prefilled = [record for record in records if record.completed and window.holds(record.t_first_s)]
    slo, tokens = plan.slo, output_tokens_of(records, window)
    per_arrival = [each for record in done if (each := tokens_per_arrival(record)) is not None]
    return StreamResult(
        stream=plan.label,
        model=plan.model,
        attempted=len(due),
        completed=len(done),
        errors=_errors(due),
        ttft_ms=_summary(map(ttft_ms, done), seed),
        ttft_from_schedule_ms=_summary(map(ttft_from_schedule_ms, done), seed),
        tpot_ms=_summary(map(tpot_ms, done), seed),
        itl_ms=summarize([gap for record in done for gap in gaps_ms(record)], seed, intervals=False),
        e2e_ms=_summary(map(e2e_ms, done), seed),
        dispatch_lag_ms=_summary(map(dispatch_lag_ms, due), seed),
        requests_per_s=len(came) / window.length_s,
        output_tokens_per_s=None if tokens is None else tokens / window.length_s,
        input_tokens_per_s=sum(record.input_tokens for record in prefilled) / window.length_s,
        goodput_rps=None if slo is None else sum(is_good(record, slo) for record in came) / window.length_s,
        attainment=None if slo is None else attainment(due, slo),
        in_one_piece=sum(map(in_one_piece, done)),
        short=sum(map(is_short, done)) if plan.ignore_eos else 0,
        tokens_per_arrival=float(np.median(per_arrival)) if per_arrival else None,
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


def _summary(values: Iterable[float | None], seed: int) -> Summary | None:
    return summarize(np.array([value for value in values if value is not None]), seed)
