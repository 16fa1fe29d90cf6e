"""The types of results.json: what a run came to. Every figure names its unit; None means not measured or too few."""

from typing import Literal

from raylane.cluster.strict import StrictModel
from raylane.deployments.slo import Slo


class Estimate(StrictModel):
    """A figure with its 95 % interval where one was computed."""

    value: float
    low: float | None
    high: float | None


class Summary(StrictModel):
    """Distribution of one quantity, in the unit of the field that holds it."""

    samples: int
    mean: float
    p50: Estimate
    p90: Estimate
    p95: Estimate
    p99: Estimate | None
    """None under 500 samples."""


class Attainment(StrictModel):
    """Share of attempted requests that met every part of the SLO, with its 95 % Wilson interval."""

    slo: Slo
    attempted: int
    good: int
    share: float | None
    low: float
    high: float


class StreamResult(StrictModel):
    """One stream of one case. Latencies cover requests due in the window, rates cover what came back inside it."""

    stream: str
    model: str
    attempted: int
    completed: int
    errors: dict[str, int]
    """Error text and how often it came, the most frequent first, at most ten."""
    ttft_ms: Summary | None
    """First content minus send."""
    ttft_from_schedule_ms: Summary | None
    """First content minus the time the load shape wanted the request out."""
    tpot_ms: Summary | None
    """(last content - first content) / (output tokens - 1), one value a request."""
    itl_ms: Summary | None
    """Gaps between arrivals of content, all requests together; no intervals, since the gaps of a request are alike."""
    e2e_ms: Summary | None
    """Last content minus send."""
    dispatch_lag_ms: Summary | None
    """Send minus schedule: how late the client itself was."""
    requests_per_s: float
    output_tokens_per_s: float | None
    """None when content came and the endpoint counted none of it."""
    input_tokens_per_s: float
    goodput_rps: float | None
    """Good requests that came back in the window, per second; None without an SLO."""
    attainment: Attainment | None
    in_one_piece: int = 0
    """Completed replies of several tokens that came at one moment: without TPOT and ITL, misses of an SLO."""
    short: int = 0
    """Completed replies with less than 90 % of the tokens asked for; counted when ignore_eos was sent."""
    tokens_per_arrival: float | None = None
    """Output tokens per moment at which content came, median of the replies; about 1 when each token is streamed."""


class Energy(StrictModel):
    """Energy of all sampled GPUs in the window."""

    gpus: int
    energy_j: float | None
    """None when a GPU does not report its power."""
    mean_power_w: float | None
    j_per_output_token: float | None
    valid: bool
    reasons: tuple[str, ...]


class CaseResult(StrictModel):
    """One case. `valid` is False when the figures describe the client or a cut run rather than the endpoint."""

    case: str
    complete: bool
    valid: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What to know of the figures, though they may be right: bursts, short answers."""
    window_start_s: float
    window_s: float
    client_cpu_share: float | None
    """CPU time of the client process / window; 1.0 is one core fully used."""
    output_tokens_per_s: float | None
    """All streams together; None when one of them is unknown."""
    streams: tuple[StreamResult, ...]
    energy: Energy | None


class RunResults(StrictModel):
    """results.json."""

    format_version: Literal[1] = 1
    run_id: str
    plan_name: str
    started_at: str
    """UTC, ISO 8601. All `_s` times of the run count from here."""
    complete: bool
    """False as long as cases are missing: the run is still going, was interrupted, or failed."""
    simulated: bool
    """True when models were served by a simulator: no figure of the run is a measurement of hardware."""
    cases: tuple[CaseResult, ...]


class CostFigure(StrictModel):
    """What one model cost in one case. Prices are handed in; nothing here looks one up."""

    case: str
    model: str
    gpus: int
    usd_per_gpu_hour: float
    price_source: str
    usd_per_hour: float
    usd_per_million_output_tokens: float | None
    usd_per_1k_good_requests: float | None
