"""A Ray cluster of one machine that lives as long as its context: for the demo and for tests."""

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raylane.cluster.errors import UsageError
from raylane.cluster.processes import end_processes_with
from raylane.cluster.proxies import without_proxy
from raylane.cluster.ray_driver import OF_ANOTHER_RAY, environment, init

LOOPBACK = "127.0.0.1"
MARK = "RAYLANE_LOCAL_CLUSTER"  # in the environment of every process of the cluster
ENDS_WITHIN_S = 5.0
SOCKET_PATH_BYTES = 107  # the kernel's limit
LONGEST_SOCKET = "/rl-12345678/session_2026-12-01_00-00-00_123456_4194304/sockets/dash_TaskEventsHead"


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
    folder = Path(tempfile.mkdtemp(prefix="rl-", dir=temporary_folder()))
    with environment(local_environment(folder)):
        try:
            yield init(
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
        finally:
            with undisturbed():
                end(folder)


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
    room = SOCKET_PATH_BYTES - len(LONGEST_SOCKET)
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
    """Stop the Ray of this folder, end what is left of it, and remove the folder."""
    import ray

    try:
        ray.shutdown()
    finally:
        end_processes_with(MARK, str(folder), ENDS_WITHIN_S)
        shutil.rmtree(folder, ignore_errors=True)
