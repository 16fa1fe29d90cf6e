"""The pages under docs/ against the tree: links, the module tables of architecture.md, the words of glossary.md."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "deployments", "autoscaling", "benchmarks", "cost", "cli", "studies")
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "notebooks/README.md", "studies/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "results").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    """The page without its code blocks, in which nothing is a link or a heading."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    found: Counter[str] = Counter()
    names = set()
    for title in re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(text_of(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def module_rows(text: str) -> Iterator[str]:
    """What the module tables of architecture.md name, as paths from the root: modules, and folders that end in `/`."""
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        for row in re.findall(r"^\| (`.*?`) \|", body.partition("\n## ")[0], re.MULTILINE):
            yield from (f"{heading.strip('`')}/{name}" for name in re.findall(r"`([^`]+)`", row))


def modules() -> list[str]:
    """Every module of the packages but __init__, as a path from the root without its ending."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file.stem != "__init__")
    return sorted(str(file.relative_to(ROOT).with_suffix("")) for file in files)


def unnamed_and_wrong(text: str, tree: list[str]) -> tuple[list[str], list[str]]:
    """Modules that not exactly one row names, and rows that name nothing."""
    rows = list(module_rows(text))
    named = {module: sum(covers(row, module) for row in rows) for module in tree}
    return [module for module, times in named.items() if times != 1], [
        row for row in rows if not any(covers(row, module) for module in tree)
    ]


def covers(row: str, module: str) -> bool:
    return module.startswith(row) if row.endswith("/") else module == row


def test_the_module_tables_name_every_module_once_and_nothing_else() -> None:
    unnamed, wrong = unnamed_and_wrong((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), modules())
    assert not unnamed, f"docs/architecture.md: give each of these exactly one row in its folder's table: {unnamed}"
    assert not wrong, f"docs/architecture.md: no module is at these rows: {wrong}"


def test_a_row_for_a_folder_stands_for_its_modules_alone() -> None:
    page = "### `cli`\n\n| module | |\n|---|---|\n| `bench`, `run` | |\n| `words/` | |\n\n## Other\n| `no` | |\n"
    assert unnamed_and_wrong(page, ["cli/bench", "cli/run", "cli/words/a", "cli/words/b"]) == ([], [])
    assert unnamed_and_wrong(page, ["cli/bench", "cli/new", "cli/words/a"]) == (["cli/new"], ["cli/run"])
    twice = page.replace("`run`", "`bench`")
    assert unnamed_and_wrong(twice, ["cli/bench", "cli/words/a"]) == (["cli/bench"], [])


def defined(file: Path) -> set[str]:
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, kinds)}


def test_the_words_of_the_glossary_are_where_it_says() -> None:
    wrong = []
    everywhere = {name for module in modules() for name in defined(ROOT / f"{module}.py")}
    for row in re.findall(
        r"^\| .* \| .* \| (.*) \|$", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE
    ):
        for clause in row.split("; "):
            quoted = re.findall(r"`([^`]+)`", clause)
            files = [ROOT / name for name in quoted if "/" in name]
            names = {name.removesuffix("()") for name in quoted if "/" not in name}
            wrong += [str(file) for file in files if not file.exists()]
            here = {name for file in files if file.is_file() for name in defined(file)} if files else everywhere
            wrong += sorted(names - here)
    assert wrong == []
