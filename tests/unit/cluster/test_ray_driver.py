"""A process as a driver of Ray: what of the user's environment counts, and what is said when there is no cluster."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from raylane.cluster import ray_driver
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.local_ray import OWN_FOLDER, local_environment, temporary_folder
from raylane.cluster.ray_driver import FOLDER_BYTES, LONGEST_SOCKET, environment, init, join

pytestmark = pytest.mark.process

NOBODY = "127.0.0.1:1"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `ray.init` was called with, and the variables it would read."""
    calls: list[dict[str, Any]] = []

    def fake(**options: Any) -> str:
        calls.append({**options, **{name: os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_RUNTIME_ENV")}})
        return "context"

    monkeypatch.setattr(ray, "init", fake)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize("given", ["--address", "RAY_ADDRESS"])
def test_a_running_cluster_is_joined_without_the_users_runtime_environment(
    monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]], given: str
) -> None:
    monkeypatch.setenv("RAY_RUNTIME_ENV", '{"working_dir": "."}')
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        if given == "RAY_ADDRESS":
            monkeypatch.setenv("RAY_ADDRESS", address)
        assert join("auto" if given == "RAY_ADDRESS" else address) == "context"
    assert [(call["address"], call["RAY_ADDRESS"], call["RAY_RUNTIME_ENV"]) for call in asked] == [
        (address, None, None)
    ]
    assert os.environ["RAY_RUNTIME_ENV"] == '{"working_dir": "."}'


@pytest.mark.parametrize("text", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "local", "127.0.0.1", "::1"])
def test_what_is_no_address_of_a_head_is_named(
    monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]], text: str
) -> None:
    with pytest.raises(UsageError, match=r"^--address: expected HOST:PORT"):
        join(text)
    monkeypatch.setenv("RAY_ADDRESS", text)
    with pytest.raises(UsageError, match=r"^RAY_ADDRESS: expected HOST:PORT"):
        join("auto")
    assert asked == []


def test_a_head_that_is_gone_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(FailedError, match=f"--address: no Ray cluster answers at {NOBODY}"):
        join(NOBODY)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    kept = tmp_path / "ray" / "ray_current_cluster"
    kept.parent.mkdir()
    kept.write_text(NOBODY)
    monkeypatch.setattr(ray_driver, "running_names", set)
    with pytest.raises(FailedError, match=f"{kept}, which Ray keeps: no Ray cluster answers"):
        join("auto")
    assert asked == []


@pytest.mark.parametrize(
    "error", [ValueError("bad\nand more"), RuntimeError("bad"), OSError(28, "bad"), KeyError("bad")]
)
def test_whatever_ray_raises_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(**options: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(FailedError, match=r"^Ray: .*bad") as failed:
        init()
    assert "\n" not in str(failed.value)


def test_ray_does_not_take_over_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(**options: Any) -> None:
        ray._private.utils.set_sigterm_handler(  # type: ignore[no-untyped-call]
            lambda *_: sys.exit(15)
        )

    def own(*_: object) -> None: ...

    monkeypatch.setattr(ray, "init", take)
    before = signal.signal(signal.SIGTERM, own)
    try:
        init()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ray_dumps_no_stack_when_its_driver_is_told_to_end() -> None:
    code = (
        "import os; from raylane.cluster.ray_driver import import_ray; import_ray();"
        "from ray._private.ray_constants import RAY_DISABLE_FAILURE_SIGNAL_HANDLER as off;"
        "print(off, 'RAY_DISABLE_FAILURE_SIGNAL_HANDLER' in os.environ)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_an_environment_lasts_as_long_as_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLANE_A", "before")
    monkeypatch.delenv("RAYLANE_B", raising=False)
    with environment({"RAYLANE_A": None, "RAYLANE_B": "now"}):
        assert (os.environ.get("RAYLANE_A"), os.environ.get("RAYLANE_B")) == (None, "now")
    assert (os.environ.get("RAYLANE_A"), os.environ.get("RAYLANE_B")) == ("before", None)


def test_a_local_ray_hears_nothing_of_other_clusters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_RUNTIME_ENV", "RAY_TMPDIR", "RAY_API_SERVER_ADDRESS")
    for name in names:
        monkeypatch.setenv(name, "of another cluster")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    with environment(local_environment(tmp_path)):
        assert [name for name in names if name in os.environ] == []
        assert os.environ["http_proxy"] == "http://proxy.example:3128"  # engines fetch models through it
        assert "127.0.0.1" in os.environ["no_proxy"].split(",")
        assert os.environ["TMPDIR"] == str(tmp_path)


@pytest.mark.parametrize(
    ("usual", "expected"),
    [
        pytest.param("/var/tmp", "/var/tmp", id="a short one is used"),
        pytest.param("/tmp/" + "x" * 60, "/tmp", id="too long"),
        pytest.param("/tmp/b-ü", "/tmp", id="not ASCII"),
        pytest.param("/no-such-folder", "/tmp", id="it does not exist"),
    ],
)
def test_rays_sockets_get_a_folder_that_they_fit_in(monkeypatch: pytest.MonkeyPatch, usual: str, expected: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", usual)
    assert temporary_folder() == expected


def test_a_socket_fits_below_the_longest_folder_that_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    room = FOLDER_BYTES - len(OWN_FOLDER)
    folder = Path("/tmp") / f"{os.getpid()}{time.monotonic_ns()}"[-(room - len("/tmp/")) :].rjust(room - 5, "x")
    socket_path = Path(f"{folder}{OWN_FOLDER}{LONGEST_SOCKET}")
    socket_path.parent.mkdir(parents=True)
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert temporary_folder() == str(folder)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(socket_path))
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
