import itertools
from dataclasses import replace

import numpy as np
import pytest
from small_lab import load, model, setup

from raylane.autoscaling.lab.outcome import outcome
from raylane.autoscaling.lab.setup import Setup
from raylane.autoscaling.lab.static import cheapest_static, replay_static, scale_for_static
from raylane.autoscaling.traces.trace import scaled
from raylane.cluster.errors import UsageError


def two_models() -> Setup:
    """A replica carries about 4 requests a second."""
    return setup(
        [model("a", least=1, most=4), model("b", gpus=2, least=1, most=3)],
        {"a": load(6.0, 180.0), "b": load(4.0, 180.0, seed=2)},
    )


@pytest.mark.parametrize("attainment", [0.8, 0.98])
def test_no_fleet_with_fewer_gpus_attains_as_much(attainment: float) -> None:
    made = two_models()
    every = {
        (a, b): outcome(replay_static(made, {"a": a, "b": b}, 1)).attainment
        for a, b in itertools.product(range(1, 5), range(1, 4))
    }
    enough = [fleet for fleet, attained in every.items() if attained >= attainment]
    fewest = min(a + 2 * b for a, b in enough)
    best = max((fleet for fleet in enough if fleet[0] + 2 * fleet[1] == fewest), key=lambda fleet: every[fleet])
    assert cheapest_static(made, attainment) == dict(zip("ab", best, strict=True))


def test_with_each_no_model_is_left_below() -> None:
    made = two_models()
    counts = cheapest_static(made, 0.97, each=True)
    assert counts is not None
    assert all(one.good >= 0.97 * one.requests for one in outcome(replay_static(made, counts, 1)).models)
    for name in counts:
        fewer = counts | {name: counts[name] - 1}
        models = outcome(replay_static(made, fewer, 1)).models
        assert any(one.good < 0.97 * one.requests for one in models)


def test_none_where_no_fleet_is_enough() -> None:
    made = setup([model(most=1)], {"a": load(30.0, 120.0)})
    assert cheapest_static(made, 0.99) is None
    assert cheapest_static(made, 0.99, each=True) is None


def test_at_the_factor_the_fleet_is_just_enough() -> None:
    made = setup([model(most=4)], {"a": load(5.0, 240.0)})
    factor = scale_for_static(made, {"a": 2}, 0.99, seed=3)["a"]

    def attained(times: float) -> float:
        trace = scaled(made.traces["a"], times, np.random.default_rng(3))
        return outcome(replay_static(replace(made, traces={"a": trace}), {"a": 2}, 3)).attainment

    assert attained(factor) >= 0.99
    assert attained(factor * 1.15) < 0.99


def test_a_fleet_that_can_never_miss_has_no_factor() -> None:
    made = setup([model()], {"a": load(1.0, 10.0)})
    with pytest.raises(UsageError, match=r"a: 1 replicas and 0: still reached at"):
        scale_for_static(made, {"a": 1}, 0.0)
