"""The gateway alone: a stub engine without delay reached directly, through one raylane worker and through one nginx.

    python -m studies.performance.gateway_alone [--rounds 5] [--seconds 3] [--json FILE]

Needs the Debian packages nginx-light and wrk; a part whose program is missing is skipped, and the table says so. The
routes take turns, the order turning round each time, so that a drifting machine weighs on all of them.
"""

import argparse
import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import cast

import uvloop

from raylane.cluster.errors import FailedError
from studies.performance.gateway_routes import HOST, MODEL, Route, nginx_proxy, program_path, raylane_worker
from studies.performance.stub import stub_engine

SINGLE_CHUNK, STREAM_CHUNKS = 1, 128
CONCURRENCIES = (1, 32, 256)
FIRST_CHUNK_REQUESTS = 100  # a round and route
WARMUP_REQUESTS = 10
PROMPT = " ".join(["word"] * 64)
US_PER_TICK = 1e6 / os.sysconf("SC_CLK_TCK")
LAST_CHUNK = b"\r\n0\r\n\r\n"

WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{body}]]
done = function(summary, latency, requests)
    local failed = summary.errors
    io.write(string.format('\\n{{"requests": %d, "duration_us": %d, "p50_us": %.1f, "failed": %d}}\\n',
        summary.requests, summary.duration, latency:percentile(50),
        failed.connect + failed.read + failed.write + failed.status + failed.timeout))
end
"""


@dataclass(frozen=True)
class WrkLoad:
    """What wrk asks for."""

    chunks: int
    concurrency: int


@dataclass(frozen=True)
class Rate:
    """What one run of wrk came to."""

    requests_per_s: float
    p50_ms: float
    proxy_us_per_request: float | None  # CPU time of the proxy process; None for the direct route


@dataclass(frozen=True)
class FirstChunk:
    """One round of single requests: median time from sending to the first content, and what the route adds to it."""

    p50_us: float
    added_us: float  # to the direct route's median of the same round
    requests: int


Rates = Mapping[WrkLoad, Mapping[str, list[Rate]]]  # by the route's name
FirstChunks = Mapping[int, Mapping[str, list[FirstChunk]]]


def request_body(chunks: int) -> str:
    """The completion request that the stub answers with this many chunks."""
    return json.dumps({"model": MODEL, "prompt": PROMPT, "max_tokens": chunks, "stream": True})


# Requests per second, by wrk.


def run_wrk(route: Route, load: WrkLoad, seconds: int) -> Rate:
    """One thread of wrk on kept connections. Raises FailedError when any request failed."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK_SCRIPT.format(body=request_body(load.chunks)))
        script.flush()
        before_us = _cpu_us(route.proxy_pid)
        command = ["wrk", "-t1", f"-c{load.concurrency}", f"-d{seconds}s", "--timeout", "30s", "-s", script.name]
        done = subprocess.run(
            [*command, f"http://{HOST}:{route.port}/v1/completions"], capture_output=True, text=True, check=False
        )
        after_us = _cpu_us(route.proxy_pid)
    if done.returncode:
        raise FailedError(f"wrk: exit status {done.returncode}: {done.stderr.strip()}")
    cpu_us = None if before_us is None or after_us is None else after_us - before_us
    return read_wrk(done.stdout, route.name, cpu_us)


def read_wrk(output: str, route_name: str, cpu_us: float | None) -> Rate:
    """The figures in the last line that WRK_SCRIPT prints."""
    said = json.loads(output.strip().splitlines()[-1])
    if said["failed"] or not said["requests"]:
        raise FailedError(f"wrk: {route_name}: {said['failed']} of {said['requests']} requests failed")
    each_us = None if cpu_us is None else cpu_us / said["requests"]
    return Rate(said["requests"] / said["duration_us"] * 1e6, said["p50_us"] / 1e3, each_us)


def _cpu_us(pid: int | None) -> float | None:
    """User and system time of a process so far."""
    if pid is None:
        return None
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * US_PER_TICK


def measure_rates(routes: list[Route], loads: Iterable[WrkLoad], rounds: int, seconds: int) -> Rates:
    """Every load on every route, `rounds` times."""
    rates: dict[WrkLoad, dict[str, list[Rate]]] = {load: {route.name: [] for route in routes} for load in loads}
    for number in range(rounds):
        for load, by_route in rates.items():
            for route in turned(routes, number):
                by_route[route.name].append(run_wrk(route, load, seconds))
    return rates


def turned(routes: list[Route], number: int) -> list[Route]:
    """The routes, beginning with another one each time."""
    first = number % len(routes)
    return routes[first:] + routes[:first]


# Time to the first chunk, by a client of our own.


