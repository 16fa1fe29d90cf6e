"""Promises that hold for all of the code: modules marked pure are so, and a class name says which class is meant."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "deployments", "autoscaling", "benchmarks", "cost", "cli", "studies")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
# Clocks, processes, networks, Ray and NVML. `datetime` may be used for its arithmetic, not for the present.
IMPURE = (
    *("ray", "aiohttp", "requests", "urllib.request", "http.client", "http.server", "socket", "ssl", "pynvml"),
    *("time", "asyncio", "threading", "multiprocessing", "concurrent", "subprocess", "signal", "uvloop"),
)
PRESENT = re.compile(r"\bdatetime\.(now|utcnow|today)\(|\bdate\.today\(")

# Class names that exist more than once today. New ones are refused; one that became unique is taken off this list.
KNOWN_TWINS: dict[str, str] = {
    "Asked": "a request at the gateway; a request to the simulator's server",
    "Comparison": "two endpoints of a benchmark; a measured run and its simulation",
    "DirectoryLink": "what a gateway and what a replica asks of the directory",
    "Holder": "of a lease; of the gateway's socket",
    "Host": "a machine with its GPUs; what a replica needs of its machine (a Protocol)",
    "Link": "between two GPUs; the speed that sizing reckons with; a gateway worker's pipe",
    "Outcome": "of a replay; of a simulated request",
    "Progress": "of a benchmark; of an engine",
    "Refusal": "of a choice of GPUs; of a size; of a request to an engine",
    "Replica": "a real one; a simulated one",
    "Summary": "of a policy over replays; of a figure over requests",
    "Table": "of a report; of endpoints",
    "Verdict": "on a pair of GPUs; on a request",
}


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported, at the top or inside a function; `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def impurities(text: str) -> list[str]:
    """What keeps a module from being pure: imports of clocks, processes and networks, or a look at the date."""
    found = imported(ast.parse(text))
    bad = {name for name in found for root in IMPURE if name == root or name.startswith(f"{root}.")}
    return sorted(bad) + [match.group() for match in PRESENT.finditer(text)]


def is_marked_pure(text: str) -> bool:
    return bool(re.search(r"\bPure\b", ast.get_docstring(ast.parse(text)) or ""))


def test_modules_marked_pure_read_no_clock_and_talk_to_nobody() -> None:
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in SOURCES}
    pure = {name: text for name, text in texts.items() if is_marked_pure(text)}
    assert len(pure) > 50
    assert {name: found for name, text in pure.items() if (found := impurities(text))} == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("import time\n", ["time"], id="a clock"),
        pytest.param("def f():\n    from urllib import request\n", ["urllib.request"], id="inside a function"),
        pytest.param("import ray.serve\n", ["ray.serve"], id="a part of Ray"),
        pytest.param("from datetime import datetime\nx = datetime.now()\n", ["datetime.now("], id="the present"),
        pytest.param("import timeit, rayon\nfrom datetime import datetime\n", [], id="names that only begin alike"),
    ],
)
def test_impurities(text: str, expected: list[str]) -> None:
    assert impurities(text) == expected


def twins() -> dict[str, list[str]]:
    """Class names that more than one module defines, with those modules."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(file.relative_to(ROOT)))
    return {name: files for name, files in found.items() if len(files) > 1}


def test_a_class_name_exists_once() -> None:
    found = twins()
    new = {name: files for name, files in found.items() if name not in KNOWN_TWINS}
    assert not new, f"give each class a name of its own: {new}"


def test_the_known_twins_are_still_twins() -> None:
    gone = sorted(KNOWN_TWINS.keys() - twins().keys())
    assert not gone, f"unique by now, so take them off KNOWN_TWINS: {gone}"
