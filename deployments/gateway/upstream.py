"""Connections to engines: a request goes out, the reply's bytes are handed on as they arrive.

The reply is followed by the protocol's own callbacks, without a task switch or a queue for each chunk, which at 10,000
chunks a second is most of what a proxy costs.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

log = logging.getLogger("raylane.gateway")

CONNECT_TIMEOUT_S = 2.0
IDLE_FOR_S = 60.0  # engines keep a connection for 120 s
COPIED_BYTES = 64 << 10  # up to this a copy costs less than another system call
VANISHED_AFTER_MS = 5000
SOCKET_OPTIONS = (  # a host that vanishes says nothing: its connections must break by themselves
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_AFTER_MS),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class UpstreamError(Exception):
    """The engine could not be reached, or its connection broke."""


class Unreachable(UpstreamError):
    """No connection could be had, so the engine has seen nothing of the request."""


@dataclass(frozen=True)
class Head:
    """Status line and headers of a reply."""

    status: int
    headers: tuple[tuple[str, str], ...]


class Upstream(asyncio.Protocol):
    """One connection to an engine, carrying one request at a time.

    `head` resolves when the first byte of the body is there (engines send the head long before: a reply that has only
    a head can still be had elsewhere), `done` when the body is complete. Both fail with UpstreamError when the
    connection breaks before.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: list[tuple[str, str]] = []
        self._parts: list[bytes] = []  # body bytes that the sink has not had yet
        self._sink: Callable[[bytes], None] | None = None
        self.head: asyncio.Future[Head] | None = None
        self.done: asyncio.Future[None] | None = None
        self.reusable = False
        self.idle_since_s = 0.0

    # What the gateway calls.

    def send(self, method: bytes, path: bytes, headers: bytes, body: bytes | bytearray) -> asyncio.Future[Head]:
        """Send one request; resolves with the head of the reply once its body begins (or is found empty)."""
        if self._transport is None or self._transport.is_closing():
            raise UpstreamError("connection closed")
        loop = asyncio.get_running_loop()
        self.head, self.done = loop.create_future(), loop.create_future()
        self.done.add_done_callback(_retrieve)
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._parts, self._sink, self.reusable = [], [], None, False
        length = b"content-length: %d\r\n" % len(body)
        head = method + b" " + path + b" HTTP/1.1\r\n" + headers + length + b"\r\n"
        if len(body) < COPIED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return self.head

    def deliver_to(self, sink: Callable[[bytes], None]) -> asyncio.Future[None]:
        """Hand the body to `sink`, from its beginning; resolves when it is complete."""
        assert self.done is not None  # noqa: S101 - after send()
        self._sink = sink
        self._hand_on()
        return self.done

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection; the engine takes that as a cancelled request."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        return self.reusable and self._transport is not None and not self._transport.is_closing()

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "pause_reading")  # noqa: S101
        self._transport = transport  # type: ignore[assignment]
        for level, option, value in SOCKET_OPTIONS:
            transport.get_extra_info("socket").setsockopt(level, option, value)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self.abort()  # bytes nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")
            self.abort()
        self._hand_on()

    def _hand_on(self) -> None:
        """Give the sink what has come, in one piece: a read may bring many chunks, and each write is a system call."""
        if self._sink is not None and self._parts:
            self._sink(b"".join(self._parts) if len(self._parts) > 1 else self._parts[0])
            self._parts.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._fail(str(exc) if exc else "connection closed")

    def _fail(self, why: str) -> None:
        for future in (self.head, self.done):
            if future is not None and not future.done():
                future.set_exception(UpstreamError(why))

    # httptools' callbacks.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def _begin(self) -> None:
        assert self._parser is not None and self.head is not None  # noqa: S101, PT018 - a parser means a request
        if not self.head.done():
            self.head.set_result(Head(self._parser.get_status_code(), tuple(self._headers)))

    def on_body(self, data: bytes) -> None:
        self._begin()
        self._parts.append(data)

    def on_message_complete(self) -> None:
        assert self._parser is not None and self.done is not None  # noqa: S101, PT018
        self._begin()
        self.reusable = bool(self._parser.should_keep_alive())
        self._parser = None
        self.idle_since_s = time.monotonic()
        if not self.done.done():
            self.done.set_result(None)


def _retrieve(future: asyncio.Future[None]) -> None:
    """Mark a broken body's error as seen: the handler may have gone already with its client."""
    if not future.cancelled():
        future.exception()


class UpstreamPool:
    """Keeps finished connections for the next request to the same engine."""

    def __init__(self) -> None:
        self._idle: dict[str, list[Upstream]] = {}

    async def connection(self, url: str) -> tuple[Upstream, bool]:
        """A connection to this engine, and whether it is new. Raises Unreachable when there is none to be had."""
        idle = self._idle.get(url, [])
        while idle:
            kept = idle.pop()
            if kept.usable and time.monotonic() - kept.idle_since_s < IDLE_FOR_S:
                return kept, False
            kept.abort()
        return await self._connect(url), True

    async def reachable(self, url: str) -> bool:
        """Whether a new connection to this engine can be had; it is kept for the next request."""
        try:
            upstream = await self._connect(url)
        except Unreachable:
            return False
        upstream.reusable = True
        upstream.idle_since_s = time.monotonic()
        self.put_back(url, upstream)
        return True

    async def _connect(self, url: str) -> Upstream:
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, upstream = await loop.create_connection(Upstream, parts.hostname or "", parts.port or 80)
        except (OSError, TimeoutError) as error:
            log.warning("cannot connect to %s: %s", url, error or "time limit")
            raise Unreachable("it cannot be reached") from error  # clients are not told where engines are
        return upstream

    def put_back(self, url: str, upstream: Upstream) -> None:
        """Keep a connection whose reply is complete; anything else is dropped."""
        if upstream.usable:
            self._idle.setdefault(url, []).append(upstream)
        else:
            upstream.abort()

    def keep_only(self, urls: frozenset[str]) -> None:
        """Close idle connections to engines that are gone."""
        for url in [url for url in self._idle if url not in urls]:
            for upstream in self._idle.pop(url):
                upstream.abort()
