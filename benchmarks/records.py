"""One request: raw as the client kept it, and read into the row of requests.parquet. Pure."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raylane.benchmarks.sse import RawBody, read_stream
from raylane.cluster.redact import redacted

_ERROR_TEXT_CHARS = 300


@dataclass(frozen=True, slots=True)
class RawReply:
    """What one request brought, unparsed. Times are seconds on the run's clock; `error` is a transport failure."""

    t_sched_s: float
    t_send_s: float
    t_end_s: float
    http_status: int | None
    error: str | None
    input_tokens: int
    output_tokens: int
    body: RawBody


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as measured. Times are seconds on the run's clock; None means that it did not happen or was not told.

    A request is completed when `error` is None: status 200, a token, a finish reason that is a success, no error event,
    not cut.
    `prompt_tokens` and `completion_tokens` are the endpoint's own counts, `asked_*` are the plan's.
    """

    case: str
    stream: str
    model: str
    t_sched_s: float
    t_send_s: float
    t_end_s: float
    asked_input_tokens: int
    asked_output_tokens: int
    http_status: int | None
    error: str | None
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    content_times_s: Sequence[float]

    @property
    def completed(self) -> bool:
        """Whether the whole answer came."""
        return self.error is None

    @property
    def t_first_s(self) -> float | None:
        """When the first content came."""
        return self.content_times_s[0] if self.content_times_s else None

    @property
    def t_last_s(self) -> float | None:
        """When the last content came (usage and [DONE] do not count)."""
        return self.content_times_s[-1] if self.content_times_s else None

    @property
    def input_tokens(self) -> int:
        """Prompt length: as the endpoint counted it, else as asked."""
        return self.asked_input_tokens if self.prompt_tokens is None else self.prompt_tokens


def read_reply(reply: RawReply, case: str, stream: str, model: str, secrets: Iterable[str] = ()) -> RequestRecord:
    """Parse a raw reply. A transport failure or a status other than 200 comes before what the body says.

    Error texts come without secrets: an endpoint may repeat the key that it refuses.
    """
    error, facts = reply.error, None
    if error is None and reply.http_status != 200:
        text = reply.body.data[:_ERROR_TEXT_CHARS].decode(errors="replace")
        error = f"HTTP {reply.http_status}: {text}".rstrip(": ")
    if reply.http_status == 200:
        facts = read_stream(reply.body)
        error = error or facts.error
    return RequestRecord(
        case=case,
        stream=stream,
        model=model,
        t_sched_s=reply.t_sched_s,
        t_send_s=reply.t_send_s,
        t_end_s=reply.t_end_s,
        asked_input_tokens=reply.input_tokens,
        asked_output_tokens=reply.output_tokens,
        http_status=reply.http_status,
        error=None if error is None else redacted(error, secrets),
        finish=facts.finish if facts else None,
        prompt_tokens=facts.prompt_tokens if facts else None,
        completion_tokens=facts.output_tokens if facts else None,
        content_times_s=facts.content_times_s if facts else array("d"),
    )
