"""A gateway's share in the listening socket of its host and port, which a holder process keeps open (holder.py)."""

import asyncio
import errno
import hashlib
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress

from raylane.deployments.gateway.holder import connect

BACKLOG = 4096
FREED_WITHIN_S = 2.0  # a gateway that has just stopped may still be letting go of the port
RETRY_S = 0.05


def control_name(host: str, port: int, cluster: str) -> str:
    """Name of the holder's control socket: another cluster's gateway does not find this one's holder."""
    return "\0raylane-gateway-" + hashlib.sha256(f"{cluster} {host} {port}".encode()).hexdigest()[:40]


def listening_socket(host: str, port: int) -> socket.socket:
    """Raises OSError when the port is somebody else's or the address not this host's."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    server = socket.socket(family, kind, proto)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(BACKLOG)
    except OSError:
        server.close()
        raise
    return server


class ListeningPort:
    """`sock` is for the workers; take() gives one. The holder keeps it open until leave(), or for a successor."""

    def __init__(self, host: str, port: int, cluster: str, gateway_id: str, host_pid: int) -> None:
        self.holder = control_name(host, port, cluster)
        self._address = (host, port)
        self._gateway_id = gateway_id
        self._host_pid = host_pid
        self._sock: socket.socket | None = None
        self._control: socket.socket | None = None
        self._serving = False

    @property
    def sock(self) -> socket.socket:
        assert self._sock is not None  # noqa: S101 - take() has set it
        return self._sock

    def take(self) -> None:
        """Share the port with the gateways that have it, or open it. Raises OSError when it cannot be had. Blocks."""
        deadline_s = time.monotonic() + FREED_WITHIN_S
        while True:
            try:
                return self._join_or_hold()
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline_s:
                    raise
            time.sleep(RETRY_S)

    def serving(self) -> None:
        """The workers listen: those of a gateway that died may stop."""
        self._serving = True
        self._say("serving")

    def leave(self, *, orderly: bool) -> None:
        """Give up the share. In order: the port is closed, unless another gateway has it, too."""
        if orderly:
            self._say("goodbye")
        for end in (self._control, self._sock):
            if end is not None:
                end.close()
        self._control = self._sock = None

    async def keep_held(self) -> None:
        """Start another holder whenever there is none any more."""
        loop = asyncio.get_running_loop()
        while self._control is not None:
            with suppress(OSError):
                if await loop.sock_recv(self._control, 1):
                    continue
            self._control.close()
            with suppress(OSError):  # tried again, as the closed connection cannot be read
                await asyncio.to_thread(self._join_or_hold)
                if self._serving:
                    self._say("serving")
            await asyncio.sleep(RETRY_S)

    def _join_or_hold(self) -> None:
        try:
            self._introduce(connect(self.holder))
            return
        except (ConnectionError, EOFError):
            pass  # no holder, or one that is just ending
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(self.holder)  # whoever has the name opens the port; the others come by it to their share
            control.listen()
            if self._sock is None:
                self._sock = listening_socket(*self._address)
            start_holder(self._sock, control, self._host_pid)
            self._introduce(connect(self.holder))

    def _introduce(self, control: socket.socket) -> None:
        try:
            control.sendall(f"gateway {self._gateway_id}\n".encode())
            word, fds, _, _ = socket.recv_fds(control, 1, 1)
            if not word or not fds:
                raise EOFError
        except BaseException:
            control.close()
            raise
        control.setblocking(False)
        self._control = control
        shared = socket.socket(fileno=fds[0])
        if self._sock is None:
            self._sock = shared
        else:
            shared.close()  # the same socket

    def _say(self, word: str) -> None:
        if self._control is not None:
            with suppress(OSError):  # no holder: keep_held() starts another
                self._control.sendall(f"{word}\n".encode())


def start_holder(listening: socket.socket, control: socket.socket, host_pid: int) -> None:
    """It has left this process when this returns."""
    fds = (listening.fileno(), control.fileno())
    starter = subprocess.Popen(
        [sys.executable, "-m", "raylane.deployments.gateway.holder", *map(str, fds), str(host_pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ),
        pass_fds=fds,
    )
    starter.wait()
