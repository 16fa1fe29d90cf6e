"""The benchmark plan: which requests go where, how fast, for how long, and what counts as good enough."""

from typing import Annotated, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from raylane.cluster.errors import UsageError
from raylane.cluster.strict import StrictModel
from raylane.deployments.slo import Slo

WARMUP_REQUESTS_PER_SLOT = 2
OPEN_LOOP_WARMUP_S = 5.0
OPEN_LOOP_WARMUP_MIN_REQUESTS = 10


class PoissonLoad(StrictModel):
    """Open loop with exponential gaps: independent users. Requests are sent whether or not earlier ones came back."""

    shape: Literal["poisson"] = "poisson"
    rate_rps: PositiveFloat
    """Mean requests per second."""


class ConstantLoad(StrictModel):
    """Open loop with equal gaps: a metronome. Kinder to queues than real users are."""

    shape: Literal["constant"] = "constant"
    rate_rps: PositiveFloat
    """Requests per second."""


class ConcurrencyLoad(StrictModel):
    """Closed loop: a fixed number of requests in flight. Slows down with the server, so it hides overload."""

    shape: Literal["concurrency"] = "concurrency"
    concurrency: PositiveInt
    """Requests in flight at any time."""


Load = Annotated[PoissonLoad | ConstantLoad | ConcurrencyLoad, Field(discriminator="shape")]


class TokenRange(StrictModel):
    """A token count drawn uniformly from min to max, both included."""

    min: PositiveInt
    max: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


TokenCount = PositiveInt | TokenRange


class TokenIds(StrictModel):
    """Range of token ids that prompts are drawn from, both ends included; must exist in the model's vocabulary."""

    min: NonNegativeInt = 10
    max: PositiveInt = 250
    """250 fits tokenizers that have one token per byte; raise it to use more of a large vocabulary."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Stream(StrictModel):
    """One kind of traffic to one model."""

    model: str
    """Model name as the endpoint knows it."""
    name: str | None = None
    """Row name in results; the model's name by default. Needed when two streams of a case use one model."""
    endpoint: Literal["completions", "chat"] = "completions"
    """completions sends token ids, so lengths are exact; chat sends words, so lengths are roughly one token a word."""
    load: Load
    input_tokens: TokenCount
    output_tokens: TokenCount
    slo: Slo | None = None
    """Without one, goodput and attainment are left blank."""
    ignore_eos: bool = True
    """Generate the full output length (vLLM's and SGLang's extension). Turn off for endpoints that refuse the key."""

    @property
    def label(self) -> str:
        """Name of this stream in records and tables."""
        return self.name or self.model


class Case(StrictModel):
    """Streams that run at the same time: one is a plain benchmark, several are a mixed run."""

    name: str = Field(min_length=1)
    duration_s: PositiveFloat | None = None
    """Length of the measured window."""
    requests: PositiveInt | None = None
    """Instead of a duration: the window ends when every stream has sent this many after its warm-up."""
    streams: tuple[Stream, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.duration_s is None) == (self.requests is None):
            raise ValueError(
                f"give duration_s or requests, one of them (got {self.duration_s} and {self.requests})",
            )
        labels = [stream.label for stream in self.streams]
        doubled = sorted({label for label in labels if labels.count(label) > 1})
        if doubled:
            raise ValueError(f"streams need names that differ: {', '.join(doubled)} appears more than once")
        for stream in self.streams:
            slots = stream.load.concurrency if isinstance(stream.load, ConcurrencyLoad) else 1
            if self.requests is not None and self.requests < 2 * slots:
                raise ValueError(
                    f"requests {self.requests} is under twice the concurrency {slots} of {stream.label}: "
                    "the window would be over before the first replies"
                )
        return self


