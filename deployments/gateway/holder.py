"""The process that holds a gateway's listening socket: connections wait in its queue whoever else dies.

Standard library only, nobody's child, one for each host and port. It accepts nothing itself: gateways get the socket
from it and hand it on to their workers. They and orphaned workers (whose gateway died) keep a connection to it, by an
abstract unix socket: that name is free as soon as nobody listens, and belongs to a network namespace as the port does.

argv: descriptor of the listening socket, descriptor of the control socket, process id of the host's raylet.
A gateway says "gateway ID" and gets the listening socket, then "serving" when its workers listen, and "goodbye" when it
stops in order. A worker whose gateway died says "orphan ID"; end of file tells it to stop.
"""

import os
import selectors
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

ADOPTED_WITHIN_S = 120.0  # Serve replaces a dead replica within seconds; this is for a cluster in trouble
PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of linux/socket.h


@dataclass
class Guests:
    """Who is connected, by connection. Pure: the caller reads clock and sockets."""

    crashed_s: float | None  # since when the port is served by orphans alone, or by nobody yet
    gateways: dict[int, str] = field(default_factory=dict)
    serving: set[int] = field(default_factory=set)
    orphans: dict[int, str] = field(default_factory=dict)

    def said(self, guest: int, words: str) -> None:
        match words.split():
            case ["gateway", gateway]:
                self.gateways[guest] = gateway
            case ["orphan", gateway]:
                self.orphans[guest] = gateway
            case ["serving"]:
                self.serving.add(guest)
                self.crashed_s = None
            case ["goodbye"]:
                self.gateways.pop(guest, None)
                self.serving.discard(guest)
                self.crashed_s = None

    def left(self, guest: int, now_s: float) -> None:
        """Its connection ended; a gateway that served and did not say goodbye has crashed."""
        if guest in self.serving:
            self.crashed_s = now_s
        self.serving.discard(guest)
        self.gateways.pop(guest, None)
        self.orphans.pop(guest, None)

    def replaced(self) -> list[int]:
        """Orphans whose work another gateway does now."""
        serving = {self.gateways[guest] for guest in self.serving}
        return [guest for guest, gateway in self.orphans.items() if serving - {gateway}]

    def over(self, now_s: float, *, host_gone: bool) -> bool:
        """Whether nobody needs the port any more, or nobody has come for it in time."""
        if self.gateways:
            return False
        return self.crashed_s is None or host_gone or now_s - self.crashed_s >= ADOPTED_WITHIN_S


def leave_caller() -> None:
    """Become nobody's direct child, in a process group of its own.

    Not in a session of its own: to Linux's scheduler (autogroup) that is another user's work, and on busy cores each
    request through such a worker cost a fifth more CPU time.
    """
    if os.fork():
        os._exit(0)
    os.setpgid(0, 0)


def same_user(peer: socket.socket) -> bool:
    """Whether the other end is a process of this user's."""
    _, uid, _ = PEER_CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size))
    return bool(uid == os.getuid())


def connect(name: str) -> socket.socket:
    """A connection to the holder of that name. Raises OSError when there is none, or only another user's."""
    control = socket.socket(socket.AF_UNIX)
    try:
        control.settimeout(5.0)
        control.connect(name)
        if not same_user(control):
            raise PermissionError("the holder of this port is another user's")
    except OSError:
        control.close()
        raise
    return control


class Holder:
    """The loop around Guests."""

    def __init__(self, listening: socket.socket, control: socket.socket, host_pid: int) -> None:
        self._listening = listening
        self._control = control
        self._host_gone = False
        self._guests = Guests(time.monotonic())
        self._sockets: dict[int, socket.socket] = {}
        self._events = selectors.DefaultSelector()
        self._events.register(control, selectors.EVENT_READ)
        try:
            self._host = os.pidfd_open(host_pid)
            self._events.register(self._host, selectors.EVENT_READ)
        except ProcessLookupError:
            self._host, self._host_gone = -1, True

    def run(self) -> None:
        while not self._guests.over(time.monotonic(), host_gone=self._host_gone):
            for key, _ in self._events.select(1.0):
                if key.fd == self._host:
                    self._host_gone = True
                    self._events.unregister(self._host)
                elif key.fd == self._control.fileno():
                    self._welcome()
                else:
                    self._hear(key.fd)
            for orphan in self._guests.replaced():
                self._part_with(orphan)

    def _welcome(self) -> None:
        guest, _ = self._control.accept()
        if not same_user(guest):
            guest.close()
            return
        self._sockets[guest.fileno()] = guest
        self._events.register(guest, selectors.EVENT_READ)

    def _hear(self, guest: int) -> None:
        words = b""
        with suppress(ConnectionError):
            words = self._sockets[guest].recv(4096)
        if not words:
            self._part_with(guest)
            return
        for line in words.decode().splitlines():
            self._guests.said(guest, line)
            if line.startswith("gateway "):
                with suppress(OSError):  # gone already; its end of file is next
                    socket.send_fds(self._sockets[guest], [b"\0"], [self._listening.fileno()])

    def _part_with(self, guest: int) -> None:
        self._guests.left(guest, time.monotonic())
        self._events.unregister(guest)
        self._sockets.pop(guest).close()


def main() -> None:
    leave_caller()
    listening, control, host_pid = (int(word) for word in sys.argv[1:])
    Holder(socket.socket(fileno=listening), socket.socket(fileno=control), host_pid).run()


if __name__ == "__main__":
    main()
