"""A Ray cluster of one machine that lives as long as its context: for the demo and for tests."""

import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from raylane.cluster.errors import UsageError
from raylane.cluster.processes import end_processes_with
from raylane.cluster.proxies import without_proxy
from raylane.cluster.ray_driver import FOLDER_BYTES, OF_ANOTHER_RAY, environment, import_ray, init

LOOPBACK = "127.0.0.1"
MARK = "RAYLANE_LOCAL_CLUSTER"  # in the environment of every process of the cluster
ENDS_WITHIN_S = 5.0
TERMINATED = 128 + signal.SIGTERM
OWN_FOLDER = "/rl-12345678"


def use_a_token() -> None:
    """Make clusters of this process ask for a random token, whatever the environment says of other clusters. Call it
    before Ray is imported, which reads it once."""
    if "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif "RAY_AUTH_TOKEN" not in os.environ:
        raise RuntimeError("use_a_token() must be called before ray is imported")


@contextmanager
def local_ray(cpus: int, gpus: int = 0) -> Iterator[Any]:
    """Start Ray on the loopback address with a folder of its own; yields what ray.init returned.

    `cpus` and `gpus` are what Ray may hand out, not what the machine has. Variables that name another Ray are left out
    of account. Everything is stopped and removed at the end. Raises FailedError when Ray does not start.
    """
    use_a_token()
    with own_folder() as folder, guarded(folder), environment(local_environment(folder)):
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # of a script, which would leave Ray behind
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
        try:
            with apart():
                context = init(
                    num_cpus=cpus,
                    num_gpus=gpus,
                    include_dashboard=True,
                    dashboard_host=LOOPBACK,
                    dashboard_port=None,
                    namespace="raylane",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                    _node_ip_address=LOOPBACK,
                    _temp_dir=str(folder),
                )
            yield context
        finally:
            with undisturbed():
                end(folder)


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder that is removed at the end with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="rl-", dir=temporary_folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """While it lasts, a process of its own waits for the death of this one, to end what it could not end itself."""
    command = [sys.executable, "-m", "raylane.cluster.guard", MARK, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True):
        yield  # the end of the block closes the pipe and waits for the guard


@contextmanager
def apart() -> Iterator[None]:
    """While it lasts, what Ray starts gets process groups of its own: a signal to this process's group, as of `timeout`
    or systemd, would end Ray below this process, which then ends without unwinding."""
    import_ray()
    services: Any = import_module("ray._private.services")
    theirs = services.ConsolePopen
    services.ConsolePopen = partial(theirs, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = theirs


def local_environment(folder: Path) -> dict[str, str | None]:
    """What is changed in the environment for a Ray in this folder, its workers and engines."""
    return {
        **dict.fromkeys(OF_ANOTHER_RAY),
        **without_proxy(os.environ),
        "TMPDIR": str(folder),  # what its processes leave behind goes with it
        MARK: str(folder),
        "RAYLANE_ADDRESS": LOOPBACK,  # Ray turns a loopback node address into the host's own
        "RAYLANE_RUNTIME": str(folder / "raylane"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; silences a warning
    }


def temporary_folder() -> str:
    """The system's folder for temporary files, or /tmp where Ray cannot put its sockets below that: a socket's path is
    short and ASCII. Raises UsageError when neither can be used."""
    room = FOLDER_BYTES - len(OWN_FOLDER)
    try:
        usual = tempfile.gettempdir()
    except OSError as error:
        raise UsageError(f"TMPDIR: {error.strerror}") from error
    for folder in (usual, "/tmp", "/var/tmp"):  # noqa: S108 - the folder made in it has a random name
        if folder.isascii() and len(folder) <= room and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise UsageError(f"TMPDIR: {usual!r} is too long for Ray's sockets (at most {room} ASCII letters), no /tmp to use")


@contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C or SIGTERM must not leave half of it running."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(folder: Path) -> None:
    """Stop the Ray of this folder and end what is left of it."""
    import ray

    try:
        ray.shutdown()
    finally:
        end_processes_with(MARK, str(folder), ENDS_WITHIN_S)
