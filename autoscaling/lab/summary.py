"""The figures of a policy over several replays, and how they are written. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def summary(outcomes: Sequence[Mapping[str, Any]]) -> Summary:
    """Of outcomes as JSON, one or more."""

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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
