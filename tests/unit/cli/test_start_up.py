"""What the command line imports before it must, and how it ends when it is interrupted at that."""

import json
import os
import signal
import subprocess
import sys

import pytest
import typer

from raylane.cli.app import build_app
from raylane.cli.commands import COMMANDS

pytestmark = pytest.mark.process

HEAVY = {"ray", "matplotlib", "pandas", "pyarrow", "aiohttp", "uvloop", "numpy", "pydantic"}
SHOW_MODULES = """
import json, sys
from raylane.cli.main import main
try:
    main()
except SystemExit as ended:
    print(json.dumps([ended.code, sorted(sys.modules)]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        pytest.param(["--help"], set(), id="help"),
        pytest.param(["--version"], set(), id="version"),
        pytest.param(["plan", "--help"], {"pydantic"}, id="a command's help"),
        pytest.param(["topology"], {"numpy", "pydantic"}, id="a command that needs little"),
        pytest.param(["demo", "--help"], {"pydantic"}, id="the help of one that needs all"),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(words: list[str], allowed: set[str]) -> None:
    done = subprocess.run([sys.executable, "-c", SHOW_MODULES, *words], capture_output=True, text=True, timeout=120)
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status in (0, None), done.stderr
    assert HEAVY & set(modules) <= allowed


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_line_in_the_overview_is_its_own(name: str) -> None:
    for words in ([name], []):
        command = typer.main.get_command(build_app(words)).commands[name]  # type: ignore[attr-defined]
        assert command.help == COMMANDS[name].help


@pytest.mark.parametrize(
    "module",
    [
        "typer",
        "raylane.cli.app",
        "raylane.cluster.local_ray",
        "ray._raylet",
        "numpy",
        "pyarrow.lib",
        "matplotlib.ft2font",
        "matplotlib.backends.backend_mixed",
    ],
)
def test_an_interrupt_while_python_imports_is_quiet(module: str) -> None:
    """At moments that Python itself names: it says on stderr when each of these has been imported."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "raylane.cli.main",
            "demo",
            "--simulate",
            "l40s-x12",
            "--out",
            "/proc/no-such",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if line.rpartition("|")[2].strip() == module:
                demo.send_signal(signal.SIGINT)
                break
        rest = demo.stderr.read()
        status = demo.wait(60)
    assert status in (130, -signal.SIGINT), rest[-2000:]
    assert "Traceback" not in rest
    assert "Fatal Python error" not in rest
