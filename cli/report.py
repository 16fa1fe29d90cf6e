"""`raylane report`: write the reports of run folders and print their tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from raylane.benchmarks.report import write_report
from raylane.benchmarks.results import CostFigure
from raylane.benchmarks.run_folder import Run, load_run
from raylane.benchmarks.tables import Table, summary_table
from raylane.benchmarks.writing import WriteFailedError
from raylane.cli.tables import table_console
from raylane.cluster.errors import FailedError
from raylane.cluster.prices import PriceBook, shipped_prices
from raylane.cluster.redact import redacted_data
from raylane.cost.run_cost import run_costs


def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    prices: Annotated[Path | None, typer.Option("--prices", help="Price file of your own, added to ours.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print results and cost as JSON.")] = False,
) -> None:
    """Write report.html, report.md and report.csv into each run folder and print the tables."""
    book = price_book(prices)
    loaded = [load_run(run_dir) for run_dir in run_dirs]
    costs = [run_costs(run.plan, run.summary, book) for run in loaded]
    failures = [failure for run, cost in zip(loaded, costs, strict=True) if (failure := _written(run, cost))]
    if json_output:
        typer.echo(json.dumps([as_json(run, cost) for run, cost in zip(loaded, costs, strict=True)], indent=2))
    else:
        for run, cost in zip(loaded, costs, strict=True):
            print_tables(run, cost, table_console())
    if failures:
        raise FailedError("\n".join(map(str, failures)))


def _written(run: Run, costs: Sequence[CostFigure]) -> WriteFailedError | None:
    """Write the reports of a run; a folder that cannot be written costs the files, not the figures."""
    try:
        files = write_report(run, costs)
    except WriteFailedError as error:
        return error
    written = f"wrote {files.html}, {files.markdown.name}, {files.csv.name}"
    Console(stderr=True).print(written, highlight=False, markup=False)
    return None


def price_book(own: Path | None) -> PriceBook:
    """The shipped prices, with a file of the user's own where there is one."""
    book = shipped_prices()
    return book if own is None else book.with_file(own)


def as_json(run: Run, costs: Sequence[CostFigure]) -> dict[str, object]:
    """results.json with the cost rows beside it."""
    results: dict[str, object] = redacted_data(run.results)
    return results | {"cost": [cost.model_dump(mode="json") for cost in costs]}


def print_tables(run: Run, costs: Sequence[CostFigure], console: Console) -> None:
    """The summary, where the prices come from, and why a case is not valid; report.md has every figure."""
    console.print(rich_table(summary_table(run.summary, costs)))
    for price in sorted({cost.price_source for cost in costs}):
        console.print(f"price: {price}", style="dim", highlight=False, markup=False)
    if not run.complete:
        console.print("incomplete: the run was interrupted", style="yellow")
    for case in run.summary.cases:
        for reason in case.reasons:
            console.print(f"{case.case} is not valid: {reason}", style="yellow", highlight=False, markup=False)
        for note in case.notes:
            console.print(f"{case.case}: {note}", highlight=False, markup=False)


def rich_table(table: Table) -> RichTable:
    """The same cells for a terminal."""
    shown = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, head in enumerate(table.heads):
        shown.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown
