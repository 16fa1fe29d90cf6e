"""Narrow terminals and terminals with few signs: whole headings, whole figures, no error."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from raylane.autoscaling.lab.choices import plan_file
from raylane.autoscaling.lab.plan import ReplayPlan
from raylane.cli import profiles, replay, scaling, status, topology
from raylane.cli.output import plain
from raylane.cli.plan_placement import model_table
from raylane.cli.tables import WholeTable, widths
from raylane.cluster import planner
from raylane.cluster.planner import Want
from raylane.cluster.recording import load_recording
from raylane.deployments.config.profiles import profiles as shipped_profiles
from raylane.deployments.directory.reports import ReplicaReport, ReplicaState

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
RECORDING = ROOT / "cluster/recordings/l40s-x12-six-switch-pairs.json"
CONFIG = ROOT / "deployments/configs/l40s-x12-mixed.yaml"
WIDTH = 60


def replicas() -> list[ReplicaReport]:
    ids = ("m00t5ln9", "k3p0aa71")
    return [ReplicaReport(name, "llama-70b", ReplicaState.READY, "http://h:1", "k", "192.0.2.200") for name in ids]


def tables() -> dict[str, WholeTable]:
    """A table of each kind, by the command that prints it."""
    (host,) = load_recording(RECORDING)
    scaled = dict.fromkeys(("target", "wanted", "ready", "starting", "draining", "held"), 4)
    plan = ReplayPlan.from_yaml(plan_file(Path("flash-crowd")))
    return {
        "status": status.replica_table(replicas(), []),
        "scaling": scaling.model_table([{"name": "llama-70b", "reason": "requests wait too long", **scaled}], True),
        "topology: GPUs": topology.gpu_table(host),
        "topology: matrix": topology.matrix_table(host),
        "plan": model_table(planner.plan([host], [Want("llama-70b", 2, 4, 6, None)])),
        "profiles": profiles.listing(shipped_profiles()),
        "replay": replay.table("SIMULATED", plan, {}),
    }


def printed(table: WholeTable, width: int = WIDTH) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


@pytest.mark.parametrize("name", tables())
def test_headings_and_cells_are_whole_on_a_narrow_terminal(name: str) -> None:
    table = tables()[name]
    heads = [word for column in table.columns for word in str(column.header).split()]
    cells = [str(cell) for column in table.columns for cell in column._cells]
    lines = printed(table)
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert "…" not in text
    longest = [max(map(len, str(column.header).split()), default=1) for column in table.columns]
    if sum(longest) + len(longest) <= WIDTH:  # too many columns are folded, headings too
        assert [word for word in heads if word not in re.split(r"[\s│|]+", text)] == []
    signs = sorted("".join(heads + cells).replace("\n", "").replace(" ", ""))
    assert [sign for sign in set(signs) if text.count(sign) < signs.count(sign)] == []


def test_a_wide_terminal_gets_the_tables_as_they_are() -> None:
    table = WholeTable("model", "reason")
    table.add_row("llama", "requests wait too long")
    assert [line.strip("┃│┏┡└━─┓┩┘┳╇┴") for line in printed(table, 80)][3] == " llama │ requests wait too long "


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=12),
    st.integers(12, 120),
)
def test_columns_share_the_room(columns: list[tuple[int, int]], room: int) -> None:
    needed, least = [max(both) for both in columns], [low for _, low in columns]
    found = widths(needed, least, room)
    assert sum(found) <= room
    assert all(1 <= width <= need for width, need in zip(found, needed, strict=True))
    if sum(least) <= room:
        assert all(width >= low for width, low in zip(found, least, strict=True))
    if sum(needed) <= room and sum(least) <= room:
        assert found == needed


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, id="ASCII"),
        pytest.param({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, id="the POSIX locale"),
        pytest.param({"LC_ALL": "xx_YY.UTF-8", "LANG": "xx_YY.UTF-8"}, id="a locale that does not exist"),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["plan", str(CONFIG), "--from", str(RECORDING)], id="plan"),
        pytest.param(["--help"], id="help"),
        pytest.param(["profiles"], id="profiles"),
        pytest.param(["deploy", "no-süch-file.yaml"], id="an error"),
    ],
)
def test_a_terminal_with_few_signs_is_no_error(words: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raylane.cli.main", *words],
        capture_output=True,
        env={**os.environ, "COLUMNS": "60", **environment},
        timeout=120,
    )
    assert done.returncode == (2 if "deploy" in words else 0), done.stderr
    assert b"Traceback" not in done.stderr
    if "LANG" not in environment:
        assert (done.stdout + done.stderr).isascii()


def test_what_stands_for_signs_that_are_missing() -> None:
    text = "a… → b – 3 ≤ ü\udcff"
    shown, after = plain(UnicodeEncodeError("ascii", text, 0, len(text), "missing"))
    assert (shown, after) == ("a... -> b - 3 <= \\xfc\\udcff", len(text))


@pytest.mark.parametrize(
    ("closing", "words"),
    [
        pytest.param("<&-", ["--version"], id="standard input"),
        pytest.param(">&-", ["--version"], id="standard output"),
        pytest.param(">&- 2>&-", ["deploy", "no-such-file.yaml"], id="both outputs"),
    ],
)
def test_closed_streams_are_no_error(closing: str, words: list[str]) -> None:
    line = f'"$0" -m raylane.cli.main {" ".join(words)} {closing}'
    done = subprocess.run(["bash", "-c", line, sys.executable], capture_output=True, text=True, timeout=60)
    assert done.returncode == (2 if "deploy" in words else 0), done.stderr
    assert done.stderr == ""


def test_a_reader_that_has_read_enough_gets_no_traceback() -> None:
    arguments: Any = ["plan", str(CONFIG), "--from", str(RECORDING), "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "raylane.cli.main", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as plan:
        assert plan.stdout is not None
        assert plan.stderr is not None
        plan.stdout.close()
        said = plan.stderr.read()
        assert plan.wait(60) == 1
    assert said == b""
