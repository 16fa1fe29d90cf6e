"""Read an OpenAI event stream after the fact: bytes and the times they came in, out come times of content. Pure.

Network chunks and events need not line up: one chunk may hold several events and one event may span chunks. An event
counts as arrived when the chunk with its last byte has arrived.
"""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_ERROR_TEXT_CHARS = 300
_TAIL_BYTES = 2048
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class RawBody:
    """A reply's bytes, the offset where each network chunk ended and the time it came in."""

    data: bytes
    chunk_ends: Sequence[int]
    chunk_times_s: Sequence[float]


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What an event stream said. `error` is set for an error event and for a stream that broke off."""

    content_times_s: Sequence[float]
    prompt_tokens: int | None
    output_tokens: int | None
    finish: str | None
    error: str | None


def read_stream(body: RawBody) -> StreamFacts:
    """Times of every chunk with content, usage and finish reason. Failures become `error`, never an exception."""
    times = array("d")
    usage: Any = None
    finish: Any = None
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
        usage = event.get("usage") or usage
        for choice in choices:
            finish = choice.get("finish_reason") or finish
            # An answer without visible text is answered when it says that it is over.
            if _content(choice) or (choice.get("finish_reason") and not times):
                times.append(t_s)
    return StreamFacts(
        content_times_s=times,
        prompt_tokens=_count(usage, "prompt_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
        finish=None if finish is None else str(finish),
        error=error or (_broken(body, times) if finish is None else None),
    )


def has_failed(body: RawBody) -> bool:
    """Whether `read_stream` finds an error, in a microsecond or two when the body ends as it should."""
    tail = body.data[-_TAIL_BYTES:]
    finished = b'"finish_reason":"' in tail or b'"finish_reason": "' in tail
    if finished and b'"error"' not in tail and body.data.startswith(b"data:"):
        return False
    return read_stream(body).error is not None


def _choices(event: Any) -> list[dict[str, Any]] | None:
    """The choices of an event; None when it reports an error or is not built like one."""
    if not isinstance(event, dict) or event.get("error"):
        return None
    choices = event.get("choices") or []
    built = isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)
    return choices if built else None


def _count(usage: Any, key: str) -> int | None:
    count = usage.get(key) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None


def _broken(body: RawBody, times: Sequence[float]) -> str:
    seen = f"after {len(times)} content chunks" if times else f"without content: {_clip(body.data)}"
    return f"stream ended without a finish reason {seen}"


def _content(choice: dict[str, Any]) -> bool:
    """Whether a choice carries text: `text` of completions, `delta` of chat (reasoning counts as content)."""
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and bool(
        delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    )


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
    lines = (line.removesuffix(b"\r") for line in block.split(b"\n"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def _clip(text: bytes) -> str:
    return text[:_ERROR_TEXT_CHARS].decode(errors="replace")
