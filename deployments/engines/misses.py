"""How many requests missed their SLO, from an engine's latency histograms. Pure.

Engines count first-token times and times per output token in buckets (Prometheus histograms, cumulative), not request
by request. What lies above the SLO's limit is read off them, by a straight line within the bucket the limit falls
into. A request can be late and slow; the larger of both counts is taken, so the figure is rather too low.
"""

import math
from collections.abc import Mapping

from raylane.deployments.engines.samples import buckets, read_samples
from raylane.deployments.slo import SloLimits


def missed_total(
    metrics_text: str, names: Mapping[str, str], limits: SloLimits, prompt_tokens_total: float | None
) -> float | None:
    """Requests that were late or slow since the engine's start; None where its histograms do not tell.

    The allowance for prompt tokens is that of the mean prompt. `names` gives the histograms as "ttft" and "tpot".
    """
    bars = {which: f"{names[which]}_bucket" for which in ("ttft", "tpot") if which in names}
    read = read_samples(metrics_text, bars.values())
    counts = {which: buckets(read[bar]) for which, bar in bars.items() if bar in read}
    if not counts or None in counts.values():
        return None
    late = _late(counts.get("ttft") or {}, limits, prompt_tokens_total)
    return None if late is None else max(late, above(counts.get("tpot") or {}, limits.tpot_s))


def _late(ttft: Mapping[float, float], limits: SloLimits, prompt_tokens_total: float | None) -> float | None:
    """Requests with a late first token; None where the allowance for their prompts is not known."""
    requests = max(ttft.values(), default=0.0)
    if not requests:
        return 0.0
    if prompt_tokens_total is None and limits.ttft_s_per_token:
        return None
    return above(ttft, limits.allowed_ttft_s((prompt_tokens_total or 0.0) / requests))


def above(buckets: Mapping[float, float], limit: float) -> float:
    """Observations larger than the limit. `buckets`: upper bound -> observations up to it, infinity among them."""
    under, lower_s = 0.0, 0.0
    for bound_s, count in sorted(buckets.items()):
        if bound_s >= limit:
            part = _part(limit, lower_s, bound_s)
            return max(buckets.values()) - under - part * (count - under)
        under, lower_s = count, bound_s
    return 0.0


def _part(limit: float, lower_s: float, upper_s: float) -> float:
    """How much of a bucket lies below the limit: of the last one nothing is known, a first one up to 0 is one point."""
    if upper_s == math.inf:
        return 0.0
    return (limit - lower_s) / (upper_s - lower_s) if upper_s > lower_s else 1.0
