"""Prometheus metrics of the gateway, added up over its worker processes (prometheus-client's multiprocess mode)."""

import os

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class GatewayMetrics:
    """What one worker process counts. The label `model` is empty for models that do not exist."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._requests = Counter(
            "raylane_gateway_requests",
            "Requests by model and outcome (HTTP status, cut = engine died in the stream, cancelled = client left)",
            ("model", "outcome"),
            registry=registry,
        )
        self._retries = Counter(
            "raylane_gateway_retries", "Attempts that failed before the first byte", ("model",), registry=registry
        )
        self._first_byte = Histogram(
            "raylane_gateway_first_byte_seconds",
            "From the whole request read to the first byte of the reply's body",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self._duration = Histogram(
            "raylane_gateway_request_seconds",
            "From the whole request read to the end of the reply",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self._cold_starts = Counter(
            "raylane_gateway_cold_starts",
            "Times that requests began to wait for a model without a ready replica and one became ready",
            ("model",),
            registry=registry,
        )
        self._hold = Histogram(
            "raylane_gateway_hold_seconds",
            "How long a request waited for a replica to become ready, however that ended",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self._registry = registry

    def finished(self, model: str, outcome: str, seconds: float) -> None:
        self._requests.labels(model, outcome).inc()
        self._duration.labels(model).observe(seconds)

    def first_byte(self, model: str, seconds: float) -> None:
        self._first_byte.labels(model).observe(seconds)

    def retried(self, model: str) -> None:
        self._retries.labels(model).inc()

    def cold_started(self, model: str) -> None:
        self._cold_starts.labels(model).inc()

    def held(self, model: str, seconds: float) -> None:
        self._hold.labels(model).observe(seconds)

    def page(self) -> bytes:
        """The metrics of all worker processes of this gateway as Prometheus text."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        everyone = CollectorRegistry()
        multiprocess.MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        return generate_latest(everyone)
