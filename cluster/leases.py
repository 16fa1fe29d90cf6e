"""Who holds which GPU and which ports on this host: one lock file each, held by a replica and its engine's supervisor.

A lock is an flock on an open file: the kernel releases it when the last process that has the file open dies, so a lease
can be neither forgotten nor stale. Starting replicas take turns through one host-wide lock while they look and choose.
Containers of one host share leases when they mount the same host folder at $RAYLANE_RUNTIME.
"""

import fcntl
import json
import os
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from raylane.cluster.choose import Choice, Refusal
from raylane.cluster.errors import FailedError, UsageError

PORT_BLOCK = 32  # ports of one replica: the first for HTTP, the rest for the engine's own processes
PORT_BLOCKS = range(20_000, 32_000, PORT_BLOCK)  # below Linux's ephemeral ports (32768 and up)


@dataclass(frozen=True)
class Lease:
    """GPUs and ports held for one replica. Whoever keeps `lock_fds` open holds it."""

    ports: range
    lock_fds: tuple[int, ...]
    choice: Choice  # the GPUs and why these

    def gpu_fds(self) -> dict[str, int]:
        """The lock file of each GPU."""
        return dict(zip(self.choice.uuids, self.lock_fds, strict=False))  # the last file is that of the ports

    def close(self) -> None:
        """Let go here; the lease goes on where the files were handed on."""
        for fd in self.lock_fds:
            with suppress(OSError):
                os.close(fd)


@dataclass(frozen=True)
class Holder:
    """Who wrote itself into a held lock file."""

    resource: str  # GPU uuid or first port
    owner: str
    pid: int


Chooser = Callable[[frozenset[str]], Choice | Refusal]