class Asker(asyncio.Protocol):
    """One kept connection, one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has transport classes of its own
        self._done: asyncio.Future[float] | None = None

    def ask(self, request: bytes) -> asyncio.Future[float]:
        """Send; resolves at the end of the reply with the seconds from sending to the first content."""
        self._done = asyncio.get_running_loop().create_future()
        self._head, self._tail = b"", b""
        self._first_s: float | None = None
        self._sent_s = time.perf_counter()
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        if self._first_s is None:
            now_s = time.perf_counter()
            self._head += data
            if b"\r\n\r\n" not in self._head or b"data: " not in self._head:
                return
            self._first_s = now_s
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        if self._tail == LAST_CHUNK and self._done is not None:
            if self._head.startswith(b"HTTP/1.1 200"):
                self._done.set_result(self._first_s - self._sent_s)
            else:
                self._done.set_exception(FailedError(self._head.decode("latin-1")))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(FailedError(f"the connection broke: {exc or 'closed'}; so far: {self._head!r}"))

    def close(self) -> None:
        self._transport.close()


def raw_request(chunks: int) -> bytes:
    """The same request as wrk's, byte for byte on the wire."""
    body = request_body(chunks).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def first_chunk_times(routes: list[Route], chunks: int, requests: int) -> dict[str, list[float]]:
    """Seconds to the first chunk by route: one request at a time, route by route in turn, after a few to warm up."""
    loop = asyncio.get_running_loop()
    askers = {route: (await loop.create_connection(Asker, HOST, route.port))[1] for route in routes}
    request = raw_request(chunks)
    times: dict[str, list[float]] = {route.name: [] for route in routes}
    for number in range(-WARMUP_REQUESTS, requests):
        for route in turned(routes, number):
            time_s = await askers[route].ask(request)
            if number >= 0:
                times[route.name].append(time_s)
    for asker in askers.values():
        asker.close()
    return times


def measure_first_chunks(routes: list[Route], rounds: int, requests: int) -> FirstChunks:
    """Both reply lengths on every route, `rounds` times."""
    found: dict[int, dict[str, list[FirstChunk]]] = {
        chunks: {route.name: [] for route in routes} for chunks in (SINGLE_CHUNK, STREAM_CHUNKS)
    }
    for _ in range(rounds):
        for chunks, by_route in found.items():
            times = uvloop.run(first_chunk_times(routes, chunks, requests))
            direct_us = median(times[routes[0].name]) * 1e6
            for name, times_s in times.items():
                p50_us = median(times_s) * 1e6
                by_route[name].append(FirstChunk(p50_us, p50_us - direct_us, len(times_s)))
    return found


# The result.


def rate_table(rates: Rates) -> str:
    """A Markdown table, medians with their ranges."""
    rows = [
        "| reply | concurrency | route | requests/s | latency p50, ms | proxy CPU, us per request |",
        "|---|---|---|---|---|---|",
    ]
    for load, by_route in rates.items():
        for name, runs in by_route.items():
            cells = (
                (run.requests_per_s for run in runs),
                (run.p50_ms for run in runs),
                (run.proxy_us_per_request for run in runs),
            )
            row = " | ".join(_cell(values) for values in cells)
            rows.append(f"| {_reply(load.chunks)} | {load.concurrency} | {name} | {row} |")
    return "\n".join(rows)


def first_chunk_table(found: FirstChunks) -> str:
    """A Markdown table, medians of the rounds' medians with their ranges."""
    rows = [
        "| reply | route | time to first chunk p50, us | added to direct, us | requests |",
        "|---|---|---|---|---|",
    ]
    for chunks, by_route in found.items():
        for name, runs in by_route.items():
            first, added = _cell(run.p50_us for run in runs), _cell(run.added_us for run in runs)
            rows.append(f"| {_reply(chunks)} | {name} | {first} | {added} | {sum(run.requests for run in runs)} |")
    return "\n".join(rows)


def _cell(values: Iterable[float | None]) -> str:
    """Median and range; a dash when there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{_number(median(known))} ({_number(min(known))} to {_number(max(known))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _reply(chunks: int) -> str:
    return f"{chunks} chunk" + "s" * (chunks > 1)


def to_json(rates: Rates, first_chunks: FirstChunks, skipped: list[str]) -> dict[str, object]:
    """Every single run, for later reading."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "skipped": skipped,
        "rates": [
            {**asdict(load), "route": name, "runs": [asdict(run) for run in runs]}
            for load, by_route in rates.items()
            for name, runs in by_route.items()
        ],
        "first_chunks": [
            {"chunks": chunks, "route": name, "rounds": [asdict(run) for run in runs]}
            for chunks, by_route in first_chunks.items()
            for name, runs in by_route.items()
        ],
    }


def missing_programs() -> list[str]:
    """What cannot be measured here, and what to install."""
    lacks = {"wrk": "requests per second (apt-get install wrk)", "nginx": "nginx (apt-get install nginx-light)"}
    return [what for program, what in lacks.items() if program_path(program) is None]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=3, help="of each run of wrk")
    arguments.add_argument("--requests", type=int, default=FIRST_CHUNK_REQUESTS, help="for the first chunk, a round")
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    skipped = missing_programs()
    with ExitStack() as stack:
        ports = stack.enter_context(stub_engine())
        routes = [Route("stub directly", ports.apart), stack.enter_context(raylane_worker(ports.apart))]
        if program_path("nginx"):
            routes.append(stack.enter_context(nginx_proxy(ports.apart)))
        first_chunks = measure_first_chunks(routes, chosen.rounds, chosen.requests)
        loads = [WrkLoad(chunks, c) for chunks in (SINGLE_CHUNK, STREAM_CHUNKS) for c in CONCURRENCIES]
        rates = measure_rates(routes, loads, chosen.rounds, chosen.seconds) if program_path("wrk") else {}
    print(rate_table(rates), "", first_chunk_table(first_chunks), *(f"Skipped: {what}." for what in skipped), sep="\n")
    if chosen.json:
        chosen.json.write_text(json.dumps(to_json(rates, first_chunks, skipped), indent=1))


if __name__ == "__main__":
    main()
