"""The `raylane` command as a whole: its version and its exit statuses, in processes of their own."""

import subprocess
import sys
from importlib.metadata import version

import pytest

pytestmark = pytest.mark.process


def raylane(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raylane.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_says_which_version_it_is() -> None:
    done = raylane("--version")
    assert (done.returncode, done.stdout) == (0, f"raylane {version('raylane')} (Ray {version('ray')})\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("deploy",), "Missing argument", id="an argument is missing"),
        pytest.param(("deploy", "no-such-file.yaml"), "no-such-file.yaml", id="a file is missing"),
        pytest.param(("fly",), "No such command", id="no such command"),
        pytest.param(("plan", "--fast"), "No such option", id="no such option"),
    ],
)
def test_wrong_input_is_named_on_stderr_with_status_2(arguments: tuple[str, ...], says: str) -> None:
    done = raylane(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            ("plan", "no-such.yaml", "--from", "x.json", "http://u:word123@h/?key=word123"), id="one too many"
        ),
        pytest.param(("bench", "http://u:word123@h/plan.yaml"), id="a file that is none"),
    ],
)
def test_a_secret_is_not_repeated(arguments: tuple[str, ...]) -> None:
    done = raylane(*arguments)
    assert done.returncode != 0
    assert done.stderr
    assert "word123" not in done.stderr + done.stdout
