"""Regret against the oracle of the same scenario and seed, and the figure's line through each policy's front."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from raylane.autoscaling.lab.figure import Panel, pareto_figure
from raylane.autoscaling.lab.pareto import Point
from raylane.autoscaling.lab.regret import Regret, regrets
from raylane.autoscaling.lab.replay import Replayed
from raylane.autoscaling.lab.replay_files import summaries
from raylane.autoscaling.lab.summary import regret_cells


def run(
    rule: str,
    figures: tuple[float, float, float] | None,
    *,
    seed: int = 1,
    scenario: str = "s",
    policy: str = "",
    knobs: Mapping[str, Any] | None = None,
) -> Replayed:
    """`figures`: GPU-hours, attainment of the worst model, of all requests; None: no outcome."""
    rest = {"worst_10_minutes": 0.5, "actions": 1, "reversals_per_hour": 0.0, "wasted_usd": 0.0}
    models = {"models": [{"over": 0.1, "under": 0.0}]}
    outcome = (
        None
        if figures is None
        else {"gpu_hours": figures[0], "worst_model": figures[1], "attainment": figures[2], **rest, **models}
    )
    return Replayed(scenario, policy or rule, rule, knobs or {}, seed, outcome, {}, "", policy or rule)


ORACLE = run("oracle", (8.0, 0.99, 0.995))


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param(
            [run("slo", (10.0, 0.95, 0.98)), ORACLE], [Regret(2.0, 4.0), Regret(0.0, 0.0)], id="dearer, worse"
        ),
        pytest.param([run("slo", (6.5, 0.995, 0.9)), ORACLE], [Regret(-1.5, -0.5), Regret(0.0, 0.0)], id="better"),
        pytest.param([run("slo", (10.0, 0.95, 0.98))], [None], id="no oracle"),
        pytest.param(
            [run("slo", (1.0, 0.9, 0.9), seed=2), ORACLE], [None, Regret(0.0, 0.0)], id="another seed's oracle"
        ),
        pytest.param(
            [run("slo", (1.0, 0.9, 0.9), scenario="t"), ORACLE],
            [None, Regret(0.0, 0.0)],
            id="another scenario's oracle",
        ),
        pytest.param([run("static", None), ORACLE], [None, Regret(0.0, 0.0)], id="a bound that does not exist"),
        pytest.param(
            [run("slo", (1.0, 0.9, 0.9)), run("oracle", None)], [None, None], id="an oracle without an outcome"
        ),
        pytest.param(
            [run("slo", (10.0, 0.90, 0.98)), run("oracle", (8.0, 0.5, 0.99), knobs={"each": False})],
            [Regret(2.0, 1.0), Regret(0.0, 0.0)],
            id="an oracle that plans for all requests pooled",
        ),
        pytest.param(
            [run("slo", (10.0, 0.95, 0.98)), ORACLE, run("oracle", (7.0, 0.9, 0.99), policy="pooled")],
            [Regret(2.0, 4.0), Regret(0.0, 0.0), Regret(-1.0, 9.0)],
            id="of several oracles the first",
        ),
    ],
)
def test_regret_is_against_the_oracle_of_the_same_traffic(
    runs: Sequence[Replayed], expected: Sequence[Regret | None]
) -> None:
    assert regrets(runs) == expected


def test_the_mean_is_over_the_seeds_that_have_an_oracle() -> None:
    runs = [
        *(run("slo", (10.0, 0.95, 0.98)), run("slo", (14.0, 0.85, 0.98), seed=2), run("slo", (99.0, 0.1, 0.1), seed=3)),
        *(ORACLE, run("oracle", (8.0, 0.99, 0.99), seed=2), run("kpa", (9.0, 0.9, 0.9), scenario="t")),
    ]
    means = summaries(runs)
    assert regret_cells(means["s"]["slo"]) == ["+4.0", "+9.0"]
    assert regret_cells(means["s"]["oracle"]) == ["+0.0", "+0.0"]
    assert regret_cells(means["t"]["kpa"]) == ["–", "–"]


def test_a_line_goes_through_the_front_and_other_settings_stay_as_points() -> None:
    sweep = [Point(0.9, 10), Point(0.98, 20), Point(0.97, 25), Point(0.99, 30)]
    figure = pareto_figure([Panel("s", {"slo": sweep, "kpa": [Point(0.95, 12)]}, {})], "slo")
    drawn = [
        (line.get_linestyle() == "None", np.asarray(line.get_xydata()).tolist()) for line in figure.axes[0].get_lines()
    ]
    assert [points for pale, points in drawn if not pale] == [[[10, 90], [20, 98], [30, 99]], [[12, 95]]]
    assert [points for pale, points in drawn if pale and points] == [[[25, 97]]]
