"""`raylane replay`: scaling policies against recorded or synthetic load, in virtual time."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from raylane.autoscaling.lab.choices import narrowed, plan_file
from raylane.autoscaling.lab.plan import ReplayPlan
from raylane.autoscaling.lab.regret import first_oracle, measure
from raylane.autoscaling.lab.replay import Replayed, replay
from raylane.autoscaling.lab.replay_files import make_folder, results, summaries, write_results
from raylane.autoscaling.lab.summary import HEADINGS, REGRET_HEADINGS, Summary, cells, regret_cells
from raylane.cli.tables import WholeTable, table_console
from raylane.cluster.errors import UsageError

REGRET_NOTES = {
    "worst_model": "regret: GPU-hours beyond the {}'s, percentage points of the worst model short of its",
    "attainment": "regret: GPU-hours beyond the {}'s, percentage points of all requests short of its",
}


def replay_command(
    plan_path: Annotated[
        Path, typer.Argument(metavar="PLAN", help="Replay plan (YAML), or the name of a shipped one.")
    ],
    policy: Annotated[
        list[str] | None, typer.Option(help="Only this policy; also oracle and static, the cheapest fixed fleet.")
    ] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="Only this scenario of the plan.")] = None,
    knob: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the policies that have it.")] = None,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Also each policy at the other levels of its one knob: a curve, not a point."),
    ] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many versions of the traffic.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json, results.csv and figures.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    json_output: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
) -> None:
    """Replay load under scaling policies on simulated engines and print what each costs and attains."""
    path = plan_file(plan_path)
    plan = narrowed(
        ReplayPlan.from_yaml(path),
        policies=policy or (),
        scenarios=scenario or (),
        knobs=parse_knobs(knob or ()),
        seeds=seeds,
        sweep=sweep,
    )
    if out is not None:
        make_folder(out)
    runs = run_all(plan, path.parent, workers)
    if out is not None:
        for written in write_results(plan, runs, out):
            Console(stderr=True).print(f"wrote {written}", highlight=False, markup=False, soft_wrap=True)
    if json_output:
        typer.echo(json.dumps(results(plan, runs), indent=2))
    else:
        show(plan, runs, table_console())


def run_all(plan: ReplayPlan, folder: Path, workers: int) -> list[Replayed]:
    """Every run, with a bar of progress on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        found = progress.track(
            replay(plan, folder, workers), total=len(plan.scenarios) * plan.seeds, description="Replaying"
        )
        return [run for each in found for run in each]


def parse_knobs(given: Sequence[str]) -> dict[str, Any]:
    """Values as YAML reads them: 0.8, true, both. UsageError for what is not NAME=VALUE."""
    knobs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--knob {text}: give NAME=VALUE, for example --knob burst_margin=2")
        try:
            knobs[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--knob {text}: the value is not YAML: {error}") from error
    return knobs


def show(plan: ReplayPlan, runs: Sequence[Replayed], console: Console) -> None:
    """A table for each scenario, means over seeds, what its traffic was, and what is to be said of a bound."""
    means = summaries(runs)
    over = "1 seed" if plan.seeds == 1 else f"mean of {plan.seeds} seeds"
    for scenario, description in plan.scenarios.items():
        console.print(table(f"SIMULATED {scenario}, {over}", plan, means.get(scenario, {})))
        for line in notes(scenario, description.about, runs):
            console.print(line, style="dim", highlight=False, markup=False)


def notes(scenario: str, about: str, runs: Sequence[Replayed]) -> Iterator[str]:
    """The lines below the table of a scenario; of its traffic, those of the first seed."""
    here = [run for run in runs if run.scenario == scenario]
    if about:
        yield about
    for model, offered in here[0].offered.items() if here else ():
        cut = f"{offered.cut:,}" if offered.cut else "none"
        yield f"{model}, seed {here[0].seed}: {offered.requests:,} requests, {cut} cut; {offered.source}"
    if oracle := first_oracle(here, scenario):
        yield REGRET_NOTES[measure(oracle)].format(oracle.policy)
    yield from (f"{run.policy}, seed {run.seed}: {run.note}" for run in here if run.note)


def table(title: str, plan: ReplayPlan, means: Mapping[str, Summary]) -> WholeTable:
    """One row for each policy of the plan; dashes for a bound that does not exist on any seed."""
    shown = WholeTable(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("policy", no_wrap=True)
    regretted = any(found.regret_gpu_hours is not None for found in means.values())
    headings = (*HEADINGS, *REGRET_HEADINGS) if regretted else HEADINGS
    for heading in headings:
        shown.add_column(heading, justify="right", overflow="fold")
    for choice in plan.policies:
        found = means.get(choice.name)
        row = ["–"] * len(headings) if found is None else [*cells(found), *(regret_cells(found) if regretted else ())]
        shown.add_row(escape(choice.name), *row)
    return shown
