"""The other tables of the study: every policy at its tuned knobs, ablations, changed conditions, the knobs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raylane.autoscaling.lab.statistics import Interval, paired_difference
from raylane.autoscaling.lab.summary import HEADINGS, cells, summary
from studies.autoscaling.compare import BOOTSTRAP_SEED, cost
from studies.autoscaling.headline import ABOVE, ATTAINMENT, comparison, comparison_cells, cost_cell
from studies.autoscaling.job import Conditions
from studies.autoscaling.markdown import NONE, interval
from studies.autoscaling.runs import NORMAL, OWN, TITLES, Measure, Study, StudyRun, by_policy, curves, mean
from studies.markdown import table


def tuned(runs: Iterable[StudyRun], knobs: Mapping[str, Mapping[str, Any]]) -> list[StudyRun]:
    """Runs at the frozen setting of their rule; those of rules that were not tuned as they are."""
    frozen = {rule: json.dumps(entry["knobs"], sort_keys=True) for rule, entry in knobs.items()}
    return [run for run in runs if run.policy != run.rule or run.knobs == frozen.get(run.rule, run.knobs)]


def detail(study: Study) -> str:
    """Per scenario and policy at its tuned knobs, means over seeds; over and under are means over the models too."""
    rows = [
        [scenario, name, *cells(summary([run.outcome for run in runs]))]
        for scenario in study.scenarios()
        for name, runs in by_policy(run for run in tuned(study.normal(scenario), study.knobs)).items()
        if not runs[0].ablation
    ]
    return table(["scenario", "policy", *HEADINGS], rows, 2)


def week(study: Study) -> str:
    """Every policy on the week: GPU-hours, attainment of each model and in the worst ten minutes, reversals."""
    models = list(dict.fromkeys(model["name"] for run in study.week for model in run.outcome["models"]))
    rows = [
        [
            run.policy,
            f"{run.outcome['gpu_hours']:,.0f}",
            *(f"{100 * model['good'] / model['requests']:.1f} %" for model in run.outcome["models"]),
            f"{100 * run.outcome['worst_10_minutes']:.1f} %",
            f"{run.outcome['reversals_per_hour']:.1f}",
        ]
        for run in sorted(study.week, key=lambda run: -run.outcome["worst_model"])
    ]
    return table(["policy", "GPU-hours", *models, "worst 10 min", "reversals/h"], rows, 1)


def ablation(study: Study) -> str:
    """What each part of raylane's own rule is worth: the rule without it minus the rule with it, paired by seed."""
    rows = []
    for scenario in study.scenarios():
        groups = by_policy(tuned(study.normal(scenario), study.knobs))
        full = groups.get(OWN, [])
        rows += [
            [scenario, name, *ablation_cells(runs, full)]
            for name, runs in groups.items()
            if runs[0].ablation and _pairs(runs, full)
        ]
    headings = ["scenario", "without", "seeds", "GPU-hours", "worst model, points", "pooled, points", "reversals/h"]
    return table(headings, rows, 2)


def ablation_cells(runs: Sequence[StudyRun], full: Sequence[StudyRun]) -> list[str]:
    """Seeds, GPU-hours relative to the full rule's mean, attainments in percent points, reversals as they are."""
    pairs = _pairs(runs, full)
    every = mean(own.outcome["gpu_hours"] for _, own in pairs)
    reversals = [mean(run.outcome["reversals_per_hour"] for run in side) for side in zip(*pairs, strict=True)]
    return [
        str(len(pairs)),
        interval(_difference(pairs, "gpu_hours", every)),
        interval(_difference(pairs, "worst_model"), "pp"),
        interval(_difference(pairs, "attainment"), "pp"),
        f"{reversals[0]:.1f} against {reversals[1]:.1f}",
    ]


def _pairs(runs: Sequence[StudyRun], full: Sequence[StudyRun]) -> list[tuple[StudyRun, StudyRun]]:
    by_seed = {run.seed: run for run in full}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


def _difference(pairs: Sequence[tuple[StudyRun, StudyRun]], figure: str, unit: float = 1.0) -> Interval:
    without = [run.outcome[figure] / unit for run, _ in pairs]
    return paired_difference(without, [own.outcome[figure] / unit for _, own in pairs], BOOTSTRAP_SEED).bootstrap


def conditions(study: Study) -> str:
    """Rank of the policies and saving of raylane's own rule, for every model by itself and pooled."""
    parts = [f"**Of {title}**\n\n{_conditions(study, measure)}" for measure, title in TITLES.items()]
    return "\n\n".join((*parts, ABOVE))


def _conditions(study: Study, measure: Measure) -> str:
    changed = list(dict.fromkeys(run.conditions for run in study.runs if run.conditions != NORMAL))
    rows = []
    for scenario in study.scenarios():
        for each in (NORMAL, *changed):
            runs = comparable(study.runs, scenario, each)
            if runs:
                found = comparison(runs, measure)
                cells = [NONE] * 6 if found is None else comparison_cells(found)
                rows.append([scenario, str(each), ranking(runs, measure), *cells])
    headings = ["scenario", "conditions", "cheapest first", "best baseline", "at", "seeds", "slo", "baseline"]
    return table([*headings, "saving [95 %]"], rows, 4)


def comparable(runs: Iterable[StudyRun], scenario: str, wanted: Conditions) -> list[StudyRun]:
    """Runs of these conditions. Normal ones only where policy, setting and seed also ran under changed conditions."""
    here = [run for run in runs if run.scenario == scenario]
    changed = {(run.policy, run.knobs, run.seed) for run in here if run.conditions != NORMAL}
    return [run for run in here if run.conditions == wanted and (run.policy, run.knobs, run.seed) in changed]


def ranking(runs: Sequence[StudyRun], measure: Measure) -> str:
    """Policies by GPU-hours at 99 %; behind them those that do not reach it, by how close they come."""
    found = {name: cost(curves(each, measure), ATTAINMENT) for name, each in by_policy(runs).items()}

    def place(name: str) -> tuple[bool, float]:
        own = found[name].gpu_hours
        return own is None, -found[name].best.attainment if own is None else own

    return ", ".join(f"{name} {cost_cell(found[name])}" for name in sorted(found, key=place))


def knobs(study: Study) -> str:
    """The frozen setting of each rule, with its score on the tuning scenarios (less is better)."""
    rows = [
        [rule, _setting(entry), f"{entry['score']:.3f}" if "score" in entry else NONE, str(entry.get("tried", NONE))]
        for rule, entry in sorted(study.knobs.items(), key=lambda item: item[1].get("score", 0.0))
    ]
    return table(["rule", "knobs", "score", "settings tried"], rows, 2)


def _setting(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"`{knob}` {value}" for knob, value in entry["knobs"].items()) or "its defaults"
