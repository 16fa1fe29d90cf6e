"""The load client: sends one request and keeps what came back as bytes with times. Parsing waits for the end of a case.

A chunk costs a clock reading and two appends here; JSON would cost several times that and delay the other streams.
"""

import asyncio
from array import array
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

import aiohttp

from raylane.benchmarks.prompts import PATHS, PlannedRequest
from raylane.benchmarks.records import RawReply
from raylane.benchmarks.sse import RawBody
from raylane.cluster.redact import redacted

Clock = Callable[[], float]
SIMULATED_HEADER = "X-Raylane-Simulated"
CUT_AT_END = "cut: still running when the run stopped waiting"
_CONNECT_TIMEOUT_S = 30.0


class LoadClient:
    """One HTTP session without a connection limit. Use as an async context manager; safe for any number of tasks."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float, clock: Clock) -> None:
        self._base_url = base_url
        # Chunks are kept as they come: a compressed stream would be neither readable nor timed by token.
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        self._clock = clock
        self.simulated = False
        """Whether any reply so far said that it came from a simulator."""

    async def __aenter__(self) -> Self:
        # limit=0: the default of 100 connections would queue requests inside the client and call it latency.
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=60, ttl_dns_cache=None)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=self._timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, request: PlannedRequest, t_sched_s: float, keep: Callable[[RawReply], None]) -> None:
        """Send one request and hand its reply to `keep`, whether it worked, failed or was cancelled."""
        clock = self._clock
        times: array[float] = array("d")
        chunks: list[bytes] = []
        status: int | None = None
        error: str | None = None
        url = self._base_url + request.path
        t_send_s = clock()
        try:
            # A redirect is not followed: its way would be inside TTFT, and the key would be lost on another host.
            async with self._session.post(url, data=request.body, allow_redirects=False) as response:
                status = response.status
                self.simulated |= SIMULATED_HEADER in response.headers
                error = unusable(url, status, response.headers)
                read = response.content.readany
                while error is None and (chunk := await read()):
                    times.append(clock())
                    chunks.append(chunk)
        except asyncio.CancelledError:
            error = CUT_AT_END
            raise
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}".rstrip(": ")
        finally:
            body = _body(chunks, times)
            keep(
                RawReply(t_sched_s, t_send_s, clock(), status, error, request.input_tokens, request.output_tokens, body)
            )


def unusable(url: str, status: int, headers: Mapping[str, str]) -> str | None:
    """Why a reply cannot be measured, by its status and headers alone: a redirect, a compressed body."""
    location = headers.get("Location")
    if 300 <= status < 400 and location:
        return f"HTTP {status} redirects to {_redirected(url, location)}"
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        return f"the reply is compressed (content-encoding: {coding}), though accept-encoding: identity was sent"
    return None


def _redirected(url: str, location: str) -> str:
    """Where a redirect leads, without secrets, and what to do: the root to give as address where it is plain."""
    try:
        target = urlsplit(urljoin(url, location))
    except ValueError:
        return "an address that is none"
    place = redacted(f"{target.scheme}://{target.netloc.rpartition('@')[2]}{target.path}")
    for path in PATHS.values():
        root = place.rstrip("/").removesuffix(path)
        if len(root) < len(place.rstrip("/")) and not url.startswith(root + path):
            return f"{root}; give that address"
    return place


def _body(chunks: list[bytes], times: Sequence[float]) -> RawBody:
    ends: array[int] = array("q")
    total = 0
    for chunk in chunks:
        total += len(chunk)
        ends.append(total)
    return RawBody(b"".join(chunks), ends, times)
