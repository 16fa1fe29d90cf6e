"""A request's body, and `model` and `stream` out of it, without blocking the event loop for a large one."""

import asyncio
import codecs
import json
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientPayloadError, web
from aiohttp.http import HttpProcessingError

from raylane.deployments.gateway.errors import refuse

MAX_BODY_BYTES = 64 << 20
LARGE_BYTES = 256 << 10  # json.loads takes some 4 ms for it; larger bodies are looked through a slice at a time
SLICE_BYTES = 128 << 10
SLICE_STEPS = 1000
MOST_KEYS = 10_000  # on the uppermost level, where each costs some microseconds
LONGEST_VALUE_BYTES = 64 << 10  # of those that are read: names and booleans
WANTED = ("model", "stream")

_SPACE = re.compile(rb"[ \t\n\r]*+")
_SCALAR = re.compile(rb"[^\s,:\"{}\[\]]++")
_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # inside a string
_LEAF = rb'[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+"'
_FLAT = re.compile(rb"(?:%b|\[(?:%b)*+\]|\{(?:%b)*+\})*+" % ((_LEAF,) * 3), re.DOTALL)  # with the innermost brackets

Scan = Generator[None, None, int]  # yields between slices, returns a position


@dataclass(frozen=True)
class Wanted:
    """What the gateway needs to know of a body."""

    model: str
    streamed: bool


async def read_body(request: web.Request) -> bytearray | web.Response:
    """The whole body, or the answer to one that cannot be had. (aiohttp's read() copies it once more.)"""
    body = bytearray()
    announced = request.content_length or 0
    try:
        while announced <= MAX_BODY_BYTES and len(body) <= MAX_BODY_BYTES:
            part = await request.content.readany()
            if not part:
                return body
            body += part
    except (web.RequestPayloadError, ClientPayloadError, HttpProcessingError) as error:
        answer = refuse(400, f"the body cannot be read: {_first_line(error)}", "invalid_request_error", None)
        answer.force_close()
        return answer
    answer = refuse(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB", "invalid_request_error", None)
    answer.force_close()  # what is still to come is not read
    return answer


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")


async def wanted(body: bytes | bytearray) -> Wanted | None:
    """None unless the body is a JSON object with a string `model`.

    A large body is checked on its uppermost level alone; what is wrong further down is for the engine to say.
    """
    try:
        if len(body) <= LARGE_BYTES:
            content = json.loads(body)
        else:
            content = await _in_slices(body)
        model, streamed = content["model"], bool(content.get("stream"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Wanted(model, streamed) if isinstance(model, str) else None


async def _in_slices(body: bytes | bytearray) -> dict[str, Any]:
    encoding = json.detect_encoding(body[:4])
    if encoding not in ("utf-8", "utf-8-sig"):
        body = await _as_utf8(body, encoding)
    scan = top_level(body)
    while True:
        try:
            next(scan)
        except StopIteration as end:
            found: dict[str, Any] = end.value
            return found
        await asyncio.sleep(0)


async def _as_utf8(body: bytes | bytearray, encoding: str) -> bytearray:
    decoder, text = codecs.getincrementaldecoder(encoding)(), bytearray()
    for start in range(0, len(body), SLICE_BYTES):
        text += decoder.decode(body[start : start + SLICE_BYTES], final=start + SLICE_BYTES >= len(body)).encode()
        await asyncio.sleep(0)
    return text


def top_level(body: bytes | bytearray) -> Generator[None, None, dict[str, Any]]:
    """The values of WANTED in a JSON object in UTF-8, the last one of each as in json.loads; pauses between slices.

    Raises ValueError where the uppermost level is not that of an object.
    """
    found: dict[str, Any] = {}
    at = yield from _space(body, 3 if body.startswith(codecs.BOM_UTF8) else 0)
    at = _expect(body, at, b"{")
    at = yield from _space(body, at)
    steps = 0
    if body[at : at + 1] != b"}":
        while True:
            steps += 1
            if steps % SLICE_STEPS == 0:
                yield
            if steps > MOST_KEYS:
                raise ValueError(f"more than {MOST_KEYS} keys")
            key_end = yield from _string(body, at)
            key = _read(body, at, key_end)
            at = yield from _space(body, key_end)
            at = yield from _space(body, _expect(body, at, b":"))
            value_end = yield from _value(body, at)
            if key in WANTED:
                found[key] = _read(body, at, value_end)
            at = yield from _space(body, value_end)
            if body[at : at + 1] == b"}":
                break
            at = yield from _space(body, _expect(body, at, b","))
    at = yield from _space(body, at + 1)
    if at != len(body):
        raise ValueError(f"something after the object, at byte {at}")
    return found


def _expect(body: bytes | bytearray, at: int, what: bytes) -> int:
    if body[at : at + 1] != what:
        raise ValueError(f"no {what!r} at byte {at}")
    return at + 1


def _read(body: bytes | bytearray, start: int, end: int) -> Any:
    """The value as Python has it; None for one that is too long or structured to matter."""
    if end - start > LONGEST_VALUE_BYTES:
        return None
    if body[start : start + 1] in (b"{", b"["):
        return [...] if end - start > 2 else []  # only whether it is empty can matter
    return json.loads(body[start:end])


def _space(body: bytes | bytearray, at: int) -> Scan:
    while True:
        end = _SPACE.match(body, at, at + SLICE_BYTES).end()  # type: ignore[union-attr] # matches nothing, too
        if end < at + SLICE_BYTES:
            return end
        at = end
        yield


def _string(body: bytes | bytearray, at: int) -> Scan:
    """The end of the string that begins here."""
    at = _expect(body, at, b'"')
    while True:
        end = _TEXT.match(body, at, at + SLICE_BYTES).end()  # type: ignore[union-attr] # matches nothing, too
        if body[end : end + 1] == b'"':
            return end + 1
        if end == at:
            raise ValueError("a string without an end")
        at = end
        yield


def _value(body: bytes | bytearray, at: int) -> Scan:
    """The end of the value that begins here."""
    match body[at : at + 1]:
        case b'"':
            end = yield from _string(body, at)
        case b"{" | b"[":
            end = yield from _nested(body, at)
        case _:
            scalar = _SCALAR.match(body, at, at + LONGEST_VALUE_BYTES)
            if scalar is None:
                raise ValueError(f"no value at byte {at}")
            end = scalar.end()
    return end


def _nested(body: bytes | bytearray, at: int) -> Scan:
    """The end of the object or list that begins here."""
    depth, since, steps = 0, at, 0
    while True:
        steps += 1
        if at - since >= SLICE_BYTES or steps >= SLICE_STEPS:
            since, steps = at, 0
            yield
        match body[at : at + 1]:
            case b"{" | b"[":
                depth, at = depth + 1, at + 1
            case b"}" | b"]":
                depth, at = depth - 1, at + 1
                if depth == 0:
                    return at
            case b"":
                raise ValueError("a list or an object without an end")
            case b'"':
                at = yield from _string(body, at)
            case _:
                pass
        at = _FLAT.match(body, at, at + SLICE_BYTES).end()  # type: ignore[union-attr] # matches nothing, too
