"""The same question for each model by itself: engines are not shared, so its GPU-hours buy its own attainment."""

from collections import defaultdict
from collections.abc import Iterable

from raylane.autoscaling.lab.pareto import Point
from studies.autoscaling.compare import compare, compare_at_common, cost
from studies.autoscaling.headline import ABOVE, comparison_cells, cost_cell
from studies.autoscaling.markdown import NONE, percent
from studies.autoscaling.runs import OWN, Curves, Study, StudyRun, by_policy
from studies.markdown import table

LEVELS = (0.99, 0.97)


def models(study: Study) -> str:
    """For every model and level what each policy costs, and raylane's own rule against the best baseline."""
    names = sorted({model["name"] for run in study.runs for model in run.outcome["models"]})
    return "\n\n".join(_of(study, name, level) for name in names for level in LEVELS)


def _of(study: Study, model: str, level: float) -> str:
    scenarios = study.scenarios()
    groups = {name: by_policy(run for run in study.normal(name) if not run.ablation) for name in scenarios}
    policies = dict.fromkeys(policy for each in groups.values() for policy in each if policy != "all 12 GPUs")
    rows = [[policy, *(_cell(groups[name].get(policy, []), model, level) for name in scenarios)] for policy in policies]
    title = f"**GPU-hours of {model} at {percent(level, 0)} of its own requests** (SIMULATED, mean over seeds)"
    headings = ["scenario", "best baseline", "at", "seeds", "slo", "baseline", "saving [95 %]"]
    savings = [_saving(name, groups[name], model, level) for name in scenarios]
    return "\n\n".join((title, table(["policy", *scenarios], rows), table(headings, savings, 2), ABOVE))


def _cell(runs: list[StudyRun], model: str, level: float) -> str:
    sweep = model_curves(runs, model)
    return cost_cell(cost(sweep, level) if sweep else None)


def _saving(scenario: str, groups: dict[str, list[StudyRun]], model: str, level: float) -> list[str]:
    ours = model_curves(groups.get(OWN, []), model)
    baselines = {name: model_curves(runs, model) for name, runs in groups.items() if runs[0].baseline}
    found = compare(ours, baselines, level) or compare_at_common(ours, baselines)
    if found is None:
        return [scenario, "none", *[NONE] * 5]
    cells = comparison_cells(found)
    cells[1] = percent(found.level) if found.level == level else f"{percent(found.level)} (not {percent(level, 0)})"
    return [scenario, *cells]


def model_curves(runs: Iterable[StudyRun], model: str) -> Curves:
    """The sweep of one policy as one model sees it, seed by seed."""
    points: dict[int, list[Point]] = defaultdict(list)
    for run in runs:
        for one in run.outcome["models"]:
            if one["name"] == model and one["requests"]:
                points[run.seed].append(Point(one["good"] / one["requests"], one["gpu_hours"]))
    return points
