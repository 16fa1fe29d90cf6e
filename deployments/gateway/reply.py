"""An engine's reply on its way to the client."""

import asyncio

from aiohttp import HttpVersion11, web

from raylane.deployments.gateway.errors import error_event
from raylane.deployments.gateway.upstream import Head, Upstream, UpstreamError

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date", "upgrade", "te"}
HIGH_WATER_BYTES = 1 << 20  # unread by the client: stop reading from the engine
DRAIN_CHECK_S = 0.02


class Writer:
    """Writes body bytes straight to the client's transport, framed as its response announced."""

    def __init__(self, request: web.Request, upstream: Upstream, *, chunked: bool) -> None:
        self.transport = request.transport
        self._upstream = upstream
        self._chunked = chunked
        self._paused = False

    def write(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            return  # the client is gone, and the handler's cancellation on its way
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        if not self._paused and self.transport.get_write_buffer_size() > HIGH_WATER_BYTES:
            self._paused = True
            self._upstream.pause()
            self._resume_when_read()

    def _resume_when_read(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() > HIGH_WATER_BYTES // 2:
            asyncio.get_running_loop().call_later(DRAIN_CHECK_S, self._resume_when_read)
            return
        self._paused = False
        self._upstream.resume()


async def end_broken(response: web.StreamResponse, writer: Writer, error: UpstreamError) -> None:
    """The engine died in the middle of a reply: a stream ends with an error event, anything else is cut off."""
    response.force_close()
    if response.content_type == "text/event-stream" and "content-encoding" not in response.headers:
        writer.write(error_event(f"the engine stopped in the middle of the stream: {error}"))
        await response.write_eof()
    elif writer.transport is not None:
        writer.transport.close()


def response_like(request: web.Request, head: Head) -> web.StreamResponse:
    """A response with the engine's status and headers, framed for this client."""
    response = web.StreamResponse(status=head.status)
    headers = dict(head.headers)
    for name, value in head.headers:
        if name not in HOP_BY_HOP:
            response.headers.add(name, value)
    if "content-length" in headers:
        response.content_length = int(headers["content-length"])
    elif request.version >= HttpVersion11:
        response.enable_chunked_encoding()
    else:
        response.force_close()  # the end of the connection is the end of the body
    return response
