"""How many streams a second the load client carries, on two shared cores, against a server that answers at once.

    python benchmarks/perf/client_rate.py [--seconds 4] [--concurrency 64]

The stub server runs in a child process on a free loopback port; client and stub are bound to the same two cores.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import cast

import uvloop

from raylane.benchmarks.client import LoadClient
from raylane.benchmarks.load import CaseLoad
from raylane.benchmarks.plan import BenchmarkPlan, Stream
from raylane.benchmarks.records import RawReply
from raylane.benchmarks.sse import read_stream

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_EVENT = (
    'data: {"id":"cmpl-5a1f6d2c9b3e4a708f1d2c3b4a596877","object":"text_completion","created":1763683200,'
    '"model":"stub","choices":[{"index":0,"text":%s,"logprobs":null,"finish_reason":%s,"stop_reason":null}],"usage":%s}\n\n'
)


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


class StubServer(asyncio.Protocol):
    """Answers every POST with `max_tokens` content events, then usage and [DONE]."""

    apart = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has transport classes of its own
        self._write = self._transport.write
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer[:end])
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < total:
                return
            body, self._buffer = self._buffer[end + 4 : total], self._buffer[total:]
            self._answer(json.loads(body)["max_tokens"])

    def _answer(self, tokens: int) -> None:
        events = [_chunk(_EVENT % ('" word"', "null", "null"))] * (tokens - 1)
        events.append(_chunk(_EVENT % ('" word"', '"length"', "null")))
        usage = json.dumps({"prompt_tokens": 16, "completion_tokens": tokens})
        end = _chunk(f'data: {{"choices":[],"usage":{usage}}}\n\n') + _chunk("data: [DONE]\n\n") + b"0\r\n\r\n"
        self._write(_HEAD + events[0])
        if self.apart:
            self._write_next(iter([*events[1:], end]))
        else:
            for event in [*events[1:], end]:
                self._write(event)

    def _write_next(self, events: Iterator[bytes]) -> None:
        event = next(events, None)
        if event is not None and not self._transport.is_closing():
            self._write(event)
            asyncio.get_running_loop().call_soon(self._write_next, events)


class ApartServer(StubServer):
    """Writes one event each time round the event loop, so that most events travel in a network chunk of their own."""

    apart = True


def _bind(cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)


async def _serve(ready: Connection) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(kind, "127.0.0.1", 0) for kind in (StubServer, ApartServer)]
    ready.send([server.sockets[0].getsockname()[1] for server in servers])
    await asyncio.Event().wait()


def _stub_process(ready: Connection, cores: set[int]) -> None:
    _bind(cores)
    uvloop.run(_serve(ready))


def _plan(port: int, tokens: int, concurrency: int, seconds: float) -> BenchmarkPlan:
    stream = {
        "model": "stub",
        "load": {"shape": "concurrency", "concurrency": concurrency},
        "input_tokens": 16,
        "output_tokens": tokens,
    }
    return BenchmarkPlan.from_data(
        {
            "name": "client-rate",
            "base_url": f"http://127.0.0.1:{port}",
            "cases": [{"name": "rate", "duration_s": seconds, "streams": [stream]}],
        },
        "client_rate.py",
    )


async def _measure(plan: BenchmarkPlan) -> str:
    replies: list[RawReply] = []

    def keep(_: Stream, reply: RawReply) -> None:
        replies.append(reply)

    async with LoadClient(plan.base_url, None, plan.request_timeout_s, time.perf_counter) as client:
        load = CaseLoad(plan, plan.cases[0], client, time.perf_counter, keep)
        await load.run()
    start_s, end_s, cpu_s = load.times.window_start_s, load.times.window_end_s, load.times.window_cpu_s
    if start_s is None or end_s is None or cpu_s is None:
        raise RuntimeError("the case ended without a window")
    window_s = end_s - start_s
    inside = [reply for reply in replies if start_s <= reply.t_end_s < end_s]
    parse_start_s = time.perf_counter()
    facts = [read_stream(reply.body) for reply in inside]
    parse_us = (time.perf_counter() - parse_start_s) / len(inside) * 1e6
    failed = sum(fact.error is not None for fact in facts)
    chunks = sum(len(reply.body.chunk_ends) for reply in inside)
    events = sum(len(fact.content_times_s) for fact in facts)
    return (
        f"{len(inside) / window_s:12,.0f} {events / window_s:12,.0f} {chunks / len(inside):12.1f} "
        f"{cpu_s / window_s:10.0%} {parse_us:12.0f} {failed:8d}"
    )


def main() -> None:
    """Print one row for each stream length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    _bind(cores)
    here, there = multiprocessing.get_context("spawn").Pipe()
    stub = multiprocessing.get_context("spawn").Process(target=_stub_process, args=(there, cores), daemon=True)
    stub.start()
    try:
        ports = dict(zip(("at once", "one by one"), here.recv(), strict=True))
        heads = ("tokens", "streams/s", "events/s", "chunks/reply", "client CPU", "parse us", "failed")
        widths = (6, 12, 12, 12, 10, 12, 8)
        print("events come", *(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
        for way, port in ports.items():
            for tokens in (1, 16, 128):
                row = uvloop.run(_measure(_plan(port, tokens, options.concurrency, options.seconds)))
                print(f"{way:>11} {tokens:6d} {row}")
    finally:
        stub.kill()
        stub.join()


if __name__ == "__main__":
    main()
