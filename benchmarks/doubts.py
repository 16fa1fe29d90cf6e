"""Why figures may not be trusted (reasons against a case), and what to know of those that may (notes). Pure."""

from typing import TYPE_CHECKING

from raylane.benchmarks.records import RequestRecord
from raylane.benchmarks.results import StreamResult

if TYPE_CHECKING:
    from raylane.benchmarks.metrics import CaseFacts

MAX_DISPATCH_LAG_P95_MS = 200.0
MAX_CLIENT_CPU_SHARE = 0.80
MAX_ONE_PIECE_SHARE = 0.05  # a client that was held up for a moment reads a short reply at once
BURST_TOKENS = 3.0  # what speculation seldom exceeds
SHORT_SHARE = 0.9


def case_doubts(facts: "CaseFacts") -> list[str]:
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
    """Why one stream makes its case invalid: late requests (coordinated omission), none at all, no usage, no stream."""
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
    if stream.in_one_piece > MAX_ONE_PIECE_SHARE * stream.completed:
        found.append(_one_piece(stream))
    return found


def _one_piece(stream: StreamResult) -> str:
    told = f"{stream.in_one_piece} of {stream.completed} replies came in one piece (does a proxy hold them back?)"
    return f"{stream.stream}: {told}, so their TPOT is unknown and they miss any SLO"


def stream_notes(stream: StreamResult) -> list[str]:
    """What a reader should know of one stream's figures, though they may be right."""
    found = []
    each = stream.tokens_per_arrival
    if each is not None and each >= BURST_TOKENS and stream.in_one_piece < stream.completed:
        found.append(
            f"{stream.stream}: tokens came about {each:.0f} at once (a proxy, or how the endpoint streams): "
            "TPOT may be too low, and ITL shows the bursts"
        )
    if 0 < stream.in_one_piece <= MAX_ONE_PIECE_SHARE * stream.completed:
        found.append(_one_piece(stream))
    if stream.short:
        found.append(
            f"{stream.stream}: {stream.short} of {stream.completed} replies have less than {SHORT_SHARE:.0%} of the "
            "tokens asked for, though ignore_eos was sent"
        )
    return found
