"""Who needs how many GPU-hours for 99 %, what raylane's own rule saves, and who is on the Pareto front."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from raylane.autoscaling.lab.pareto import Point, on_front
from studies.autoscaling.compare import (
    Cost,
    SavingAtLevel,
    above,
    compare,
    compare_at_common,
    compare_at_same_cost,
    cost,
)
from studies.autoscaling.markdown import NONE, hours, interval, percent, signed_percent
from studies.autoscaling.runs import OWN, TITLES, Curves, Measure, Study, StudyRun, by_policy, curves, mean
from studies.markdown import table

ATTAINMENT = 0.99
OURS_ABOVE, THEIRS_ABOVE = "†", "‡"
ABOVE = (
    f"{OURS_ABOVE} {OWN}'s cheapest setting, {THEIRS_ABOVE} the baseline's cheapest setting attains more than the "
    "level compared at, on some seed: it is counted with what that setting costs."
)
BOUNDS = {"static": "cheapest fixed fleet", "oracle": "oracle", "fluid": "fluid bound"}


def headline(study: Study) -> str:
    """Both tables, for every model by itself and for all requests pooled."""
    return "\n\n".join(_headline(study, measure) for measure in TITLES)


def _headline(study: Study, measure: Measure) -> str:
    title = f"**GPU-hours at {percent(ATTAINMENT, 0)} attainment of {TITLES[measure]}** (SIMULATED, mean over seeds)"
    same = f"The other way round: slo's highest attainment of {TITLES[measure]}, and the best baseline for no more"
    tables = (_costs(study, measure), _savings(study, measure), ABOVE, same, _same_costs(study, measure))
    return "\n\n".join((title, *tables))


def _costs(study: Study, measure: Measure) -> str:
    scenarios = study.scenarios()
    found = {scenario: costs(study, scenario, measure) for scenario in scenarios}
    policies = dict.fromkeys(name for each in found.values() for name in each)
    rows = [[name, *(cost_cell(found[scenario].get(name)) for scenario in scenarios)] for name in policies]
    for kind, title in BOUNDS.items():
        bounds = [study.bound(scenario, kind, measure) for scenario in scenarios]
        rows.append([f"*{title}*", *map(bound_cell, bounds)])
    return table(["policy", *scenarios], rows)


def costs(study: Study, scenario: str, measure: Measure) -> dict[str, Cost]:
    """What every policy but the ablations costs at 99 %."""
    groups = by_policy(run for run in study.normal(scenario) if not run.ablation)
    return {name: cost(curves(runs, measure), ATTAINMENT) for name, runs in groups.items()}


def cost_cell(found: Cost | None) -> str:
    """GPU-hours; or how far the sweep gets, and for how many GPU-hours."""
    if found is None:
        return NONE
    if found.gpu_hours is not None:
        return hours(found.gpu_hours)
    seeds = f"on {found.reached} of {len(found.by_seed)} seeds" if found.reached else "never"
    return f"{seeds} ({percent(found.best.attainment)} for {hours(found.best.gpu_hours)})"


def bound_cell(by_seed: Mapping[int, float]) -> str:
    """The mean, and over how many seeds: bounds are computed on fewer than the policies ran on."""
    return f"{hours(mean(by_seed.values()))} ({len(by_seed)} seed{'s' * (len(by_seed) > 1)})" if by_seed else NONE


def _savings(study: Study, measure: Measure) -> str:
    headings = ["scenario", "best baseline", "at", "seeds", "slo", "baseline", "saving [95 %]"]
    headings += ["slo over oracle", "slo over fixed fleet"]
    rows = [row for scenario in study.scenarios() for row in _saving_rows(study, scenario, measure)]
    return table(headings, rows, 2)


def _saving_rows(study: Study, scenario: str, measure: Measure) -> list[list[str]]:
    found = comparison(study.normal(scenario), measure)
    own = costs(study, scenario, measure).get(OWN)
    if own is None:
        return []
    distances = [
        signed_percent(above(own.by_seed, study.bound(scenario, kind, measure)) if own.gpu_hours else None)
        for kind in ("oracle", "static")
    ]
    if found is None:
        return [[scenario, "none", NONE, NONE, cost_cell(own), NONE, NONE, *distances]]
    return [[scenario, *comparison_cells(found), *distances]]


def _same_costs(study: Study, measure: Measure) -> str:
    rows = []
    for scenario in study.scenarios():
        found = compare_at_same_cost(*_sides(study.normal(scenario), measure))
        if found is not None:
            shares = [percent(found.ours), percent(found.theirs), interval(found.difference, "pp")]
            rows.append([scenario, found.baseline, str(found.seeds), hours(found.gpu_hours), *shares])
    return table(["scenario", "best baseline", "seeds", "GPU-hours", "slo", "baseline", "difference [95 %]"], rows, 2)


def _sides(runs: Sequence[StudyRun], measure: Measure) -> tuple[Curves, dict[str, Curves]]:
    """raylane's own sweep, and those of the baselines."""
    groups = by_policy(runs)
    baselines = {name: curves(each, measure) for name, each in groups.items() if each[0].baseline}
    return curves(groups.get(OWN, []), measure), baselines


def comparison(runs: Sequence[StudyRun], measure: Measure) -> SavingAtLevel | None:
    """raylane's own rule against the best baseline: at 99 %, else at the highest attainment that both reach."""
    ours, baselines = _sides(runs, measure)
    return compare(ours, baselines, ATTAINMENT) or compare_at_common(ours, baselines)


def comparison_cells(found: SavingAtLevel) -> list[str]:
    """Baseline, level, seeds, both costs, saving. Another level than 99 % is marked, and who attains more than it."""
    level = percent(found.level) if found.level == ATTAINMENT else f"{percent(found.level)} (not 99 %)"
    both = [
        hours(found.ours) + f" {OURS_ABOVE}" * found.ours_above,
        hours(found.theirs) + f" {THEIRS_ABOVE}" * found.theirs_above,
    ]
    return [found.baseline, level, str(found.seeds), *both, interval(found.saving)]


def front(study: Study) -> str:
    """Per scenario who has a point on the front, and with how many."""
    rows = []
    for scenario in study.scenarios():
        sides = [front_policies(study.normal(scenario), measure) for measure in TITLES]
        rows.append([scenario, *(cell for side in sides for cell in (_front_cell(side), _yes(OWN in side)))])
    headings = [
        "scenario",
        *(f"{head}, {title}" for title in TITLES.values() for head in ("on the front", "slo on it")),
    ]
    return table(headings, rows, len(headings))


def front_policies(runs: Sequence[StudyRun], measure: Measure) -> dict[str, int]:
    """Points on the front by policy, of settings that ran on every seed, ablations apart; means over seeds."""
    points = mean_points([run for run in runs if not run.ablation], measure)
    kept: dict[str, int] = defaultdict(int)
    for (policy, _), front in zip(points, on_front(list(points.values())), strict=True):
        kept[policy] += front
    return {policy: count for policy, count in kept.items() if count}


def mean_points(runs: Sequence[StudyRun], measure: Measure) -> dict[tuple[str, str], Point]:
    """The mean over seeds of each policy and setting that ran on every seed."""
    seeds = {run.seed for run in runs}
    settings: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for run in runs:
        settings[run.policy, run.knobs].append(run.point(measure))
    return {
        setting: Point(mean(p.attainment for p in points), mean(p.gpu_hours for p in points))
        for setting, points in settings.items()
        if len(points) == len(seeds)
    }


def _front_cell(policies: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(policies.items(), key=lambda item: -item[1]))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
