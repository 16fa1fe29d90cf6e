"""Read an OpenAI event stream after the fact: bytes and the times they came in, out come times of content. Pure.

Network chunks and events need not line up: one chunk may hold several events and one event may span chunks. An event
counts as arrived when the chunk with its last byte has arrived.
"""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from raylane.deployments.slo import SUCCESSES

_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_ERROR_TEXT_CHARS = 300
_EDGE_BYTES = 1024
_DONE = b"[DONE]"
_SUCCESSES = frozenset(finish.encode() for finish in SUCCESSES)
_CONTENT_KEYS = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call")
_FINISH = re.compile(rb'"finish_reason": ?"([^"]*)"')
_FURTHER_CHOICE = re.compile(rb'"index": ?[1-9]')
_TOKENS = re.compile(rb'"completion_tokens": ?[1-9]')


@dataclass(frozen=True, slots=True)
class RawBody:
    """A reply's bytes, the offset where each network chunk ended and the time it came in."""

    data: bytes
    chunk_ends: Sequence[int]
    chunk_times_s: Sequence[float]


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What an event stream said. `error` is set unless every choice ended well and at least one token came.

    `output_tokens` is None when the endpoint did not count them, also when it counted 0 and content came.
    """

    content_times_s: Sequence[float]
    prompt_tokens: int | None
    output_tokens: int | None
    finish: str | None
    error: str | None


@dataclass(slots=True)
class _Answer:
    """What the events said so far. `finishes` has the finish reason of each choice that was seen."""

    times_s: "array[float]" = field(default_factory=lambda: array("d"))
    finishes: dict[str, str | None] = field(default_factory=dict)
    usage: Any = None
    may_hold_tokens: bool = False
    has_content: bool = False

    def take(self, choice: dict[str, Any], t_s: float) -> None:
        finish, index = choice.get("finish_reason"), str(choice.get("index", 0))
        self.finishes[index] = str(finish) if finish else self.finishes.get(index)
        said = _said(choice)
        self.may_hold_tokens |= bool(said)
        self.has_content |= any(said)
        # An answer without visible text is answered when it says that it is over.
        if any(said) or (finish and not self.times_s):
            self.times_s.append(t_s)

    def finish(self) -> str | None:
        """The finish reason, of several choices one that is no success if there is such a one."""
        return next((each for each in self.finishes.values() if each not in SUCCESSES), None) or next(
            (each for each in self.finishes.values() if each), None
        )


def read_stream(body: RawBody) -> StreamFacts:
    """Times of every chunk with content, usage and finish reason. Failures become `error`, never an exception.

    A stream may do without [DONE]: its finish reasons tell whether it is whole.
    """
    answer = _Answer()
    error: str | None = None
    for payload, t_s in _events(body):
        if payload == _DONE:
            continue
        try:
            event = json.loads(payload.decode())
        except (ValueError, RecursionError):
            error = error or f"event is not JSON: {_clip(payload)}"
            continue
        choices = _choices(event)
        if choices is None:
            error = error or f"error in the stream: {_clip(payload)}"
            continue
        answer.usage = event.get("usage") or answer.usage
        for choice in choices:
            answer.take(choice, t_s)
    output_tokens = _count(answer.usage, "completion_tokens")
    return StreamFacts(
        content_times_s=answer.times_s,
        prompt_tokens=_count(answer.usage, "prompt_tokens"),
        output_tokens=output_tokens or None,
        finish=answer.finish(),
        error=error or _not_whole(answer, body) or _without_token(answer, output_tokens),
    )


def has_failed(body: RawBody) -> bool:
    """Whether `read_stream` finds an error, in a few microseconds when the body begins and ends as it should.

    What is broken in the midst of a long reply that ends well is found when it is read.
    """
    head, tail = body.data[:_EDGE_BYTES], body.data[-_EDGE_BYTES:]
    finishes = _FINISH.findall(tail)
    as_usual = (
        len(finishes) == 1
        and finishes[0] in _SUCCESSES
        and head.startswith(b"data:")
        and tail.rstrip().endswith(b"\ndata: [DONE]")
        and b'"error"' not in tail
        and b"event:" not in tail
        and _TOKENS.search(tail) is not None
        and _FURTHER_CHOICE.search(head) is None
    )
    return not as_usual and read_stream(body).error is not None


def _not_whole(answer: _Answer, body: RawBody) -> str | None:
    """Why the stream is no whole answer: a choice without a finish reason, or with one that is no success."""
    if not answer.finishes or not all(answer.finishes.values()):
        times = answer.times_s
        seen = f"after {len(times)} content chunks" if times else f"without content: {_clip(body.data)}"
        return f"stream ended without a finish reason {seen}"
    finish = answer.finish()
    return None if finish in SUCCESSES else f"the answer ended by finish reason {_clip(str(finish).encode())!r}"


def _without_token(answer: _Answer, output_tokens: int | None) -> str | None:
    """An answer is none when the endpoint counted no token, or counted nothing and sent nothing that could be one."""
    if answer.has_content:
        return None
    empty = not answer.may_hold_tokens if output_tokens is None else output_tokens == 0
    return "an answer without a token" if empty else None


def _choices(event: Any) -> list[dict[str, Any]] | None:
    """The choices of an event; None when it reports an error or is not built like one."""
    if not isinstance(event, dict) or event.get("error") or event.get("object") == "error":
        return None
    choices = event.get("choices") or []
    built = isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)
    return choices if built else None


def _count(usage: Any, key: str) -> int | None:
    count = usage.get(key) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None


def _said(choice: dict[str, Any]) -> list[Any]:
    """What a choice says, also when it is empty: `text` of completions, `delta` of chat.

    Reasoning, tool calls and refusals are tokens like any other and count as content.
    """
    delta = choice.get("delta")
    delta = delta if isinstance(delta, dict) else {}
    said = [delta[key] for key in _CONTENT_KEYS if delta.get(key) is not None]
    return said if choice.get("text") is None else [choice["text"], *said]


def _events(body: RawBody) -> Iterator[tuple[bytes, float]]:
    """Payloads of `data:` fields with the arrival time of the event's last byte."""
    data, ends, times = body.data, body.chunk_ends, body.chunk_times_s
    start = chunk = 0
    for blank in _BLANK_LINE.finditer(data):
        while ends[chunk] < blank.end():
            chunk += 1
        payload = _payload(data[start : blank.start()])
        start = blank.end()
        if payload:
            yield payload, times[chunk]
    # Some servers leave out the blank line after the last event.
    if tail := _payload(data[start:].rstrip(b"\r\n")):
        yield tail, times[-1]


def _payload(block: bytes) -> bytes:
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = [line.removesuffix(b"\r") for line in block.split(b"\n")]
    payload = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    named = {line[6:].strip() for line in lines if line.startswith(b"event:")}
    return b'{"error": [%s]}' % (payload or b"null") if b"error" in named else payload


def _clip(text: bytes) -> str:
    return text[:_ERROR_TEXT_CHARS].decode(errors="replace")
