"""What a replay leaves in a folder: results.json, results.csv, pareto.svg and replicas-SCENARIO.svg."""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from raylane.autoscaling.lab.figure import Panel, pareto_figure, replicas_figure, save_svg
from raylane.autoscaling.lab.pareto import Point
from raylane.autoscaling.lab.plan import ReplayPlan
from raylane.autoscaling.lab.regret import Regret, regrets
from raylane.autoscaling.lab.replay import Replayed, Targets
from raylane.autoscaling.lab.summary import Summary, summary
from raylane.cluster.errors import UsageError

OWN = "slo"
KEYS = ("scenario", "policy", "curve", "rule", "knobs", "seed", "note")


def summaries(runs: Sequence[Replayed]) -> dict[str, dict[str, Summary]]:
    """Means over seeds, by scenario and policy. A policy without any outcome is left out."""
    found: dict[str, dict[str, list[tuple[Any, Regret | None]]]] = defaultdict(lambda: defaultdict(list))
    for run, regret in zip(runs, regrets(runs), strict=True):
        if run.outcome is not None:
            found[run.scenario][run.policy].append((run.outcome, regret))
    return {scenario: {name: _mean(each) for name, each in by.items()} for scenario, by in found.items()}


def _mean(runs: Sequence[tuple[Any, Regret | None]]) -> Summary:
    return summary([outcome for outcome, _ in runs], [regret for _, regret in runs if regret is not None])


def results(plan: ReplayPlan, runs: Sequence[Replayed]) -> dict[str, Any]:
    """Plan, means over seeds, and every run, as JSON."""
    means = {scenario: {name: asdict(found) for name, found in by.items()} for scenario, by in summaries(runs).items()}
    each = [
        {**{key: getattr(run, key) for key in KEYS}, **_regret_row(regret), "outcome": run.outcome}
        for run, regret in zip(runs, regrets(runs), strict=True)
    ]
    dumped = plan.model_dump(mode="json")
    return {"simulated": True, "plan": dumped, "traffic": _traffic(runs), "means": means, "runs": each}


def _traffic(runs: Sequence[Replayed]) -> list[dict[str, Any]]:
    """The requests of each model on each scenario and seed, once."""
    wheres = {(run.scenario, run.seed): run.offered for run in runs}
    return [
        {"scenario": scenario, "seed": seed, "model": model, **asdict(offered)}
        for (scenario, seed), models in wheres.items()
        for model, offered in models.items()
    ]


def make_folder(folder: Path) -> None:
    """The folder, there and writable before hours of replays; UsageError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written: {error.strerror}") from error


def write_results(plan: ReplayPlan, runs: Sequence[Replayed], folder: Path) -> list[Path]:
    """Write every file into a folder that is there; their paths."""
    table, data, figure = (folder / name for name in ("results.csv", "results.json", "pareto.svg"))
    data.write_text(json.dumps(results(plan, runs), indent=2) + "\n", encoding="utf-8")
    _write_csv(runs, table)
    save_svg(pareto_figure(_panels(runs), OWN), figure)
    drawn = [_draw_replicas(scenario, runs, folder) for scenario in dict.fromkeys(run.scenario for run in runs)]
    return [data, table, figure, *drawn]


def _write_csv(runs: Sequence[Replayed], path: Path) -> None:
    """A line for each run; figures of single models are in the JSON only."""
    rows = [_row(run, regret) for run, regret in zip(runs, regrets(runs), strict=True)]
    heads = list(dict.fromkeys(head for row in rows for head in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, heads)
        writer.writeheader()
        writer.writerows(rows)


def _row(run: Replayed, regret: Regret | None) -> dict[str, Any]:
    known = {key: getattr(run, key) for key in KEYS} | {"knobs": json.dumps(dict(run.knobs))} | _regret_row(regret)
    return known | {head: value for head, value in (run.outcome or {}).items() if head != "models"}


def _regret_row(regret: Regret | None) -> dict[str, float | None]:
    if regret is None:
        return {"regret_gpu_hours": None, "regret_points": None}
    return {"regret_gpu_hours": regret.gpu_hours, "regret_points": regret.points}


def _panels(runs: Sequence[Replayed]) -> list[Panel]:
    """Means over seeds, a line for each policy through its settings."""
    curves = {run.policy: run.curve for run in runs}
    panels = []
    for scenario, by in summaries(runs).items():
        sweeps: dict[str, list[Point]] = defaultdict(list)
        for name, one in by.items():
            sweeps[curves[name]].append(Point(one.attainment, one.gpu_hours))
        panels.append(Panel(scenario, sweeps, {}))
    return panels


def _draw_replicas(scenario: str, runs: Sequence[Replayed], folder: Path) -> Path:
    """Of the first seed; of a sweep the policy's own setting, which is its first."""
    here = [run for run in runs if run.scenario == scenario]
    seed = here[0].seed
    drawn: dict[str, Replayed] = {}
    for run in here:
        if run.seed == seed and run.outcome is not None:
            drawn.setdefault(run.curve, run)
    targets: dict[str, dict[str, Sequence[tuple[float, int]]]] = defaultdict(dict)
    for run in drawn.values():
        _add(targets, run.policy, run.targets)
    end_s = max((run.outcome["hours"] * 3600 for run in drawn.values() if run.outcome is not None), default=0.0)
    path = folder / f"replicas-{scenario.replace('/', '%2F')}.svg"
    save_svg(replicas_figure(f"{scenario}, seed {seed}", targets, end_s), path)
    return path


def _add(targets: dict[str, dict[str, Sequence[tuple[float, int]]]], policy: str, of_policy: Targets) -> None:
    for model, changes in of_policy.items():
        targets[model][policy] = changes