def runtime_folder() -> Path:
    """Where locks, logs and cached probes of this host are kept: $RAYLANE_RUNTIME or one folder a user in /tmp.

    Raises UsageError when it cannot be used, or when the one in /tmp is another user's.
    """
    given = os.environ.get("RAYLANE_RUNTIME")
    folder = Path(f"/tmp/raylane-{os.getuid()}" if given is None else given)  # noqa: S108 - its owner is checked
    with using(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if given is None and (owner := folder.lstat().st_uid) != os.getuid():  # anybody may make this name first
            raise UsageError(f"runtime folder {folder} is user {owner}'s, not {os.getuid()}'s; set RAYLANE_RUNTIME")
        for part in ("gpus", "ports", "logs"):
            (folder / part).mkdir(exist_ok=True)
    return folder


@contextmanager
def using(folder: Path) -> Iterator[None]:
    """UsageError in place of what the system says of a runtime folder that cannot be used."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"runtime folder {folder} cannot be used: {error.strerror}; set RAYLANE_RUNTIME") from error


def take_lease(
    owner: str, gpu_uuids: Iterable[str], choose: Chooser, host: str, folder: Path, own: Lease | None = None
) -> Lease:
    """Lease GPUs (by `choose` among the free ones of `gpu_uuids`) and a block of ports for `owner`.

    The GPUs of `own`, a lease that this process has open, count as free: what is chosen of them both leases then hold.
    Raises FailedError with the reason when there is no good choice, no free port block or a lock that cannot be opened,
    UsageError when the folder cannot be used.
    """
    ours = {} if own is None else own.gpu_fds()
    with _one_at_a_time(folder):  # also while locks are given back: the next one must find them free
        fds: list[int] = []
        kept: list[int] = []
        try:
            free: dict[str, int] = {}
            for uuid in gpu_uuids:
                if (fd := _have(folder, uuid, ours)) is not None:
                    fds.append(fd)
                    free[uuid] = fd
            choice = choose(frozenset(free))
            if isinstance(choice, Refusal):
                raise FailedError(f"no GPUs for {owner}: {choice.reason}")
            ports, port_fd = _lease_ports(folder, host)
            fds.append(port_fd)
            chosen = [*(free[uuid] for uuid in choice.uuids), port_fd]
            for fd in chosen:
                _sign(fd, owner)
            kept = chosen
        finally:
            _close(fd for fd in fds if fd not in kept)
    return Lease(ports, tuple(kept), choice)


@contextmanager
def hold_free_gpus(owner: str, gpu_uuids: Iterable[str], folder: Path) -> Iterator[dict[str, str]]:
    """Hold those of the GPUs that nobody holds, without ports, while inside; gives who holds each of the others."""
    fds: list[int] = []
    held: dict[str, str] = {}
    try:
        with _one_at_a_time(folder):
            for uuid in gpu_uuids:
                path = folder / "gpus" / uuid
                if (fd := _try_lock(path)) is not None:
                    fds.append(fd)
                    _sign(fd, owner)
                else:
                    holder = _signed(path)
                    held[uuid] = "someone" if holder is None else holder.owner
        yield held
    finally:
        _close(fds)


def free_gpus(gpu_uuids: Iterable[str], folder: Path) -> frozenset[str]:
    """Those of the GPUs that nobody holds at this moment."""
    free = set()
    with _one_at_a_time(folder):
        for uuid in gpu_uuids:
            if (fd := _try_lock(folder / "gpus" / uuid)) is not None:
                os.close(fd)
                free.add(uuid)
    return frozenset(free)


def holders(folder: Path, part: str = "gpus") -> list[Holder]:
    """The held locks of this host ('gpus' or 'ports') and who holds them."""
    found = []
    with _one_at_a_time(folder):  # looking takes the lock for a moment; a starting replica must not see that
        with using(folder):
            paths = sorted((folder / part).iterdir())
        for path in paths:
            fd = _try_lock(path)
            if fd is not None:
                os.close(fd)
            elif (holder := _signed(path)) is not None:
                found.append(holder)
    return found


def _signed(path: Path) -> Holder | None:
    """Who wrote itself into a lock file; None where nobody has, or where it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        signed = json.loads(path.read_text())
        return Holder(path.name, signed["owner"], signed["pid"])
    return None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with using(folder):
        file = (folder / "choosing.lock").open("w")
    with file as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _have(folder: Path, uuid: str, ours: dict[str, int]) -> int | None:
    """A GPU's lock file, locked: a second handle of our own lock, or a new one; None where another holds it."""
    return os.dup(ours[uuid]) if uuid in ours else _try_lock(folder / "gpus" / uuid)


def _try_lock(path: Path) -> int | None:
    """The file, open and locked; None where another holds it. Raises FailedError where that cannot be tried."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedError(f"{path}: cannot be locked: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as error:
        os.close(fd)
        raise FailedError(f"{path}: cannot be locked: {error.strerror}") from error
    return fd


def _sign(fd: int, owner: str) -> None:
    """Write the owner into its lock file. Raises FailedError where that cannot be done, as on a full disk."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"owner": owner, "pid": os.getpid()}).encode(), 0)
    except OSError as error:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        raise FailedError(f"{path}: cannot be signed by {owner}: {error.strerror}") from error


def _lease_ports(folder: Path, host: str) -> tuple[range, int]:
    if not _bindable(host, 0):
        raise FailedError(f"engines cannot listen on {host}: it is no address of this host (RAYLANE_ADDRESS)")
    start = zlib.crc32(str(folder).encode()) % len(PORT_BLOCKS)
    for first in (*PORT_BLOCKS[start:], *PORT_BLOCKS[:start]):  # clusters of other folders begin elsewhere
        fd = _try_lock(folder / "ports" / str(first))
        if fd is None:
            continue
        if _bindable(host, first):
            return range(first, first + PORT_BLOCK), fd
        os.close(fd)
    raise FailedError(f"no free block of {PORT_BLOCK} ports between {PORT_BLOCKS.start} and {PORT_BLOCKS.stop}")


def _bindable(host: str, port: int) -> bool:
    """False when a program that takes no leases sits on the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return False
    return True


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
