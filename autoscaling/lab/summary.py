"""The figures of a policy over several replays, and how they are written. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylane.autoscaling.lab.regret import Regret

HEADINGS = (
    "GPU-hours",
    "pooled",
    "worst model",
    "worst 10 min",
    "over / under",
    "actions",
    "reversals/h",
    "wasted USD",
)
REGRET_HEADINGS = ("regret h", "regret pp")


@dataclass(frozen=True)
class Summary:
    """Means over the replays; `over` and `under` (shares of the fluid demand) are means over the models too."""

    runs: int
    gpu_hours: float
    attainment: float
    """Of all requests of all models, pooled."""
    worst_model: float
    worst_10_minutes: float
    over: float
    under: float
    actions: float
    reversals_per_hour: float
    wasted_usd: float
    regret_gpu_hours: float | None = None
    """Beyond the oracle's; None where it did not run."""
    regret_points: float | None = None
    """Percentage points of attainment short of the oracle's."""


def summary(outcomes: Sequence[Mapping[str, Any]], regrets: Sequence[Regret] = ()) -> Summary:
    """Of outcomes as JSON, one or more, and of their regrets where there is an oracle."""

    def of(figure: str) -> float:
        return _mean([each[figure] for each in outcomes])

    def of_models(figure: str) -> float:
        return _mean([model[figure] for each in outcomes for model in each["models"]])

    return Summary(
        runs=len(outcomes),
        gpu_hours=of("gpu_hours"),
        attainment=of("attainment"),
        worst_model=of("worst_model"),
        worst_10_minutes=of("worst_10_minutes"),
        over=of_models("over"),
        under=of_models("under"),
        actions=of("actions"),
        reversals_per_hour=of("reversals_per_hour"),
        wasted_usd=of("wasted_usd"),
        regret_gpu_hours=_mean([each.gpu_hours for each in regrets]) if regrets else None,
        regret_points=_mean([each.points for each in regrets]) if regrets else None,
    )


def cells(found: Summary) -> list[str]:
    """One for each heading."""
    return [
        f"{found.gpu_hours:.1f}",
        f"{100 * found.attainment:.1f} %",
        f"{100 * found.worst_model:.1f} %",
        f"{100 * found.worst_10_minutes:.1f} %",
        f"{100 * found.over:.0f} % / {100 * found.under:.1f} %",
        f"{found.actions:.0f}",
        f"{found.reversals_per_hour:.1f}",
        f"{found.wasted_usd:.2f}",
    ]


def regret_cells(found: Summary) -> list[str]:
    """One for each heading of regret; dashes without an oracle."""
    return ["–" if value is None else f"{value:+.1f}" for value in (found.regret_gpu_hours, found.regret_points)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
