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

from raylane.cluster.processes import end_processes_with

LOOPBACK = "127.0.0.1"
MARK = "RAYLANE_LOCAL_CLUSTER"  # in the environment of every process of the cluster
ENDS_WITHIN_S = 5.0


def use_a_token() -> None:
    """Make clusters of this process ask for a random token. Call it before Ray is imported, which reads it once."""
    if "RAY_AUTH_TOKEN" not in os.environ:
        if "ray" in sys.modules:
            raise RuntimeError("use_a_token() must be called before ray is imported")
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def local_ray(cpus: int, gpus: int = 0) -> Iterator[Any]:
    """Start Ray on the loopback address with a folder of its own; yields what ray.init returned.

    `cpus` and `gpus` are what Ray may hand out, not what the machine has. Everything is stopped and removed at the end.
    """
    use_a_token()
    folder = Path(tempfile.mkdtemp(prefix="rl-"))  # short: Ray puts sockets below it, and their paths have a limit
    os.environ[MARK] = str(folder)
    os.environ["RAYLANE_ADDRESS"] = LOOPBACK  # Ray turns a loopback node address into the host's own
    os.environ["RAYLANE_RUNTIME"] = str(folder / "raylane")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; silences a warning
    import ray

    try:
        yield ray.init(
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
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        ray.shutdown()
        end_processes_with(MARK, str(folder), ENDS_WITHIN_S)
        del os.environ[MARK], os.environ["RAYLANE_RUNTIME"], os.environ["RAYLANE_ADDRESS"]
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGINT, before)
