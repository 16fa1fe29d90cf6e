"""Every rule by name, and what holds for all of them whatever they see."""

from dataclasses import fields
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_models import model, spec

from raylane.autoscaling.arbiter import LossArbiter
from raylane.autoscaling.observation import ModelSeen, Observation, Phase, ReplicaSeen
from raylane.autoscaling.policy import Policy, Wisher
from raylane.autoscaling.rules.registry import RULES, RuleEntry, build_rule
from raylane.cluster.errors import UsageError

NAMES = sorted(RULES)
NOISE = [None, float("nan"), float("inf"), -1.0]


@pytest.mark.parametrize("name", NAMES)
def test_every_value_that_may_be_swept_or_drawn_builds_a_rule(name: str) -> None:
    entry = RULES[name]
    for knob, values in {**entry.space, entry.knob: entry.sweep}.items():
        assert len(set(values)) == len(values) >= 2, knob
        for value in values:
            assert getattr(build_rule(name, **{knob: value}), knob) == value


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_names_only_knobs_that_the_rule_has(name: str) -> None:
    entry = RULES[name]
    knobs = {knob.name for knob in fields(entry.rule)}
    assert {entry.knob, *entry.space, *entry.preset} <= knobs
    rule = build_rule(name)
    assert all(getattr(rule, knob) == value for knob, value in entry.preset.items())


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        pytest.param("ray", {}, "rule 'ray' is unknown; there are .*ray-default.*", id="an unknown rule"),
        pytest.param("kpa", {"panik_s": 1}, "'kpa' has no knob 'panik_s'; it has .*panic_s.*", id="an unknown knob"),
    ],
)
def test_mistakes_are_named(name: str, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_rule(name, **knobs)


def test_an_ablation_differs_from_the_whole_rule() -> None:
    whole = build_rule("slo")
    parts = [build_rule(name) for name in NAMES if name.startswith("slo-")]
    assert len(parts) == len(set(map(repr, parts))) >= 3
    assert whole not in parts


def observations(seed: int) -> list[ModelSeen]:
    """A series whose totals mostly grow, with readings that are missing or impossible now and then."""
    draw = Random(seed)

    def reading(most: float) -> Any:
        return draw.choice([*NOISE, 0, most, int(draw.uniform(0, most)), draw.uniform(0, most), draw.uniform(0, most)])

    def replica(n: int) -> ReplicaSeen:
        phase, sick = draw.choice(list(Phase)), draw.random() < 0.2
        return ReplicaSeen(f"r{n}", phase, reading(300), reading(300), reading(1.0), reading(1.0), sick=sick)

    total = 0.0
    series = []
    for _ in range(draw.randint(1, 15)):
        total += draw.choice([0.0, 1.0, 50.0, 5000.0]) * draw.random()
        seen = ModelSeen(
            "m",
            draw.randint(0, 12),
            tuple(replica(n) for n in range(draw.randint(0, 4))),
            arrivals_total=draw.choice([total, total, total, total / 2, *NOISE]),
            finished_total=draw.choice([total, total, 0.0, *NOISE]),
            missed_total=draw.choice([total, 0.0, *NOISE]),
            prompt_tokens_total=draw.choice([total * 500, total * 9000, None]),
            output_tokens_total=draw.choice([total * 200, 0.0, None]),
            held=draw.choice([0, 0, 1, 500]),
            queue_age_s=reading(100.0),
        )
        series.append(seen)
    return series


def decide(rule: Wisher, series: list[ModelSeen], every_s: float) -> list[int]:
    policy = Policy({"m": spec(most=10_000)}, rule, LossArbiter())
    memory: Any = {}
    targets = []
    for n, seen in enumerate(series):
        decision, memory = policy.decide(Observation(n * every_s, (seen,), 100_000), memory)
        targets.append(decision.targets["m"].replicas)
    return targets


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32), every_s=st.sampled_from([0.0, 5.0, 61.0, 400.0]))
@settings(max_examples=60)
def test_any_readings_give_a_number_of_replicas_and_the_same_again(name: str, seed: int, every_s: float) -> None:
    series = observations(seed)
    targets = decide(build_rule(name), series, every_s)
    assert all(type(target) is int and target >= 0 for target in targets)
    assert targets == decide(build_rule(name), series, every_s)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fixed"])
@pytest.mark.parametrize("before_s", [0, 300, 3000], ids=["at first", "after five minutes", "after an hour"])
def test_a_held_request_wakes_a_model_from_zero_at_once(name: str, before_s: int) -> None:
    quiet = [model(0)] * (before_s // 5)
    woken = model(0, held=1, arrivals_total=1.0, queue_age_s=0.0)
    targets = decide(build_rule(name), [*quiet, woken], 5.0)
    assert targets == [0] * len(quiet) + [1]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_known_changes_nothing(name: str) -> None:
    blind = ModelSeen("m", 3, tuple(ReplicaSeen(f"r{n}", Phase.READY) for n in range(3)))
    rule = build_rule(name, **({"replicas": 3} if name == "fixed" else {}))
    assert decide(rule, [blind] * 50, 61.0) == [3] * 50


def test_what_an_entry_says_is_one_line() -> None:
    entries: list[RuleEntry] = list(RULES.values())
    assert all(0 < len(entry.description) < 110 and "\n" not in entry.description for entry in entries)