class Warmup(StrictModel):
    """Requests that come back before the window opens. They are recorded, and left out of every figure."""

    requests: NonNegativeInt | None = None
    """Per stream. By default twice the concurrency, or what 5 s of an open loop bring (at least 10)."""
    timeout_s: PositiveFloat = 300.0
    """After this long the window opens anyway, and the case is marked invalid."""

    def requests_for(self, stream: Stream) -> int:
        """How many finished requests this stream waits for."""
        if self.requests is not None:
            return self.requests
        if isinstance(stream.load, ConcurrencyLoad):
            return WARMUP_REQUESTS_PER_SLOT * stream.load.concurrency
        return max(OPEN_LOOP_WARMUP_MIN_REQUESTS, round(OPEN_LOOP_WARMUP_S * stream.load.rate_rps))


class ModelCost(StrictModel):
    """What one model occupied during the run, and what an hour of one of its GPUs costs."""

    gpus_per_replica: PositiveInt = 1
    replicas: PositiveInt = 1
    price: str | None = None
    """A key of the price book, for example h200-nebius."""
    usd_per_gpu_hour: NonNegativeFloat | None = None
    """Instead of a key: a price of your own."""

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        if (self.price is None) == (self.usd_per_gpu_hour is None):
            raise ValueError(
                f"give price or usd_per_gpu_hour, one of them (got {self.price} and {self.usd_per_gpu_hour})"
            )
        return self

    @property
    def gpus(self) -> int:
        """GPUs paid for."""
        return self.gpus_per_replica * self.replicas


def _address(url: str) -> SplitResult:
    """The parts of an address with a port that is one. Python's own words would repeat parts of a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        told = str(error)
        if not told.startswith("Port out of range"):
            told = "is no address (a port is a number, an IPv6 host stands in square brackets)"
        raise ValueError(told) from None
    return parts


def _base_url(url: str) -> str:
    parts = _address(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("must begin with http:// or https://")
    if not parts.hostname:
        raise ValueError("must name a host")
    if parts.port == 0:
        raise ValueError("must have a port from 1 to 65535")
    if parts.query or parts.fragment:
        raise ValueError("must end before ? and #")
    path = parts.path.rstrip("/")
    if path.endswith("/completions"):
        raise ValueError("must be the endpoint's root: /v1/completions and /v1/chat/completions are added to it")
    return f"{parts.scheme}://{parts.netloc}{path.removesuffix('/v1').rstrip('/')}"


class BenchmarkPlan(StrictModel):
    """Everything one benchmark run does. Two runs of one plan send the same prompts on the same schedule."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Becomes part of the run folder's name."""
    seed: NonNegativeInt = 0
    base_url: Annotated[str, AfterValidator(_base_url)] = "http://127.0.0.1:8000"
    """Root of an OpenAI-compatible endpoint, also one below a path; /v1 and what follows it are added."""
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """NAME of the environment variable that holds the API key; the key itself never enters a plan or a run folder."""
    warmup: Warmup = Warmup()
    drain_timeout_s: PositiveFloat = 60.0
    """How long requests may finish after the window; those still running are cut and count as misses."""
    request_timeout_s: PositiveFloat = 600.0
    """Longest one request may take before it counts as failed."""
    prompt_token_ids: TokenIds = TokenIds()
    cases: tuple[Case, ...] = Field(min_length=1)
    cost: dict[str, ModelCost] = Field(default_factory=dict)
    """By model name; adds dollars to the report."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [case.name for case in self.cases]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"cases need names that differ: {', '.join(doubled)} appears more than once")
        models = {stream.model for case in self.cases for stream in case.streams}
        unknown = sorted(set(self.cost) - models)
        if unknown:
            raise ValueError(f"cost names {', '.join(unknown)}; the cases use {', '.join(sorted(models))}")
        return self


def refuse_credentials(url: str, origin: str) -> None:
    """Raise UsageError, without the address, when it holds a name, a password or a key. Plans of old runs may."""
    if "@" in url or "%40" in urlsplit(url).netloc:
        raise UsageError(
            f"{origin}: holds a name, a password or a key (what stands before @): give the key by api_key_env, "
            "the NAME of an environment variable that holds it"
        )
