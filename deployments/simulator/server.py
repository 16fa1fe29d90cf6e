"""The simulated engine as a process: an OpenAI server with vLLM's endpoints, metrics and manners.

    python -m raylane.deployments.simulator.server --model-name llama-8b --port 8001 --gpu L40S

The key that clients must send, on every path, is read from the environment (VLLM_API_KEY), as vLLM does; without one it
listens on loopback addresses only. Exit status: 0 after SIGTERM
or SIGINT, 1 after an injected failure, 2 for wrong options or a model that does not fit.
"""

import asyncio
import ipaddress
import os
import signal
import sys
import time
from contextlib import suppress
from itertools import count
from typing import Any

from aiohttp import web

from raylane.cluster.errors import UsageError
from raylane.deployments.engines.guard import KEY_VARIABLE, engine_key, refusal
from raylane.deployments.simulator.metrics import EngineMetrics
from raylane.deployments.simulator.openai_api import (
    Asked,
    BadRequestError,
    EventText,
    answer,
    error_body,
    read_request,
)
from raylane.deployments.simulator.options import FailMode, Options, read_options
from raylane.deployments.simulator.realtime import RealTimeEngine

HEADERS = {"x-raylane-simulated": "true"}


class Service:
    """The endpoints of one simulated engine."""

    def __init__(self, options: Options, key: bytes) -> None:
        self._options = options
        self._key = key
        self._engine = RealTimeEngine(options.engine, speedup=options.speedup)
        self._metrics = EngineMetrics(self._engine, options.model_name, options.speedup)
        self._ids = count(1)
        self._created = int(time.time())
        self._open: set[asyncio.Future[None]] = set()
        self.failed: FailMode | None = None

    def app(self) -> web.Application:
        """The web application; the engine runs while it does."""
        app = web.Application(middlewares=[self._guard], client_max_size=64 * 2**20)
        app.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics_page),
            ]
        )
        app.cleanup_ctx.append(self._background)
        return app

    async def _background(self, _: web.Application) -> Any:
        tasks = [asyncio.create_task(self._engine.run())]
        if self._options.fail_after_s is not None:
            tasks.append(asyncio.create_task(self._fail_later(self._options.fail_after_s)))
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _fail_later(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self.failed = self._options.fail_mode
        self._engine.freeze()
        print(f"injected failure after {after_s} s: {self.failed}", file=sys.stderr, flush=True)  # noqa: T201
        if self.failed is FailMode.EXIT:
            os._exit(1)
        if self.failed is FailMode.UNHEALTHY:
            for done in list(self._open):
                done.set_exception(ConnectionResetError("the engine died (injected)"))

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Who may ask what first, then errors in OpenAI's shape."""
        if self._key:
            sent = [value.encode("utf-8", "surrogateescape") for value in request.headers.getall("Authorization", [])]
            if (refused := refusal(request.method, request.path, sent, self._key)) is not None:
                return _error(refused.message, refused.status, refused.kind)
        try:
            response: web.StreamResponse = await handler(request)
        except BadRequestError as error:
            return _error(str(error), error.status, error.kind)
        except web.HTTPException as error:
            return _error(error.reason, error.status, "NotFoundError" if error.status == 404 else "BadRequestError")
        return response

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        if self.failed is FailMode.UNHEALTHY:
            raise BadRequestError("EngineCore encountered an issue (injected)", 500, "InternalServerError")
        try:
            body = await request.json()
        except ValueError as error:
            raise BadRequestError(f"the body is not JSON: {error}") from error
        asked = read_request(
            body,
            chat=chat,
            model=self._options.model_name,
            max_model_len=self._options.engine.limits.max_model_len,
            default_output_tokens=self._options.default_output_tokens,
        )
        request_id = f"{'chatcmpl' if chat else 'cmpl'}-{os.getpid()}-{next(self._ids)}"
        reply = self._stream if asked.stream else self._whole
        return await reply(request, asked, request_id)

    async def _whole(self, _: web.Request, asked: Asked, request_id: str) -> web.StreamResponse:
        done = self._promise()

        def on_token(last: bool) -> None:
            if last and not done.done():
                done.set_result(None)

        try:
            await self._run(asked, request_id, on_token, done)
        except ConnectionResetError as error:
            raise BadRequestError(str(error), 500, "InternalServerError") from error
        return web.json_response(answer(asked, request_id, self._options.model_name, int(time.time())), headers=HEADERS)

    async def _stream(self, request: web.Request, asked: Asked, request_id: str) -> web.StreamResponse:
        """Tokens are written to the connection by the engine's loop itself: no task wakes up for each of them."""
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        text = EventText.of(asked, request_id, self._options.model_name, int(time.time()))
        await response.prepare(request)
        await response.write(b"")
        done = self._promise()
        try:
            await self._run(asked, request_id, _TokenWriter(request, text, done).token, done)
            await response.write_eof()
        except ConnectionResetError:
            if request.transport is not None:
                request.transport.abort()
        return response

    def _promise(self) -> "asyncio.Future[None]":
        """Fulfilled with the last token; broken when the client or the engine goes away."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open.add(done)
        done.add_done_callback(self._open.discard)
        return done

    async def _run(self, asked: Asked, request_id: str, on_token: Any, done: "asyncio.Future[None]") -> None:
        self._engine.submit(request_id, asked.input_tokens, asked.output_tokens, asked.block_hashes, on_token)
        try:
            await done
        finally:
            if not done.done() or done.cancelled() or done.exception() is not None:
                self._metrics.cancelled += 1
            self._engine.cancel(request_id)

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": self._options.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "raylane-simulator",
            "root": self._options.model,
            "max_model_len": self._options.engine.limits.max_model_len,
        }
        return web.json_response({"object": "list", "data": [card]}, headers=HEADERS)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.failed is FailMode.UNHEALTHY else 200, headers=HEADERS)

    async def _metrics_page(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), content_type="text/plain", headers=HEADERS)


class _TokenWriter:
    """Writes one stream's events straight to its connection."""

    def __init__(self, request: web.Request, text: EventText, done: "asyncio.Future[None]") -> None:
        self._transport = request.transport
        self._text = text
        self._done = done
        self._sent = 0

    def token(self, last: bool) -> None:
        transport = self._transport
        if self._done.done():
            return
        if transport is None or transport.is_closing():
            self._done.set_exception(ConnectionResetError("the client went away"))
            return
        event = self._text.token(self._sent, last=last)
        transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._sent += 1
        if last:
            self._done.set_result(None)


def _error(message: str, status: int, kind: str) -> web.Response:
    return web.json_response(error_body(message, status, kind), status=status, headers=HEADERS)


async def serve(options: Options, key: bytes) -> None:
    """Load (wait), listen, and serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), options.cold_start_s or 1e-6)
        return
    runner = web.AppRunner(Service(options, key).app(), access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, options.host, options.port, shutdown_timeout=0.5, backlog=2048).start()
    print(f"SIMULATED {options.summary()} on http://{options.host}:{options.port}", file=sys.stderr, flush=True)  # noqa: T201
    await stop.wait()
    await runner.cleanup()


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def main(arguments: list[str] | None = None) -> int:
    """Run the server; the exit status."""
    import uvloop

    try:
        options, key = read_options(arguments), engine_key()
        if not key and not _is_loopback(options.host):
            raise UsageError(f"--host {options.host}: without {KEY_VARIABLE} the simulator listens on loopback only")
    except UsageError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    try:
        uvloop.run(serve(options, key))
    except OSError as error:
        print(f"cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
