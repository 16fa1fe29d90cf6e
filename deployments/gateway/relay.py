"""One request through the gateway: pick, send, pass on, try once more elsewhere if the engine dies before a byte."""

import asyncio
import json
import time
from dataclasses import dataclass

from aiohttp import HttpVersion11, web

from raylane.deployments.gateway.errors import error_body, error_event
from raylane.deployments.gateway.metrics import GatewayMetrics
from raylane.deployments.gateway.routing import NoPick, Pick
from raylane.deployments.gateway.routing import pick as pick_replica
from raylane.deployments.gateway.upstream import Head, Upstream, UpstreamError, UpstreamPool
from raylane.deployments.reports import Endpoint, ModelTraffic, Table

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date", "upgrade", "te"}
PASSED_ON = ("content-type", "accept", "x-request-id", "traceparent", "tracestate")
HIGH_WATER_BYTES = 1 << 20  # unread by the client: stop reading from the engine
DRAIN_CHECK_S = 0.02
MAX_TRIES = 2


@dataclass
class Counters:
    """One model's traffic through this process."""

    received: int = 0
    completed: int = 0
    failed: int = 0
    open: int = 0

    def frozen(self) -> ModelTraffic:
        return ModelTraffic(self.received, self.completed, self.failed, self.open)


class Relay:
    """Passes requests to replicas. Knows the table, counts what is open, owns the connections."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._pool = UpstreamPool()
        self._metrics = metrics
        self._open: dict[str, int] = {}
        self._turn = 0
        self._table = Table("", 0, False, (), ())
        self.traffic: dict[str, Counters] = {}

    @property
    def models(self) -> tuple[str, ...]:
        return self._table.models

    @property
    def open_requests(self) -> int:
        return sum(self._open.values())

    def apply(self, table: Table) -> None:
        """Go by this table from now on."""
        self._table = table
        self._pool.keep_only(frozenset(endpoint.url for endpoint in table.endpoints))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one OpenAI POST. Client disconnects arrive as CancelledError and abort the engine's work."""
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            return _refuse(413, error.text or "the body is too large", "invalid_request_error", None)
        try:
            model = json.loads(body)["model"]
        except (ValueError, KeyError, TypeError, RecursionError):
            model = None
        if not isinstance(model, str):
            return _refuse(400, "the body must be JSON with a string 'model'", "invalid_request_error", None, "model")
        known = model in self.models
        counters = self.traffic.setdefault(model, Counters()) if known else Counters()
        counters.received += 1
        counters.open += 1
        began_s = time.monotonic()
        outcome = "cancelled"
        try:
            response, outcome = await self._relay(request, model, body, began_s)
            return response
        finally:
            counters.open -= 1
            counters.completed += outcome == "200"
            counters.failed += outcome != "200"
            self._metrics.finished(model if known else "", outcome, time.monotonic() - began_s)

    async def _relay(
        self, request: web.Request, model: str, body: bytes, began_s: float
    ) -> tuple[web.StreamResponse, str]:
        """The response and its outcome: the status, or "cut" when the engine died after the first byte."""
        tried: frozenset[str] = frozenset()
        problem = ""
        for _ in range(MAX_TRIES):
            picked = self._pick(model, tried)
            if isinstance(picked, NoPick):
                break
            endpoint = picked.endpoint
            self._open[endpoint.replica_id] = picked.open_requests + 1
            try:
                upstream, head = await self._ask(endpoint, request, body)
                if head.status >= 500 and not tried and self._another(model, endpoint):
                    upstream.abort()  # a dying engine says so itself; with no other to ask its answer is passed on
                    raise UpstreamError(f"status {head.status}")
                self._metrics.first_byte(model, time.monotonic() - began_s)
                return await self._pass_on(request, endpoint, upstream, head)
            except UpstreamError as error:
                problem = str(error)
                tried |= {endpoint.replica_id}
                self._metrics.retried(model)
            finally:
                self._close_one(endpoint.replica_id)
        return self._no_answer(model, picked, problem)

    def _no_answer(self, model: str, picked: Pick | NoPick, problem: str) -> tuple[web.StreamResponse, str]:
        if problem:
            return _refuse(502, f"model {model!r}: its engine failed: {problem}", "engine_error", 502), "502"
        if picked is NoPick.UNKNOWN_MODEL:
            known = ", ".join(self.models) or "none yet"
            message = f"The model {model!r} does not exist; deployed: {known}"
            return _refuse(404, message, "invalid_request_error", "model_not_found", "model"), "404"
        return _refuse(503, f"model {model!r} has no replica that is ready", "service_unavailable", 503), "503"

    def _pick(self, model: str, tried: frozenset[str]) -> Pick | NoPick:
        self._turn += 1
        return pick_replica(model, self._table.models, self._table.endpoints, self._open, tried, self._turn)

    def _another(self, model: str, than: Endpoint) -> bool:
        return isinstance(self._pick(model, frozenset({than.replica_id})), Pick)

    def _close_one(self, replica_id: str) -> None:
        left = self._open[replica_id] - 1
        if left:
            self._open[replica_id] = left
        else:
            del self._open[replica_id]

    async def _ask(self, endpoint: Endpoint, request: web.Request, body: bytes) -> tuple[Upstream, Head]:
        """Send the request; a kept connection that the engine had closed meanwhile is replaced by a new one."""
        headers = f"host: {endpoint.replica_id}\r\nauthorization: Bearer {endpoint.api_key}\r\n" + "".join(
            f"{name}: {request.headers[name]}\r\n" for name in PASSED_ON if name in request.headers
        )
        method, path = request.method.encode(), request.path.encode()
        while True:
            upstream, new = await self._pool.connection(endpoint.url)
            try:
                return upstream, await upstream.send(method, path, headers.encode("utf-8", "surrogateescape"), body)
            except UpstreamError:
                if new:
                    raise
            except BaseException:
                upstream.abort()
                raise

    async def _pass_on(
        self, request: web.Request, endpoint: Endpoint, upstream: Upstream, head: Head
    ) -> tuple[web.StreamResponse, str]:
        response = _response_like(request, head)
        try:
            await response.prepare(request)
            writer = Writer(request, upstream, chunked=response.chunked)
            try:
                await upstream.deliver_to(writer.write)
            except UpstreamError as error:
                await _end_broken(response, writer, error)
                return response, "cut"
            await response.write_eof()
            return response, str(head.status)
        except ConnectionResetError:  # the client left; its handler's cancellation is on its way
            return response, "cancelled"
        finally:
            upstream.resume()  # it may have been paused for this client's sake
            self._pool.put_back(endpoint.url, upstream)


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


async def _end_broken(response: web.StreamResponse, writer: Writer, error: UpstreamError) -> None:
    """The engine died in the middle of a reply: a stream ends with an error event, anything else is cut off."""
    response.force_close()
    if response.content_type == "text/event-stream":
        writer.write(error_event(f"the engine stopped in the middle of the stream: {error}"))
        await response.write_eof()
    elif writer.transport is not None:
        writer.transport.close()


def _response_like(request: web.Request, head: Head) -> web.StreamResponse:
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


def _refuse(status: int, message: str, kind: str, code: str | int | None, param: str | None = None) -> web.Response:
    return web.Response(status=status, body=error_body(message, kind, code, param), content_type="application/json")
