"""What is read off a run of the autoscaling part: requests across a moment, misses two ways, changes. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from math import nan
from statistics import median
from typing import Any

from raylane.deployments.engines.samples import buckets, read_samples
from raylane.deployments.engines.vllm.engine import NAMES
from raylane.deployments.slo import SloLimits, judge
from studies.h200.senders import Ended

BUCKETS_S = (0.5, 1.0, 2.5, 5.0, 7.5, 10.0)  # bounds of vLLM 0.26's histogram of first-token times


@dataclass(frozen=True)
class Answers:
    """A set of requests: how many failed, and how the others did."""

    requests: int
    failed: int
    ttft_p50_s: float | None
    ttft_max_s: float | None
    per_token_p50_s: float | None
    errors: tuple[str, ...] = ()


def answers(ended: Iterable[Ended]) -> dict[str, Any]:
    """The set in figures."""
    ended = list(ended)
    good = [one for one in ended if one.error is None]
    ttfts = [one.ttft_s for one in good if one.ttft_s is not None]
    per_token = [one.per_token_s for one in good if one.per_token_s is not None]
    found = Answers(
        requests=len(ended),
        failed=len(ended) - len(good),
        ttft_p50_s=median(ttfts) if ttfts else None,
        ttft_max_s=max(ttfts, default=None),
        per_token_p50_s=median(per_token) if per_token else None,
        errors=tuple(sorted({one.error for one in ended if one.error is not None}))[:5],
    )
    return asdict(found)


def open_across(ended: Iterable[Ended], at_s: float) -> list[Ended]:
    """Those that were open at that moment."""
    return [one for one in ended if one.sent_at_s < at_s < one.ended_at_s]


@dataclass(frozen=True)
class Missed:
    """Requests against an SLO as the client counts them. `either` are the misses; a failed request is one."""

    requests: int
    late: int
    slow: int
    either: int
    ttft_over: Mapping[str, int]


def _or_nan(seconds: float | None) -> float:
    return nan if seconds is None else seconds


def missed(ended: Iterable[Ended], limits: SloLimits, input_tokens: int) -> Missed:
    """Each request by itself."""
    ended = list(ended)
    found = [
        judge(limits, one.error is None, _or_nan(one.ttft_s), one.per_token_s or 0.0, input_tokens) for one in ended
    ]
    return Missed(
        requests=len(ended),
        late=sum(one.late for one in found),
        slow=sum(one.slow for one in found),
        either=sum(not one.good for one in found),
        ttft_over={f"{s:g}": sum((one.ttft_s or 0.0) > s for one in ended) for s in BUCKETS_S},
    )


def ttft_over(page: str) -> dict[str, float]:
    """Requests above each bound by an engine's metrics page: no line between bounds is drawn here."""
    name = f"{NAMES.ttft}_bucket"
    counts = buckets(read_samples(page, {name}).get(name)) or {}
    return {f"{s:g}": max(counts.values()) - counts[s] for s in BUCKETS_S if s in counts}


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was added to each count."""
    return {key: after[key] - before.get(key, 0.0) for key in after}


def first_change(log: Sequence[Mapping[str, Any]], to: int, since_s: float) -> Mapping[str, Any] | None:
    """The first change to that many replicas after a Unix time."""
    return next((one for one in log if one.get("to") == to != one.get("from") and unix_s(one["time"]) >= since_s), None)


def unix_s(time: str) -> float:
    """Unix time of an ISO 8601 one."""
    return datetime.fromisoformat(time).timestamp()
