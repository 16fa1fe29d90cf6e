"""What a gateway worker answers on which path; the errors of the web framework in OpenAI's shape, too."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion11, hdrs, web

from raylane.deployments.gateway.errors import refuse, unknown_model
from raylane.deployments.gateway.metrics import GatewayMetrics
from raylane.deployments.gateway.relay import Relay

log = logging.getLogger("raylane.gateway")

POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
PREFLIGHT_KEPT_S = 600
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(relay: Relay, metrics: GatewayMetrics, cors_origins: Sequence[str] = ()) -> web.Application:
    """The gateway's routes. Pages of `cors_origins` may call them from a browser; "*" stands for all."""
    born_s = int(time.time())

    def described(model: str) -> dict[str, Any]:
        return {"id": model, "object": "model", "created": born_s, "owned_by": "raylane"}

    async def list_models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [described(model) for model in relay.models]})

    async def one_model(request: web.Request) -> web.Response:
        model = request.match_info["model"]
        return web.json_response(described(model)) if model in relay.models else unknown_model(model, relay.models)

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "server": "raylane", "models": list(relay.models)})

    async def metrics_page(_: web.Request) -> web.Response:
        return web.Response(body=await asyncio.to_thread(metrics.page), content_type="text/plain")

    @web.middleware
    async def preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
        """A browser's question whether a page may ask."""
        if (
            request.method == hdrs.METH_OPTIONS
            and cors_origins
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        ):
            return web.Response(status=204, headers=preflight_headers(request))
        return await handler(request)

    async def allow_origin(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(origin_headers(request.headers.get(hdrs.ORIGIN), cors_origins))

    app = web.Application(middlewares=[preflights, shaped_errors])
    app.router.add_get("/v1/models", list_models, expect_handler=go_on)
    app.router.add_get("/v1/models/{model:.+}", one_model, expect_handler=go_on)
    app.router.add_get("/health", health, expect_handler=go_on)
    app.router.add_get("/metrics", metrics_page, expect_handler=go_on)
    for path in POSTS:
        app.router.add_post(path, relay.handle, expect_handler=go_on)
    if cors_origins:
        app.on_response_prepare.append(allow_origin)
    return app


def origin_headers(origin: str | None, allowed: Sequence[str]) -> dict[str, str]:
    """What a reply says to a browser of who may read it."""
    if "*" in allowed:
        return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*"}
    vary: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN}  # caches must not hand one page's permission to another
    return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin, **vary} if origin in allowed and origin is not None else vary


def preflight_headers(request: web.Request) -> dict[str, str]:
    """Whatever headers the page wants to send; "*" would not stand for Authorization."""
    return {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, HEAD, POST",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, ""),
        hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_KEPT_S),
    }


@web.middleware
async def shaped_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """An error of the web framework, or of this gateway, in OpenAI's shape."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        message = f"{request.method} is not allowed on {request.path}"
        answer = refuse(405, message, "invalid_request_error", "method_not_supported")
        answer.headers[hdrs.ALLOW] = ", ".join(sorted(error.allowed_methods))
        return answer
    except web.HTTPNotFound:
        return refuse(404, f"no such path: {request.method} {request.path}", "invalid_request_error", "unknown_url")
    except web.HTTPException as error:
        return refuse(error.status, error.reason, "invalid_request_error", None)
    except Exception:  # an edge: whatever it is, the client gets an answer and the log the traceback
        if request.writer.output_size > 0:
            raise  # in the middle of an answer
        log.exception("error handling %s %s", request.method, request.path)
        return internal_error()


def internal_error() -> web.Response:
    return refuse(500, "internal error of the gateway; its log says more", "internal_error", 500)


async def go_on(request: web.Request) -> web.StreamResponse | None:
    """Answer to the header Expect, which has one known value."""
    expected = request.headers[hdrs.EXPECT]
    if expected.lower() != "100-continue":
        return refuse(417, f"unknown expectation: {expected}", "invalid_request_error", None)
    if request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer itself
    return None


class ShapedHandler(web.RequestHandler):
    """One client connection. What is not HTTP is told so in OpenAI's shape, and not with a traceback in the log."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0 or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            super().handle_error(request, status, exc, message)  # raises, or logs what happened
            answer = internal_error()
        else:
            first_line = (message or HTTPStatus(status).phrase).strip().splitlines()[0].rstrip(":")
            answer = refuse(status, first_line, "invalid_request_error", None)
        answer.force_close()
        return answer


def connection_factory(server: web.Server) -> Callable[[], web.RequestHandler]:
    """For the event loop: makes the protocol of a new connection."""
    loop = asyncio.get_running_loop()
    return lambda: ShapedHandler(server, loop=loop, access_log=None, tcp_keepalive=True)  # type: ignore[arg-type] # None is documented
