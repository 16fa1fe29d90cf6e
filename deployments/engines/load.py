"""One reading of an engine's load, and how it is read off a Prometheus page. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from prometheus_client.samples import Sample

from raylane.deployments.engines.misses import missed_total
from raylane.deployments.engines.samples import added, mean, read_samples
from raylane.deployments.slo import SloLimits


@dataclass(frozen=True)
class EngineLoad:
    """One reading of an engine's counters. None: the engine does not report it, or what it reports is no number."""

    waiting: int | None = None
    running: int | None = None
    kv_use: float | None = None  # share of the KV cache in use, 0 to 1; of several engines the mean
    prompt_tokens_total: float | None = None
    output_tokens_total: float | None = None
    missed_total: float | None = None  # requests that missed the model's SLO, as far as the histograms tell


@dataclass(frozen=True)
class PageNames:
    """What a kind calls its figures on its Prometheus page."""

    waiting: str
    running: str
    kv_use: tuple[str, ...]  # the first that the page has is read: the name changed between versions
    prompt_tokens_total: str
    output_tokens_total: str
    ttft: str  # histogram of times to the first token, in seconds
    tpot: str  # histogram of times per output token, in seconds


def read_page(page: str, names: PageNames, limits: SloLimits | None = None) -> EngineLoad:
    """Pick the load out of a Prometheus text page, whatever is on it.

    Counts of several engines behind one server are added up; of their shares of KV cache the mean is taken. A field
    is None when the page lacks it or a sample of it is no number: a sum over some engines is not that of all.

    `limits` are those of the model's SLO; without them misses are not counted.
    """
    totals = (names.waiting, names.running, names.prompt_tokens_total, names.output_tokens_total)
    samples = read_samples(page, (*totals, *names.kv_use))
    prompt_tokens = added(samples.get(names.prompt_tokens_total))
    histograms = {"ttft": names.ttft, "tpot": names.tpot}
    return EngineLoad(
        waiting=whole(added(samples.get(names.waiting))),
        running=whole(added(samples.get(names.running))),
        kv_use=mean(_first(samples, names.kv_use)),
        prompt_tokens_total=prompt_tokens,
        output_tokens_total=added(samples.get(names.output_tokens_total)),
        missed_total=None if limits is None else missed_total(page, histograms, limits, prompt_tokens),
    )


def whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _first(samples: Mapping[str, Collection[Sample] | None], names: Collection[str]) -> Collection[Sample] | None:
    return next((samples[name] for name in names if name in samples), None)
