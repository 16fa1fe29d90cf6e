"""Every metric of the report, declared once: name, unit, heading, formula. Tables, CSV, frames and charts read these.

A new metric is one more entry below. results.json keeps what the first format did not have under `further`, so runs of
before stay readable: they have no such figure. Pure.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from raylane.benchmarks.doubts import BURST_TOKENS
from raylane.benchmarks.records import RequestRecord
from raylane.benchmarks.results import StreamResult, Summary
from raylane.benchmarks.stats import summarize

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
class StreamRecords:
    """The records of one stream, by what figures cover: due in the window, or come back inside it."""

    everything: Sequence[RequestRecord]
    due: Sequence[RequestRecord]
    done: Sequence[RequestRecord]
    """Due and completed."""
    came: Sequence[RequestRecord]
    prefilled: Sequence[RequestRecord]
    good: int | None
    """Of those that came, the ones within the SLO; None without an SLO."""
    window: Window

    @classmethod
    def of(
        cls, records: Sequence[RequestRecord], window: Window, is_good: Callable[[RequestRecord], bool] | None
    ) -> "StreamRecords":
        """Sorted into the parts; `records` are the stream's own, warm-up and drain included."""
        due = [record for record in records if window.holds(record.t_sched_s)]
        came = [record for record in records if record.completed and window.holds(record.t_last_s)]
        prefilled = [record for record in records if record.completed and window.holds(record.t_first_s)]
        done = [record for record in due if record.completed]
        good = None if is_good is None else sum(map(is_good, came))
        return cls(records, due, done, came, prefilled, good, window)


@dataclass(frozen=True, slots=True)
class RequestMetric:
    """A figure of each request, summed up as a distribution for its stream."""

    name: str
    heading: str
    unit: str
    formula: Callable[[RequestRecord], float | Sequence[float] | None]
    title: str | None = None
    """Of its chart, where the heading does not say it."""
    charted: bool = False
    """Whether the report has a chart of it."""
    of_all_due: bool = False
    """Also of requests that failed."""
    many: bool = False
    """Several values a request: no column in the frame, and no intervals, since those of a request are alike."""
    since_format: int = 1

    def values(self, records: Iterable[RequestRecord]) -> list[float]:
        """Of all requests that have one."""
        found: list[float] = []
        for record in records:
            value = self.formula(record)
            if value is not None:
                found.extend(value if isinstance(value, Sequence) else [value])
        return found

    def summary(self, parts: StreamRecords, seed: int) -> Summary | None:
        """None without values."""
        return summarize(self.values(parts.due if self.of_all_due else parts.done), seed, intervals=not self.many)

    def read(self, stream: StreamResult) -> Summary | None:
        """What a stream has of it; None also where the run is older than the metric."""
        value = stream.figure(self.name)
        return value if isinstance(value, Summary) else None


@dataclass(frozen=True, slots=True)
class StreamMetric:
    """A figure of a whole stream."""

    name: str
    heading: str
    unit: str
    formula: Callable[[StreamRecords], float | None]
    since_format: int = 1

    def read(self, stream: StreamResult) -> float | None:
        """What a stream has of it; None also where the run is older than the metric."""
        value = stream.figure(self.name)
        return None if isinstance(value, Summary) else value


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


def _requests_per_s(parts: StreamRecords) -> float:
    return len(parts.came) / parts.window.length_s


def _output_tokens_per_s(parts: StreamRecords) -> float | None:
    tokens = output_tokens_of(parts.everything, parts.window)
    return None if tokens is None else tokens / parts.window.length_s


def _input_tokens_per_s(parts: StreamRecords) -> float:
    return sum(record.input_tokens for record in parts.prefilled) / parts.window.length_s


def _goodput_rps(parts: StreamRecords) -> float | None:
    return None if parts.good is None else parts.good / parts.window.length_s


REQUEST_METRICS = (
    RequestMetric("ttft_ms", "TTFT", "ms", ttft_ms, title="Time to first token", charted=True),
    RequestMetric("ttft_from_schedule_ms", "TTFT from schedule", "ms", ttft_from_schedule_ms),
    RequestMetric("tpot_ms", "TPOT", "ms", tpot_ms, title="Time per output token", charted=True),
    RequestMetric("itl_ms", "ITL", "ms", gaps_ms, many=True),
    RequestMetric("e2e_ms", "E2E", "ms", e2e_ms, title="Whole request"),
    RequestMetric("dispatch_lag_ms", "dispatch lag", "ms", dispatch_lag_ms, of_all_due=True),
)
STREAM_METRICS = (
    StreamMetric("requests_per_s", "requests/s", "1/s", _requests_per_s),
    StreamMetric("output_tokens_per_s", "output tok/s", "tok/s", _output_tokens_per_s),
    StreamMetric("input_tokens_per_s", "input tok/s", "tok/s", _input_tokens_per_s),
    StreamMetric("goodput_rps", "goodput req/s", "req/s", _goodput_rps),
)
