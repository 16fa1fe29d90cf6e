"""One worker process as its gateway sees it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from raylane.cluster.errors import FailedError
from raylane.deployments.directory.reports import ModelTraffic
from raylane.deployments.gateway.worker import WorkerSettings


class WorkerProcess:
    """Started by launch(): it imports everything and waits until serve() gives it the port and its settings.

    It is nobody's child: Ray kills the children of an actor that dies, and workers are to outlive theirs.
    """

    def __init__(self, on_hold: Callable[[str], None]) -> None:
        self._on_hold = on_hold
        self._pidfd: int | None = None
        self._first: socket.socket | None = None  # the way for the listening socket, which a spare one does not have
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self.pid: int | None = None
        self.ended = asyncio.Event()
        self.applied: tuple[str, int] = ("", 0)
        self.traffic: dict[str, ModelTraffic] = {}
        self._listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        return not self.ended.is_set()

    @property
    def launched(self) -> bool:
        return self.alive and self._writer is not None

    async def launch(self, metrics_folder: str) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair()
        self._first = ours.dup()
        with theirs:
            starter = subprocess.Popen(  # noqa: ASYNC220 - returns at once; waited for below
                [sys.executable, "-m", "raylane.deployments.gateway.worker", "--apart"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics_folder},
            )
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._reading = asyncio.create_task(self._follow(reader))
        await asyncio.to_thread(starter.wait)  # the first of its two forks ends at once

    async def serve(self, listening: socket.socket, settings: WorkerSettings, within_s: float) -> None:
        """Let it accept connections. Raises FailedError or TimeoutError when it does not."""
        assert self._first is not None  # noqa: S101 - launched
        with self._first, suppress(OSError):  # gone: `listening` says so
            socket.send_fds(self._first, [b"\0"], [listening.fileno()])
        self._first = None
        self.send(asdict(settings))
        await asyncio.wait_for(asyncio.shield(self._listening), within_s)

    def send(self, message: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        """Take in what the worker says until it is gone."""
        with suppress(ConnectionError):
            while line := await reader.readline():
                said = json.loads(line)
                if "started" in said:
                    self.pid = said["started"]
                    with suppress(ProcessLookupError):
                        self._pidfd = os.pidfd_open(said["started"])
                elif "listening" in said:
                    self._listening.set_result(None)
                elif "applied" in said:
                    self.applied = (said["applied"][0], said["applied"][1])
                elif "traffic" in said:
                    self.traffic = {model: ModelTraffic(**counters) for model, counters in said["traffic"].items()}
                elif "holding" in said:
                    self._on_hold(said["holding"])
        self.ended.set()
        self.discard()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if not self._listening.done():
            self._listening.set_exception(FailedError("gateway worker ended at its start"))
            self._listening.exception()  # seen, also if nobody waits for a spare one

    def stop(self) -> None:
        """No new connections; open requests finish."""
        self.send({"stop": True})

    def discard(self) -> None:
        """End one that does not serve yet."""
        if self._first is not None:
            self._first.close()
        if self._writer is not None:
            self._writer.close()

    def kill(self) -> None:
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
