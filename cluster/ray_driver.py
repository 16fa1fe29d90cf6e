"""This process as a driver of Ray: its import, and a `ray.init` whose errors are one line and that keeps signals."""

import importlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raylane.cluster.addresses import split_address
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.interrupts import ends_at_once
from raylane.cluster.processes import name_of

ANSWERS_WITHIN_S = 5.0
LONGEST_SOCKET = "/session_2026-12-01_00-00-00_123456_4194304/sockets/dash_TaskEventsHead"
FOLDER_BYTES = 107 - len(LONGEST_SOCKET)  # of Ray's folder; the kernel allows 107 for the path of a socket
OF_ANOTHER_RAY = (  # variables of Ray's that point a new cluster, or its drivers, at something of another one
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_OVERRIDE_DASHBOARD_URL",
    "RAY_REDIS_ADDRESS",
    "RAY_external_storage_namespace",
    "RAY_NAMESPACE",
    "RAY_TMPDIR",
    "RAY_RUNTIME_ENV",
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_OVERRIDE_RESOURCES",
    "RAY_OVERRIDE_LABELS",
    "RAY_START_HOOK",
    "RAY_grpc_enable_http_proxy",  # what stays inside the cluster goes through no proxy
)


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """While it lasts, these variables have these values; None: they are not set."""
    before = {name: os.environ.get(name) for name in changes}

    def put(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(changes)
    try:
        yield
    finally:
        put(before)


def import_ray() -> None:
    """Import Ray so that a SIGTERM to this process does not make it dump its stack. Ray reads its token now, too."""
    if "ray" not in sys.modules:
        with environment({"RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"}):  # of this process only, not of those it starts
            importlib.import_module("ray")


def init(**options: Any) -> Any:
    """What `ray.init` returns. FailedError, one line, in place of whatever Ray raises; SIGTERM stays ours."""
    import_ray()
    import ray

    try:
        with sigterm_kept():
            return ray.init(**options)
    except Exception as error:  # nothing that Ray documents: OSError, ValueError, RuntimeError and others were seen
        raise FailedError(f"Ray: {one_line(error)}") from error


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """While it lasts, Ray puts no handler of its own in place of this process's for SIGTERM, with another status."""
    import ray._private.utils as at

    theirs = at.set_sigterm_handler
    at.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        at.set_sigterm_handler = theirs


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind when it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def join(address: str) -> Any:
    """Connect this process to a running cluster: HOST:PORT, or "auto": RAY_ADDRESS, or else what Ray finds here.

    Raises UsageError for what is no address, FailedError when nothing answers there.
    """
    from_environment = os.environ.get("RAY_ADDRESS", "") if address == "auto" else ""
    meant = from_environment or address
    if meant != "auto":
        check_address(meant, "RAY_ADDRESS" if from_environment else "--address")
    elif (kept := address_file()).is_file() and not {"gcs_server", "raylet"} & running_names():
        check_address(kept.read_text(errors="replace").strip(), f"{kept}, which Ray keeps")
    with (
        environment({"RAY_ADDRESS": None, "RAY_RUNTIME_ENV": None, "RAY_NAMESPACE": None}),
        ends_at_once(signal.SIGINT, signal.SIGTERM),
    ):
        return init(address=meant, namespace="raylane", log_to_driver=False, logging_level="ERROR")


def check_address(text: str, source: str) -> None:
    """Make sure that something listens there: Ray itself would try for more than a minute. `source` gave the address.

    Raises UsageError when it is no HOST:PORT, FailedError when nothing answers.
    """
    try:
        host, port = split_address(text)
    except ValueError as error:
        raise UsageError(f"{source}: expected HOST:PORT of a cluster's head (got {text!r}): {error}") from error
    try:
        socket.create_connection((host, port), timeout=ANSWERS_WITHIN_S).close()
    except OSError as error:
        raise FailedError(f"{source}: no Ray cluster answers at {text}: {error.strerror or error}") from error


def default_folder() -> tuple[Path, str]:
    """Ray's folder where none is given, and the variable that names it (TMPDIR when none does)."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if variable in os.environ:
            return Path(os.environ[variable]) / "ray", variable
    return Path("/tmp/ray"), "TMPDIR"  # noqa: S108 - Ray's own


def address_file() -> Path:
    """Where Ray keeps the address of the cluster that this host was started in last, perhaps long ago."""
    return default_folder()[0] / "ray_current_cluster"


def running_names() -> set[str]:
    """The kernel's names of all processes of this host."""
    return {name_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
