"""How many requests missed their SLO, from an engine's latency histograms. Pure.

Engines count first-token times and times per output token in buckets (Prometheus histograms, cumulative), not request
by request. What lies above the SLO's limit is read off them, by a straight line within the bucket the limit falls
into. A request can be late and slow; the larger of both counts is taken, so the figure is rather too low.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

BUCKET = re.compile(r'^([a-zA-Z_:][\w:]*)_bucket\{[^}]*\ble="([^"]+)"[^}]*\} +(\S+)', re.MULTILINE)


@dataclass(frozen=True)
class Limits:
    """An SLO in seconds: first token within `ttft_s` + `ttft_s_per_token` x prompt tokens, then `tpot_s` a token."""

    ttft_s: float
    ttft_s_per_token: float
    tpot_s: float


def missed_total(
    metrics_text: str, names: Mapping[str, str], limits: Limits, prompt_tokens_total: float | None
) -> float | None:
    """Requests that were late or slow since the engine's start; None where it has no such histograms.

    The allowance for prompt tokens is that of the mean prompt. `names` gives the histograms as "ttft" and "tpot".
    """
    buckets = _buckets(metrics_text, {names.get("ttft", ""), names.get("tpot", "")} - {""})
    ttft, tpot = buckets.get(names.get("ttft", "")), buckets.get(names.get("tpot", ""))
    if not ttft and not tpot:
        return None
    late = 0.0
    if ttft:
        requests = max(ttft.values())
        prompt = (prompt_tokens_total or 0.0) / requests if requests else 0.0
        late = above(ttft, limits.ttft_s + limits.ttft_s_per_token * prompt)
    return max(late, above(tpot, limits.tpot_s) if tpot else 0.0)


def above(buckets: Mapping[float, float], limit: float) -> float:
    """Observations larger than the limit. `buckets`: upper bound -> observations up to it, infinity among them."""
    under, lower_s = 0.0, 0.0
    for bound_s, count in sorted(buckets.items()):
        if bound_s >= limit:
            part = (limit - lower_s) / (bound_s - lower_s) if bound_s != float("inf") else 0.0
            return max(buckets.values()) - under - part * (count - under)
        under, lower_s = count, bound_s
    return 0.0


def _buckets(metrics_text: str, wanted: set[str]) -> dict[str, dict[float, float]]:
    """Cumulative counts by bound; samples that differ in other labels are added up."""
    found: dict[str, dict[float, float]] = {}
    for name, bound, count in BUCKET.findall(metrics_text):
        if name in wanted:
            counts = found.setdefault(name, {})
            counts[float(bound)] = counts.get(float(bound), 0.0) + float(count)
    return found
