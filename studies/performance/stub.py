"""An engine without delay: speaks streamed /v1/completions and answers at once, for measuring what stands before it.

It runs in a child process on free loopback ports and ends with its parent.
"""

import asyncio
import json
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, cast

import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_EVENT = (
    'data: {"id":"cmpl-5a1f6d2c9b3e4a708f1d2c3b4a596877","object":"text_completion","created":1763683200,'
    '"model":"stub","choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":%s,"stop_reason":null}],'
    '"usage":null}\n\n'
)


@dataclass(frozen=True)
class StubPorts:
    """Where the stub listens, by the way it writes."""

    at_once: int  # a whole reply in one write
    apart: int  # one write for each event, each in its own turn of the event loop, as an engine does


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


@cache
def reply(tokens: int) -> tuple[bytes, ...]:
    """A reply of `tokens` content events of about 230 bytes: one write each, the head with the first, the end with the
    last (usage and [DONE]).
    """
    writes = [_chunk(_EVENT % "null")] * (tokens - 1) + [_chunk(_EVENT % '"length"')]
    usage = json.dumps({"prompt_tokens": 16, "completion_tokens": tokens})
    end = _chunk(f'data: {{"choices":[],"usage":{usage}}}\n\n') + _chunk("data: [DONE]\n\n") + b"0\r\n\r\n"
    writes[0] = _HEAD + writes[0]
    writes[-1] += end
    return tuple(writes)


class StubServer(asyncio.Protocol):
    """Answers every POST with `max_tokens` content events."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has transport classes of its own
        self._loop = asyncio.get_running_loop()
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer[:end])
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < total:
                return
            body, self._buffer = self._buffer[end + 4 : total], self._buffer[total:]
            self._answer(json.loads(body))

    def _answer(self, asked: dict[str, Any]) -> None:
        self._transport.write(b"".join(reply(asked["max_tokens"])))


class ApartServer(StubServer):
    """Writes one event each time round the event loop."""

    def _answer(self, asked: dict[str, Any]) -> None:
        self._write_next(iter(reply(asked["max_tokens"])))

    def _write_next(self, writes: Iterator[bytes]) -> None:
        write = next(writes, None)
        if write is not None and not self._transport.is_closing():
            self._transport.write(write)
            self._loop.call_soon(self._write_next, writes)


async def _serve(parent: Connection) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(kind, "127.0.0.1", 0) for kind in (StubServer, ApartServer)]
    parent_gone = asyncio.Event()
    loop.add_reader(parent.fileno(), parent_gone.set)
    parent.send([server.sockets[0].getsockname()[1] for server in servers])
    await parent_gone.wait()


def _run(parent: Connection) -> None:
    uvloop.run(_serve(parent))


@contextmanager
def stub_engine() -> Iterator[StubPorts]:
    """A stub process on the caller's cores, until the context ends."""
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(target=_run, args=(there,), daemon=True)
    process.start()
    there.close()  # else a stub that dies at its start would leave recv() waiting
    try:
        yield StubPorts(*here.recv())
    finally:
        here.close()
        process.join(2.0)
        process.kill()
        process.join()
