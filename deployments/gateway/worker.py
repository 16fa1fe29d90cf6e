"""One gateway process: an HTTP server on the shared port, steered by its gateway over a socket, its standard input.

To it:   one byte with the listening socket, one JSON line of WorkerSettings, then JSON lines {"table": ...},
         {"cold_start": model}, to be counted by this worker for all, and {"stop": true}.
From it: JSON lines {"started": process id}, {"listening": port}, {"applied": [epoch, version]}, {"traffic": {model:
         counters}} twice a second, {"holding": model} when the first request begins to wait for a replica.
Without settings end of file means that it is not needed. Afterwards it means that the gateway died: the worker serves
on by its last table until another gateway has taken over, or the holder of the port gives up.
"""

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, cast

import uvloop
from aiohttp import web

from raylane.deployments.directory.reports import Table
from raylane.deployments.gateway.api import build_app, connection_factory
from raylane.deployments.gateway.holder import connect, leave_caller
from raylane.deployments.gateway.holding import HoldLimits
from raylane.deployments.gateway.metrics import GatewayMetrics
from raylane.deployments.gateway.relay import Relay

log = logging.getLogger("raylane.gateway")

SAY_EVERY_S = 0.5
ACCEPT_AGAIN_S = 1.0
ACCEPT_WAIT_US = 200_000  # how long a stop may go unnoticed
FIRST_REQUEST_WITHIN_S = 0.1


@dataclass(frozen=True)
class WorkerSettings:
    """What the gateway tells a worker at its start."""

    finish_within_s: float  # how long open streams may go on after the gateway said stop
    hold_timeout_s: float = 300.0
    hold_limit: int = 1000
    cors_origins: tuple[str, ...] = ()
    table: dict[str, Any] | None = None  # to serve by from the first request on
    # For the time after the gateway's death:
    gateway_id: str = ""
    holder: str = ""  # name of the holder's control socket


class Accepting:
    """Takes connections off the shared listening socket, one at a time, by a thread that waits in accept().

    The kernel lets those who wait there take turns, so that connections are spread evenly over the workers. Event loops
    that share a listening socket are all woken for each connection, and the same one is mostly the quickest.
    """

    def __init__(self, listening: socket.socket, connection: Callable[[], asyncio.Protocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._connection = connection
        self._stopping = False
        self._turn = threading.Semaphore()
        self._welcomes: set[asyncio.Task[None]] = set()
        listening.setblocking(True)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, ACCEPT_WAIT_US))
        self._thread = threading.Thread(target=self._accept_on, name="accept", daemon=True)
        self._thread.start()

    def _accept_on(self) -> None:
        while not self._stopping:
            self._turn.acquire()  # the loop has taken the one before: a busy worker leaves more to the others
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                self._turn.release()
                continue  # nobody came for a while, or the client is gone
            except OSError as error:
                log.error("cannot accept connections for a moment: %s", error)  # out of file descriptors, say
                time.sleep(ACCEPT_AGAIN_S)
                self._turn.release()
                continue
            connection.setblocking(False)
            self._loop.call_soon_threadsafe(self._took, connection)

    def _took(self, connection: socket.socket) -> None:
        self._turn.release()
        welcome = self._loop.create_task(self._welcome(connection))
        self._welcomes.add(welcome)
        welcome.add_done_callback(self._welcomes.discard)

    async def _welcome(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._connection, connection)
        except OSError as error:
            log.warning("a connection was lost at its beginning: %s", error)

    async def close(self) -> None:
        """No new connections here; they go to the other workers, or wait, while anybody has the socket.

        Returns when those that were taken have had time to send their request: aiohttp's shutdown neither answers nor
        closes a connection that it finds just made.
        """
        self._stopping = True
        await asyncio.to_thread(self._thread.join)
        self._listening.close()
        await asyncio.sleep(FIRST_REQUEST_WITHIN_S)


class Link:
    """To the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    def say(self, message: dict[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")


async def keep_saying_traffic(link: Link, relay: Relay) -> None:
    while True:
        await asyncio.sleep(SAY_EVERY_S)
        link.say({"traffic": {model: asdict(traffic) for model, traffic in relay.traffic().items()}})


async def told_to_stop(link: Link, relay: Relay, metrics: GatewayMetrics) -> bool:
    """Apply tables until the gateway says stop (True) or is gone (False)."""
    with suppress(ConnectionError):
        while line := await link.reader.readline():
            said = json.loads(line)
            if "stop" in said:
                return True
            if "cold_start" in said:
                metrics.cold_started(said["cold_start"])
                continue
            take(Table.from_json(said["table"]), relay, link)
    return False


def take(table: Table, relay: Relay, link: Link) -> None:
    relay.apply(table)
    link.say({"applied": [table.epoch, table.version]})


async def replaced(settings: WorkerSettings) -> None:
    """Until another gateway's workers serve this port, or nobody has come for it in time. Without a holder: at once."""
    with suppress(OSError):
        holder = connect(settings.holder)
        holder.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=holder)
        writer.write(f"orphan {settings.gateway_id}\n".encode())
        await reader.read()
        writer.close()


async def serve(gateway: socket.socket, listening: socket.socket) -> None:
    link = Link(*await asyncio.open_unix_connection(sock=gateway, limit=64 << 20))
    settings = WorkerSettings(**json.loads(await link.reader.readline()))
    metrics = GatewayMetrics()
    limits = HoldLimits(settings.hold_timeout_s, settings.hold_limit)
    relay = Relay(metrics, limits, lambda model: link.say({"holding": model}))
    if settings.table is not None:
        take(Table.from_json(settings.table), relay, link)
    runner = web.AppRunner(
        build_app(relay, metrics, settings.cors_origins),
        handler_cancellation=True,
        shutdown_timeout=settings.finish_within_s,
    )
    await runner.setup()
    accepting = Accepting(listening, connection_factory(cast(web.Server, runner.server)))
    link.say({"listening": listening.getsockname()[1]})
    talking = asyncio.create_task(keep_saying_traffic(link, relay))
    in_order = await told_to_stop(link, relay, metrics)
    talking.cancel()
    if not in_order:
        log.warning("the gateway died; serving on by its last table until it is replaced")
        await replaced(settings)
    await accepting.close()
    relay.stop_holding()
    await runner.cleanup()  # no further request on the kept connections; open requests finish
    if not in_order:
        shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)


def main() -> None:
    if "--apart" in sys.argv:
        leave_caller()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    gateway = socket.socket(fileno=os.dup(0))
    fds: list[int] = []
    with suppress(ConnectionError):  # it is not needed any more
        gateway.send(json.dumps({"started": os.getpid()}).encode() + b"\n")
        _, fds, _, _ = socket.recv_fds(gateway, 1, 1)  # a spare worker waits here
    if fds:
        uvloop.run(serve(gateway, socket.socket(fileno=fds[0])))


if __name__ == "__main__":
    main()
