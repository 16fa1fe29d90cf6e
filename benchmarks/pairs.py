"""The same load on two endpoints in turn, so that a drifting machine weighs on both: medians, ratios, their ranges."""

import asyncio
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from raylane.benchmarks.driver import run_plan
from raylane.benchmarks.plan import BenchmarkPlan, Case, ConcurrencyLoad, Stream, Warmup
from raylane.benchmarks.results import CaseResult
from raylane.benchmarks.run_folder import load_run

KEY_VARIABLE = "RAYLANE_PAIR_KEY"


@dataclass(frozen=True)
class Way:
    """One of the two ways to reach the engine."""

    name: str
    url: str
    api_key: str | None = None


@dataclass(frozen=True)
class Load:
    """One fixed concurrency."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    requests: int | None = None  # the window ends after this many,
    duration_s: float | None = None  # or after this long
    warmup_requests: int | None = None  # default: twice the concurrency


@dataclass(frozen=True)
class Figures:
    """What one run of one load came to."""

    ttft_p50_ms: float
    tpot_p50_ms: float
    output_tokens_per_s: float
    errors: int
    client_cpu_share: float | None
    valid: bool


@dataclass(frozen=True)
class Spread:
    """A median with the range of what it comes from."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Comparison:
    """All pairs of one load: `first` and `second` hold the figures of the two ways, pair by pair."""

    load: Load
    names: tuple[str, str]
    first: tuple[Figures, ...]
    second: tuple[Figures, ...]

    def of(self, side: int, figure: Callable[[Figures], float]) -> Spread:
        """Median and range of one figure of one way (0 or 1)."""
        return spread([figure(f) for f in (self.first, self.second)[side]])

    def added_ttft_ms(self) -> Spread:
        """Second way's median TTFT minus the first's, pair by pair."""
        pairs = zip(self.first, self.second, strict=True)
        return spread([second.ttft_p50_ms - first.ttft_p50_ms for first, second in pairs])

    def throughput_ratio(self) -> Spread:
        """Second way's output tokens per second over the first's, pair by pair."""
        pairs = zip(self.first, self.second, strict=True)
        return spread([second.output_tokens_per_s / first.output_tokens_per_s for first, second in pairs])

    def to_json(self) -> dict[str, object]:
        return {
            **asdict(self),
            "added_ttft_ms": asdict(self.added_ttft_ms()),
            "throughput_ratio": asdict(self.throughput_ratio()),
        }


def spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def compare(model: str, ways: tuple[Way, Way], load: Load, pairs: int, out_dir: Path) -> Comparison:
    """Run the load on both ways `pairs` times, the order turning round each time. Leaves a run folder each."""
    figures: Mapping[str, list[Figures]] = {way.name: [] for way in ways}
    for number in range(pairs):
        for way in ways if number % 2 == 0 else ways[::-1]:
            figures[way.name].append(_figures(model, way, load, number, out_dir))
    first, second = (tuple(figures[way.name]) for way in ways)
    return Comparison(load, (ways[0].name, ways[1].name), first, second)


def _figures(model: str, way: Way, load: Load, seed: int, out_dir: Path) -> Figures:
    plan = one_case_plan(model, way.url, load, way.name, seed)
    if way.api_key is not None:
        os.environ[KEY_VARIABLE] = way.api_key
        plan = plan.model_copy(update={"api_key_env": KEY_VARIABLE})
    run_dir = asyncio.run(run_plan(plan, out_dir))
    return _read(load_run(run_dir).summary.cases[0])


def one_case_plan(model: str, url: str, load: Load, name: str, seed: int) -> BenchmarkPlan:
    """A plan of one fixed concurrency on one model."""
    stream = Stream(
        model=model,
        load=ConcurrencyLoad(concurrency=load.concurrency),
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
    )
    case = Case(name=f"c{load.concurrency}", duration_s=load.duration_s, requests=load.requests, streams=(stream,))
    return BenchmarkPlan(
        name=f"{name}-c{load.concurrency}",
        seed=seed,
        base_url=url,
        warmup=Warmup(requests=load.warmup_requests),
        cases=(case,),
    )


def _read(case: CaseResult) -> Figures:
    stream = case.streams[0]
    if stream.ttft_ms is None or stream.tpot_ms is None or stream.output_tokens_per_s is None:
        raise ValueError(f"{case.case}: nothing came back that could be measured: {stream.errors or case.reasons}")
    return Figures(
        ttft_p50_ms=stream.ttft_ms.p50.value,
        tpot_p50_ms=stream.tpot_ms.p50.value,
        output_tokens_per_s=stream.output_tokens_per_s,
        errors=sum(stream.errors.values()),
        client_cpu_share=case.client_cpu_share,
        valid=case.valid,
    )
