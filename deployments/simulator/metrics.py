"""vLLM's metric names over a simulated engine, in Prometheus' text format."""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from raylane.deployments.simulator.realtime import RealTimeEngine
from raylane.deployments.simulator.request import Outcome

# The buckets of vLLM 0.29 (vllm/v1/metrics/loggers.py), so that dashboards made for it read these.
TTFT_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
GAP_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
E2E_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)


class Histogram:
    """Counts per bucket, with many equal observations added at once."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """Buckets as Prometheus wants them, and the sum."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, map(float, self._bounds)), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets, self._sum


class EngineMetrics(Collector):
    """What the metrics endpoint says. Times are real seconds, so a sped-up engine shows what its clients see."""

    def __init__(self, engine: RealTimeEngine, model: str, speedup: float) -> None:
        self._engine = engine
        self._model = model
        self._speedup = speedup
        self._ttft, self._gap, self._latency = Histogram(TTFT_S), Histogram(GAP_S), Histogram(E2E_S)
        self._tpot = Histogram(GAP_S)
        self._finished = 0
        self.cancelled = 0
        engine.gaps = self._gap.observe
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """The page as Prometheus reads it."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The state at this moment."""
        for outcome in self._engine.take_finished():
            self._add(outcome)
        signals = self._engine.signals()
        core = self._engine.cache_totals()
        gauges = {
            "vllm:num_requests_running": float(signals.running),
            "vllm:num_requests_waiting": float(signals.waiting),
            "vllm:kv_cache_usage_perc": signals.kv_usage,
            "raylane:simulated": 1.0,
            "raylane:simulator_lag_seconds": self._engine.lag_s,
        }
        counters = {
            "vllm:prompt_tokens": signals.prompt_tokens_total,
            "vllm:generation_tokens": signals.generated_tokens_total,
            "vllm:num_preemptions": signals.preemptions_total,
            "vllm:prefix_cache_queries": core[0],
            "vllm:prefix_cache_hits": core[1],
            "raylane:simulated_gpu_busy_seconds": signals.busy_s_total / self._speedup,
        }
        for name, value in gauges.items():
            yield self._gauge(name, value)
        for name, total in counters.items():
            yield self._counter(name, total)
        yield self._successes()
        yield self._histogram("vllm:time_to_first_token_seconds", self._ttft)
        yield self._histogram("vllm:inter_token_latency_seconds", self._gap)
        yield self._histogram("vllm:request_time_per_output_token_seconds", self._tpot)
        yield self._histogram("vllm:e2e_request_latency_seconds", self._latency)

    def _add(self, outcome: Outcome) -> None:
        self._finished += 1
        self._ttft.observe(outcome.ttft_s / self._speedup)
        self._latency.observe(outcome.latency_s / self._speedup)
        if outcome.tpot_s is not None:
            self._tpot.observe(outcome.tpot_s / self._speedup)

    def _labels(self) -> tuple[list[str], list[str]]:
        return ["model_name", "engine"], [self._model, "0"]

    def _gauge(self, name: str, value: float) -> Metric:
        names, values = self._labels()
        family = GaugeMetricFamily(name, "Of the simulated engine.", labels=names)
        family.add_metric(values, value)
        return family

    def _counter(self, name: str, value: float) -> Metric:
        names, values = self._labels()
        family = CounterMetricFamily(name, "Of the simulated engine.", labels=names)
        family.add_metric(values, value)
        return family

    def _successes(self) -> Metric:
        names, values = self._labels()
        family = CounterMetricFamily("vllm:request_success", "Requests by outcome.", labels=[*names, "finished_reason"])
        family.add_metric([*values, "length"], self._finished)
        family.add_metric([*values, "abort"], self.cancelled)
        return family

    def _histogram(self, name: str, histogram: Histogram) -> Metric:
        names, values = self._labels()
        family = HistogramMetricFamily(name, "Of the simulated engine, in real seconds.", labels=names)
        buckets, total = histogram.cumulative()
        family.add_metric(values, buckets, total)
        return family
