"""`raylane demo` as a user runs it: to its end, and interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylane.benchmarks import load_run
from raylane.cluster.local_ray import MARK

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]


def start(out: Path, *flags: str) -> subprocess.Popen[str]:
    """The demo in a process group of its own, as a shell would start it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYLANE_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "raylane.cli.main", "demo", "--out", str(out), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )


def clusters() -> set[str]:
    """Values of the local-cluster mark among all live processes."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            found |= {word.decode().split("=", 1)[1] for word in words if word.startswith(f"{MARK}=".encode())}
    return found


@pytest.fixture
def before() -> Iterator[set[str]]:
    there = clusters()
    yield there
    assert clusters() <= there, "a process of a demo is left"


def test_the_demo_ends_with_a_report_of_both_models(tmp_path: Path, before: set[str]) -> None:
    demo = start(tmp_path)
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


def test_the_simulated_demo_serves_singles_and_pairs_on_twelve_recorded_gpus(tmp_path: Path, before: set[str]) -> None:
    demo = start(tmp_path, "--simulate", "l40s-x12")
    out, err = demo.communicate(timeout=300)
    assert demo.returncode == 0, err
    assert "4 of 4 pairs are on their best link; 12 GPUs leased" in err
    assert "SIMULATED" in out
    folder = Path(out.strip().splitlines()[-1])
    assert json.loads((folder / "results.json").read_text())["simulated"] is True
    (case,) = load_run(folder).summary.cases
    assert {stream.stream for stream in case.streams} == {"llama-8b", "llama-70b"}
    for stream in case.streams:
        assert stream.completed == stream.attempted > 0, (stream.stream, stream.errors)


@pytest.mark.parametrize("after_s", [2.0, 12.0, 30.0], ids=["while Ray starts", "while deploying", "later"])
def test_ctrl_c_leaves_no_process_behind(tmp_path: Path, before: set[str], after_s: float) -> None:
    demo = start(tmp_path)
    time.sleep(after_s)
    os.killpg(demo.pid, signal.SIGINT)
    asked_s = time.monotonic()
    _, err = demo.communicate(timeout=120)
    assert demo.returncode in (1, 130, -signal.SIGINT), err  # 1 from a benchmark, -SIGINT while Python itself starts
    assert time.monotonic() - asked_s < 60.0
    deadline_s = time.monotonic() + 5.0
    while clusters() - before and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert clusters() <= before
