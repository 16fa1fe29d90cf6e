"""Regret: what a policy cost more and attained less than a plan that knew the future. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from raylane.autoscaling.lab.choices import BOUND_KNOBS
from raylane.autoscaling.lab.replay import Replayed

ORACLE = "oracle"


class Regret(NamedTuple):
    """Of one run against the oracle on the same traffic; below 0 where the run was the better one."""

    gpu_hours: float
    """Spent beyond the oracle's."""
    points: float
    """Percentage points of attainment short of the oracle's, in the measure that the oracle plans for."""


def regrets(runs: Sequence[Replayed]) -> list[Regret | None]:
    """One for each run; None where it has no outcome or no oracle ran on its scenario and seed. Of several,
    the first."""
    wheres = dict.fromkeys((run.scenario, run.seed) for run in runs)
    oracles = {where: first_oracle(runs, *where) for where in wheres}
    return [_regret(run.outcome, oracles[run.scenario, run.seed]) for run in runs]


def first_oracle(runs: Sequence[Replayed], scenario: str, seed: int | None = None) -> Replayed | None:
    """The oracle that a scenario, on one seed or any, is measured against; None where none ran."""
    wanted = (run for run in runs if run.rule == ORACLE and run.scenario == scenario and seed in (None, run.seed))
    return next(wanted, None)


def measure(oracle: Replayed) -> str:
    """The figure of an outcome that this oracle plans for: the worst model's attainment, or that of all requests."""
    return "worst_model" if {**BOUND_KNOBS, **oracle.knobs}["each"] else "attainment"


def _regret(outcome: Mapping[str, Any] | None, oracle: Replayed | None) -> Regret | None:
    if outcome is None or oracle is None or oracle.outcome is None:
        return None
    gpu_hours = outcome["gpu_hours"] - oracle.outcome["gpu_hours"]
    points = 100 * (oracle.outcome[measure(oracle)] - outcome[measure(oracle)])
    return Regret(round(gpu_hours, 6), round(points, 4))
