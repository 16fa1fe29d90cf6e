"""From request records to the figures of one case. Pure: records and a window in, results out.

Latencies and attainment cover the requests due inside the window, however late they came back. Rates (tokens, requests,
goodput) count what came back inside the window, whenever it was sent, so neither warm-up nor drain flatters them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from raylane.benchmarks.records import RequestRecord
from raylane.benchmarks.results import Attainment, CaseResult, Energy, StreamResult, Summary
from raylane.benchmarks.stats import summarize, wilson_interval
from raylane.deployments.config import Slo

MAX_DISPATCH_LAG_P95_MS = 200.0
MAX_CLIENT_CPU_SHARE = 0.80
_ERRORS_SHOWN = 10


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


def tpot_ms(record: RequestRecord) -> float | None:
    """(last - first content) / (output tokens - 1); None for one token or when the endpoint sent no usage."""
    tokens = record.completion_tokens
    if tokens is None or tokens < 2 or record.t_first_s is None or record.t_last_s is None:
        return None
    return (record.t_last_s - record.t_first_s) * 1e3 / (tokens - 1)


def dispatch_lag_ms(record: RequestRecord) -> float:
    """Send - schedule."""
    return (record.t_send_s - record.t_sched_s) * 1e3


def gaps_ms(record: RequestRecord) -> list[float]:
    """Times between one content chunk and the next."""
    times = record.content_times_s
    return [(later - earlier) * 1e3 for earlier, later in pairwise(times)]


def is_good(record: RequestRecord, slo: Slo) -> bool:
    """Completed, TTFT <= ttft_ms + ttft_ms_per_input_token x input tokens, TPOT <= tpot_ms.

    A one-token answer has no TPOT to miss. An answer of unknown length cannot be shown to be good, so it is not.
    """
    first_ms, each_ms = ttft_ms(record), tpot_ms(record)
    if not record.completed or first_ms is None or record.completion_tokens is None:
        return False
    in_time = first_ms <= slo.ttft_ms + slo.ttft_ms_per_input_token * record.input_tokens
    return in_time and (each_ms is None or each_ms <= slo.tpot_ms)


def attainment(records: Sequence[RequestRecord], slo: Slo) -> Attainment:
    """Good / attempted; errors, rejections and cut streams are attempts that missed."""
    good = sum(is_good(record, slo) for record in records)
    low, high = wilson_interval(good, len(records))
    share = good / len(records) if records else None
    return Attainment(slo=slo, attempted=len(records), good=good, share=share, low=low, high=high)


def output_tokens_in(record: RequestRecord, window: Window) -> float:
    """Output tokens of a completed request that came inside the window: its tokens spread evenly over its chunks."""
    if not record.completed or record.completion_tokens is None:
        return 0.0
    inside = sum(window.holds(t_s) for t_s in record.content_times_s)
    return record.completion_tokens * inside / len(record.content_times_s)


def stream_result(records: Sequence[RequestRecord], plan: StreamPlan, window: Window, seed: int) -> StreamResult:
    """All figures of one stream. `records` are the stream's own, warm-up and drain included."""
    due = [record for record in records if window.holds(record.t_sched_s)]
    done = [record for record in due if record.completed]
    came = [record for record in records if record.completed and window.holds(record.t_last_s)]
    prefilled = [record for record in records if record.completed and window.holds(record.t_first_s)]
    slo = plan.slo
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
        output_tokens_per_s=sum(output_tokens_in(record, window) for record in records) / window.length_s,
        input_tokens_per_s=sum(record.input_tokens for record in prefilled) / window.length_s,
        goodput_rps=None if slo is None else sum(is_good(record, slo) for record in came) / window.length_s,
        attainment=None if slo is None else attainment(due, slo),
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
    reasons = (*doubts(facts), *(doubt for stream in streams for doubt in stream_doubts(stream, by_label)))
    return CaseResult(
        case=facts.case,
        complete=facts.complete,
        valid=not reasons,
        reasons=reasons,
        window_start_s=facts.window.start_s,
        window_s=facts.window.length_s,
        client_cpu_share=facts.client_cpu_share,
        output_tokens_per_s=sum(stream.output_tokens_per_s for stream in streams),
        streams=streams,
        energy=energy,
    )


def doubts(facts: CaseFacts) -> list[str]:
    """Why a whole case is invalid."""
    found = []
    if not facts.complete:
        found.append("the case was interrupted")
    if facts.warmup_timed_out:
        found.append("the warm-up did not finish in time, so the window may have begun before steady state")
    if facts.client_cpu_share is not None and facts.client_cpu_share > MAX_CLIENT_CPU_SHARE:
        found.append(
            f"the client used {facts.client_cpu_share:.0%} of a core (limit {MAX_CLIENT_CPU_SHARE:.0%}): "
            "it may have been the bottleneck"
        )
    return found


def stream_doubts(stream: StreamResult, records: dict[str, list[RequestRecord]]) -> list[str]:
    """Why one stream makes its case invalid: a late client (coordinated omission), no requests, no usage."""
    found = []
    lag = stream.dispatch_lag_ms
    if lag is not None and lag.p95.value > MAX_DISPATCH_LAG_P95_MS:
        found.append(
            f"{stream.stream}: requests left {lag.p95.value:.0f} ms late (p95, limit {MAX_DISPATCH_LAG_P95_MS:.0f} ms)"
        )
    if stream.attempted == 0:
        found.append(f"{stream.stream}: no request was due in the window")
    silent = sum(record.completed and record.completion_tokens is None for record in records[stream.stream])
    if silent:
        found.append(f"{stream.stream}: {silent} replies without usage; their tokens are not counted")
    return found


def _errors(records: Iterable[RequestRecord]) -> dict[str, int]:
    return dict(Counter(record.error for record in records if record.error is not None).most_common(_ERRORS_SHOWN))


def _summary(values: Iterable[float | None], seed: int) -> Summary | None:
    return summarize(np.array([value for value in values if value is not None]), seed)
