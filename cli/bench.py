"""`raylane bench`: run a benchmark plan and print the run folder."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from raylane.benchmarks import driver
from raylane.benchmarks.plan import BenchmarkPlan, refuse_credentials
from raylane.benchmarks.run_folder import load_run
from raylane.cli.report import price_book
from raylane.cluster.errors import FailedError
from raylane.cluster.gpu_readings import nvml_reader


def bench(
    plan_file: Annotated[Path, typer.Argument(help="Benchmark plan (YAML).")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where run folders go.")] = Path("runs"),
    url: Annotated[str | None, typer.Option("--url", help="OpenAI-compatible endpoint; overrides base_url.")] = None,
    simulated: Annotated[bool, typer.Option("--simulated", help="A simulator serves the models: mark it.")] = False,
    prices: Annotated[Path | None, typer.Option("--prices", help="Price file of your own, added to ours.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print results.json instead of the folder.")] = False,
) -> None:
    """Run every case of a benchmark plan and print the run folder."""
    plan = read_plan(plan_file, url, prices)
    run_dir = run_with_progress(plan, out_dir, simulated)
    typer.echo(json.dumps(load_run(run_dir).results, indent=2) if json_output else run_dir)


def read_plan(plan_file: Path, url: str | None, prices: Path | None = None) -> BenchmarkPlan:
    """The plan with its endpoint; wrong prices are found before anything runs."""
    plan = BenchmarkPlan.from_yaml(plan_file)
    if url is not None:
        data = plan.model_dump(mode="json") | {"base_url": url}
        plan = BenchmarkPlan.from_data(data, "--url")
    refuse_credentials(plan.base_url, f"{plan_file}: base_url" if url is None else "--url")
    book = price_book(prices)
    for entry in plan.cost.values():
        if isinstance(entry.price, str):
            book.get(entry.price)
    return plan


def run_with_progress(plan: BenchmarkPlan, out_dir: Path, simulated: bool) -> Path:
    """Run the plan with a progress line on stderr. Ctrl-C ends with the folder of what there is."""
    seen: list[Path] = []
    phase, counts = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[counts]}")
    columns = (phase, BarColumn(), TimeElapsedColumn(), counts)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(plan.name, total=None, counts="")

        def show(now: driver.Progress) -> None:
            seen[:] = [now.run_dir]
            bar.update(
                task,
                description=f"{now.case} ({now.case_number}/{now.cases}) {now.phase}",
                completed=now.window_elapsed_s,
                total=now.window_s,
                counts=f"{now.finished} requests, {now.failed} failed",
            )

        work = driver.run_plan(plan, out_dir, simulated=simulated, on_progress=show, gpu_reader=nvml_reader())
        try:
            return uvloop.run(work)
        except (KeyboardInterrupt, asyncio.CancelledError) as stop:
            where = f"what was measured is in {seen[0]}" if seen else "nothing was measured"
            raise FailedError(f"interrupted; {where}") from stop
