"""Ways from a client to an engine's port: through one raylane gateway worker, through one nginx worker."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from raylane.cluster.errors import FailedError
from raylane.deployments.directory.reports import Endpoint, Table
from raylane.deployments.gateway.listening import listening_socket
from raylane.deployments.gateway.worker import WorkerSettings

HOST = "127.0.0.1"
MODEL = "stub"
STARTS_WITHIN_S = 20.0
ENDS_WITHIN_S = 5.0
NGINX_CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream engine {{ server {engine}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen {listen} backlog=4096;
        location / {{
            proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; proxy_read_timeout 600s;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Route:
    """One way to the stub."""

    name: str
    port: int
    proxy_pid: int | None = None  # the process between client and stub


@contextmanager
def raylane_worker(engine_port: int) -> Iterator[Route]:
    """One gateway worker process with the stub as its only replica, steered as the gateway steers its workers."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="raylane-metrics-"))
        log = stack.enter_context((Path(folder) / "log").open("w+"))
        stack.callback(_tell_of_log, log)
        to_worker, theirs = socket.socketpair()
        worker = subprocess.Popen(
            [sys.executable, "-m", "raylane.deployments.gateway.worker"],
            stdin=theirs.fileno(),
            stderr=log,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder},
        )
        theirs.close()
        stack.enter_context(to_worker)
        from_worker = stack.enter_context(to_worker.makefile("rb"))
        stack.callback(_end, worker)  # before the closing, which waits for the thread that reads
        engine = Endpoint("stub-1", MODEL, f"http://{HOST}:{engine_port}", "key", reported_load=0)
        table = Table("epoch", 1, settled=True, models=(MODEL,), endpoints=(engine,))
        with listening_socket(HOST, 0) as listening:
            socket.send_fds(to_worker, [b"\0"], [listening.fileno()])
        for message in (asdict(WorkerSettings(1.0)), {"table": table.to_json()}):
            to_worker.sendall(json.dumps(message).encode() + b"\n")
        port = _said(from_worker, "listening")
        _said(from_worker, "applied")
        threading.Thread(target=from_worker.read, daemon=True).start()  # it reports its traffic each second
        yield Route("raylane, 1 worker", port, worker.pid)


def _tell_of_log(log: IO[str]) -> None:
    """What the worker logged: how much, and the last line. A quiet run logs nothing."""
    log.seek(0)
    if lines := log.readlines():
        print(f"the gateway worker logged {len(lines)} lines, the last: {lines[-1].strip()}", file=sys.stderr)


def _said(from_worker: IO[bytes], key: str) -> int:
    for line in from_worker:
        said = json.loads(line)
        if key in said:
            return said[key] if isinstance(said[key], int) else 0
        if "failed" in said:
            raise FailedError(said["failed"])
    raise FailedError(f"the gateway worker ended before it said {key!r}")


@contextmanager
def nginx_proxy(engine_port: int) -> Iterator[Route]:
    """nginx with one worker process, unbuffered, keeping its connections to the stub."""
    program = program_path("nginx")
    if program is None:
        raise FailedError("nginx is not installed")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raylane-nginx-")))
        port = _free_port()
        config = NGINX_CONFIG.format(folder=folder, engine=f"{HOST}:{engine_port}", listen=f"{HOST}:{port}")
        (folder / "nginx.conf").write_text(config)
        files = ("-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"))
        main_process = subprocess.Popen([program, *files])
        stack.callback(_end, main_process)
        _wait_for_port(port, main_process)
        yield Route("nginx, 1 worker", port, _only_child(main_process.pid))


def program_path(name: str) -> str | None:
    """Where a program is; Debian keeps nginx where only root looks."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + STARTS_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    raise FailedError(f"nothing listens on port {port}; exit status {process.poll()}")


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
