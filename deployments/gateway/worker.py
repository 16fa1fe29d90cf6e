"""One gateway process: an HTTP server on the shared port, steered by its parent over standard input and output.

stdin:  one JSON line of WorkerSettings, then JSON lines {"table": ...} and {"cold_start": model}, to be counted by this
        worker for all; end of file means stop.
stdout: JSON lines {"listening": port}, {"applied": [epoch, version]}, {"traffic": {model: counters}} twice a second,
        {"holding": model} when the first request begins to wait for a replica, {"failed": message}.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import uvloop
from aiohttp import web

from raylane.deployments.directory.reports import Table
from raylane.deployments.gateway.holding import HoldLimits
from raylane.deployments.gateway.metrics import GatewayMetrics
from raylane.deployments.gateway.relay import Relay

MAX_BODY_BYTES = 64 << 20
POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
BACKLOG = 4096
SAY_EVERY_S = 0.5


@dataclass(frozen=True)
class WorkerSettings:
    """What the parent tells a worker at its start."""

    host: str
    port: int
    finish_within_s: float  # how long open streams may go on after the parent said stop
    hold_timeout_s: float = 300.0
    hold_limit: int = 1000


def build_app(relay: Relay, metrics: GatewayMetrics) -> web.Application:
    """The gateway's routes."""
    born_s = int(time.time())

    async def list_models(_: web.Request) -> web.Response:
        models = [{"id": m, "object": "model", "created": born_s, "owned_by": "raylane"} for m in relay.models]
        return web.json_response({"object": "list", "data": models})

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "server": "raylane", "models": list(relay.models)})

    async def metrics_page(_: web.Request) -> web.Response:
        return web.Response(body=await asyncio.to_thread(metrics.page), content_type="text/plain")

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics_page)
    for path in POSTS:
        app.router.add_post(path, relay.handle)
    return app


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that other workers may share. Raises OSError when the port is somebody else's."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    server = socket.socket(family, kind, proto)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind(address)
    server.setblocking(False)
    return server


def say(message: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


async def keep_saying_traffic(relay: Relay) -> None:
    while True:
        await asyncio.sleep(SAY_EVERY_S)
        say({"traffic": {model: asdict(traffic) for model, traffic in relay.traffic().items()}})


async def follow_parent(parent: asyncio.StreamReader, relay: Relay, metrics: GatewayMetrics) -> None:
    """Apply tables until the parent says stop or is gone."""
    while line := await parent.readline():
        said = json.loads(line)
        if "cold_start" in said:
            metrics.cold_started(said["cold_start"])
            continue
        table = Table.from_json(said["table"])
        relay.apply(table)
        say({"applied": [table.epoch, table.version]})


async def serve() -> None:
    loop = asyncio.get_running_loop()
    parent = asyncio.StreamReader(limit=64 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
    settings = WorkerSettings(**json.loads(await parent.readline()))
    metrics = GatewayMetrics()
    limits = HoldLimits(settings.hold_timeout_s, settings.hold_limit)
    relay = Relay(metrics, limits, lambda model: say({"holding": model}))
    runner = web.AppRunner(
        build_app(relay, metrics),
        handler_cancellation=True,
        access_log=None,
        tcp_keepalive=True,
        shutdown_timeout=settings.finish_within_s,
    )
    await runner.setup()
    try:
        sock = listening_socket(settings.host, settings.port)
    except OSError as error:
        say({"failed": f"gateway cannot listen on {settings.host}:{settings.port}: {error.strerror}"})
        raise SystemExit(1) from error
    site = web.SockSite(runner, sock, backlog=BACKLOG)
    await site.start()
    say({"listening": sock.getsockname()[1]})
    talking = asyncio.create_task(keep_saying_traffic(relay))
    await follow_parent(parent, relay, metrics)
    talking.cancel()
    relay.stop_holding()
    await runner.cleanup()  # no new connections, no further request on the kept ones; open requests finish


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    uvloop.run(serve())


if __name__ == "__main__":
    main()
