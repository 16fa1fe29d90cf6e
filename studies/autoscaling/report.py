"""Write the study's tables and figure into its page:
`python -m studies.autoscaling.report RESULTS_FOLDER DOCS_FILE`.

Only what is between `<!-- study:NAME -->` and `<!-- /study:NAME -->` is replaced; NAME is one of headline, models,
front, detail, ablation, conditions, knobs and week. The figure goes to figures/autoscaling-pareto.svg beside the page.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from raylane.autoscaling.lab.figure import Panel, pareto_figure, save_svg
from raylane.autoscaling.lab.pareto import Point
from raylane.cluster.errors import RaylaneError, UsageError
from studies.autoscaling.headline import ATTAINMENT, BOUNDS, front, headline, mean_points
from studies.autoscaling.job import Records
from studies.autoscaling.jobs import study_jobs, week_jobs
from studies.autoscaling.markdown import filled
from studies.autoscaling.models import models
from studies.autoscaling.runs import OWN, Measure, Study, mean, read_study
from studies.autoscaling.tables import ablation, conditions, detail, knobs, week

PARTS: Mapping[str, Callable[[Study], str]] = {
    "headline": headline,
    "models": models,
    "front": front,
    "detail": detail,
    "ablation": ablation,
    "conditions": conditions,
    "knobs": knobs,
    "week": week,
}
FIGURE = Path("figures") / "autoscaling-pareto.svg"
FIGURE_MEASURE: Measure = "worst_model"


def write_report(results: Path, page: Path) -> Path:
    """Fill the page and draw the figure; the figure's path."""
    if not page.is_file():
        raise UsageError(f"{page}: no such page; it holds the text and the markers <!-- study:headline --> and so on")
    study = read_study(results)
    text = filled(page.read_text(encoding="utf-8"), {name: part(study) for name, part in PARTS.items()})
    page.write_text(text, encoding="utf-8")
    figure = page.parent / FIGURE
    save_svg(pareto_figure([panel(study, name) for name in study.scenarios()], OWN, ATTAINMENT), figure)
    return figure


def unrecorded(results: Path) -> str | None:
    """A warning when runs of the study, with the package's frozen knobs, are not in the folder."""
    parts = {"test": study_jobs(), "week": week_jobs()}
    missing = sum(len(Records(results / part).missing(jobs)) for part, jobs in parts.items())
    runs = sum(map(len, parts.values()))
    return f"{missing} of the study's {runs} runs are not recorded: the tables are of a part" if missing else None


def panel(study: Study, scenario: str) -> Panel:
    """The means over seeds of every sweep, beside the fixed fleet, the oracle and the fluid bound."""
    runs = [run for run in study.normal(scenario) if not run.ablation]
    sweeps: dict[str, list[Point]] = defaultdict(list)
    for (policy, _), point in mean_points(runs, FIGURE_MEASURE).items():
        sweeps[policy].append(point)
    bounds = {title: study.bound(scenario, kind, FIGURE_MEASURE) for kind, title in BOUNDS.items()}
    return Panel(scenario, sweeps, {title: mean(each.values()) for title, each in bounds.items() if each})


def main() -> int:
    parser = argparse.ArgumentParser(prog="studies.autoscaling.report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args()
    try:
        print(write_report(options.results, options.page))
        if warning := unrecorded(options.results):
            print(f"warning: {warning}", file=sys.stderr)
    except RaylaneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
