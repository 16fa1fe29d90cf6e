"""`raylane demo` as a user runs it: to its end, and interrupted."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from raylane.benchmarks import load_run
from raylane.cluster.local_ray import MARK
from raylane.cluster.processes import marked_processes

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]


# What users set for something else: none of it is the business of a demo, which starts a Ray of its own.
FOR_SOMETHING_ELSE = {
    "RAY_ADDRESS": "http://127.0.0.1:8265",
    "RAY_NAMESPACE": "mine",
    "RAY_RUNTIME_ENV": '{"working_dir": "/no-such-folder"}',
    "RAY_TMPDIR": "/no-such-folder",
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1",
    "RAY_AUTH_MODE": "junk",
    "RAY_OVERRIDE_RESOURCES": "junk",
    "CUDA_VISIBLE_DEVICES": "0",
    "RAYLANE_TOPOLOGY": "/no-such-file",
}


def start(out: Path, *flags: str, **variables: str) -> subprocess.Popen[str]:
    """The demo in a process group of its own, as a shell would start it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYLANE_"))}
    for name in ("no_proxy", "NO_PROXY"):
        env.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "raylane.cli.main", "demo", "--out", str(out), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env | variables,
        start_new_session=True,
    )


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for a demo's temporary files, short enough for Ray's sockets; in the end nothing of the demo is left."""
    folder = Path(tempfile.mkdtemp(prefix="d-", dir="/tmp"))
    yield folder
    deadline_s = time.monotonic() + 30.0
    while (left := left_of(folder)) and time.monotonic() < deadline_s:  # after kill -9 others clean up
        time.sleep(0.1)
    assert left == []
    folder.rmdir()


def left_of(temporary: Path) -> list[str]:
    """Processes of a cluster below the folder, and what is in it."""
    marks = (
        f"process {pid} of {mark}" for pid, mark in marked_processes(MARK).items() if mark.startswith(f"{temporary}/")
    )
    return [*marks, *(str(entry) for entry in temporary.iterdir())]


class Proxy:
    """Refuses whatever it is asked, and keeps the heads of all requests."""

    def __init__(self, server: socket.socket) -> None:
        self.url = f"http://127.0.0.1:{server.getsockname()[1]}"
        self.seen: list[str] = []
        self._server = server

    def refuse(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:  # it was closed
                return
            with peer, suppress(OSError):
                self.seen.append(peer.recv(65536).decode(errors="replace"))
                peer.sendall(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


@contextmanager
def recording_proxy() -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = Proxy(server)
        thread = threading.Thread(target=proxy.refuse)
        thread.start()
        yield proxy
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_the_demo_ends_with_a_report_of_both_models(tmp_path: Path, temporary: Path) -> None:
    demo = start(tmp_path, TMPDIR=str(temporary))
    out, err = demo.communicate(timeout=500)
    assert demo.returncode == 0, err
    folder = Path(out.strip().splitlines()[-1])
    run = load_run(folder)
    assert run.complete
    for case in run.summary.cases:
        for stream in case.streams:
            assert stream.completed == stream.attempted > 0, (case.case, stream.errors)
    page = (folder / "report.html").read_text()
    assert {"tiny", "tiny-tp2"} <= {stream.stream for case in run.summary.cases for stream in case.streams}
    assert all(word in page for word in ("TTFT", "TPOT", "tok/s", "$ per million output tokens", "<svg"))
    assert json.loads((folder / "results.json").read_text())["simulated"] is False
    assert re.search(r"tiny-tp2.*\d", out)


def test_the_simulated_demo_serves_singles_and_pairs_on_twelve_recorded_gpus(tmp_path: Path) -> None:
    folder = tmp_path / "ü" / ("x" * 60)
    folder.mkdir(parents=True)
    with recording_proxy() as proxy:
        demo = start(
            tmp_path,
            *("--simulate", "l40s-x12"),
            **FOR_SOMETHING_ELSE,
            **dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), proxy.url),
            TMPDIR=str(folder),
        )
        out, err = demo.communicate(timeout=300)
    assert demo.returncode == 0, err
    assert [line for line in proxy.seen if "/api/" in line or "authorization" in line.lower()] == []
    assert "4 of 4 pairs are on their best link; 12 GPUs leased" in err
    assert "SIMULATED" in out
    folder = Path(out.strip().splitlines()[-1])
    assert json.loads((folder / "results.json").read_text())["simulated"] is True
    (case,) = load_run(folder).summary.cases
    assert {stream.stream for stream in case.streams} == {"llama-8b", "llama-70b"}
    for stream in case.streams:
        assert stream.completed == stream.attempted > 0, (stream.stream, stream.errors)


LOUD = ("Traceback", "Fatal Python error", "SIGTERM received")


@pytest.mark.parametrize(
    ("number", "after_s"),
    [
        pytest.param(signal.SIGINT, 2.0, id="while Ray starts"),
        pytest.param(signal.SIGINT, 12.0, id="while deploying"),
        pytest.param(signal.SIGINT, 30.0, id="later"),
        pytest.param(signal.SIGTERM, 5.0, id="SIGTERM while Ray starts"),
        pytest.param(signal.SIGTERM, 12.0, id="SIGTERM while deploying"),
        pytest.param(signal.SIGKILL, 12.0, id="killed while deploying"),
    ],
)
def test_ctrl_c_leaves_no_process_behind(
    tmp_path: Path, temporary: Path, after_s: float, number: signal.Signals
) -> None:
    demo = start(tmp_path, TMPDIR=str(temporary))
    time.sleep(after_s)
    os.killpg(demo.pid, number)
    asked_s = time.monotonic()
    _, err = demo.communicate(timeout=120)
    quiet = {signal.SIGINT: (130, 1), signal.SIGTERM: (143,), signal.SIGKILL: ()}  # 1 from a benchmark
    assert demo.returncode in (-number, *quiet[number]), err
    assert [words for words in LOUD if words in err] == [], err
    assert time.monotonic() - asked_s < 60.0
