"""Every rule by name, and what holds for all of them whatever they see."""

import re
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_models import model, spec

from raylane.autoscaling.observation import ModelObservation, Observation, Phase, ReplicaObservation
from raylane.autoscaling.pipeline import Policy
from raylane.autoscaling.propose import Proposer
from raylane.autoscaling.rules.entry import RuleEntry
from raylane.autoscaling.rules.registry import RULES, build_rule, deployable_policies
from raylane.autoscaling.share import by_loss
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


BAD_KNOBS: list[tuple[str, str, object, str]] = [
    ("ray-default", "target_ongoing", 0, "greater than 0"),
    ("ray-tuned", "target_share", "abc", "a valid number"),
    ("apa", "kv_target", 0, "greater than 0"),
    ("apa", "max_down_rate", 0.5, "greater than or equal to 1"),
    ("planner", "target_load", 0, "greater than 0"),
    ("planner", "forecast", "foo", "'constant' or 'linear'"),
    ("planner", "plan_every_s", 0.0, "greater than 0"),
    ("slo", "target_load", 0, "greater than 0"),
    ("slo", "burst_margin", float("nan"), "a finite number"),
    ("slo", "burst_margin", float("inf"), "a finite number"),
    ("slo", "burst_margin", None, "a valid number"),
    ("slo", "hold_s", True, "a valid number"),
    ("slo", "forecast", 1, "a valid boolean"),
    ("kpa", "max_down_rate", 0, "greater than or equal to 1"),
    ("fixed", "replicas", 2.5, "a valid dictionary; Input should be a valid integer"),
    ("fixed", "replicas", -1, "a valid dictionary; Input should be greater than or equal to 0"),
    ("fixed", "replicas", {"m": 1.5}, "a valid integer"),
    ("utilization", "step", 1.5, "a valid integer"),
    ("utilization", "step", -3, "greater than 0"),
    ("utilization", "cooldown_on", "never", "'both' or 'shrink'"),
    ("queue", "every_s", -5, "greater than or equal to 0"),
]


@pytest.mark.parametrize(("name", "knob", "value", "wanted"), BAD_KNOBS)
def test_values_that_a_knob_cannot_have_are_refused(name: str, knob: str, value: object, wanted: str) -> None:
    with pytest.raises(UsageError) as refused:
        build_rule(name, **{knob: value})
    assert f"rule {name!r}: knob {knob}: Input should be {wanted}" in str(refused.value)
    assert str(refused.value).endswith(f"(got {value!r})")


@pytest.mark.parametrize(
    ("name", "knob", "value"),
    [
        ("fixed", "replicas", {"m8": 3, "m70": 0}),
        ("slo", "hold_s", 60),
        ("ray-tuned", "target_share", None),
        ("ray-default", "downscale_to_zero_delay_s", None),
        ("kpa", "stable_s", 0.0),
    ],
)
def test_values_that_a_knob_can_have_reach_the_rule_as_they_are(name: str, knob: str, value: object) -> None:
    assert getattr(build_rule(name, **{knob: value}), knob) is value


@pytest.mark.parametrize("name", NAMES)
def test_every_default_of_a_rule_is_a_value_of_its_knob(name: str) -> None:
    rule = build_rule(name)
    assert build_rule(name, **{knob.name: getattr(rule, knob.name) for knob in fields(RULES[name].rule)}) == rule


def test_an_ablation_differs_from_the_whole_rule() -> None:
    whole = build_rule("slo")
    parts = [build_rule(name) for name in NAMES if name.startswith("slo-")]
    assert len(parts) == len(set(map(repr, parts))) >= 3
    assert whole not in parts


def observations(seed: int) -> list[ModelObservation]:
    """A series whose totals mostly grow, with readings that are missing or impossible now and then."""
    draw = Random(seed)

    def reading(most: float) -> Any:
        return draw.choice([*NOISE, 0, most, int(draw.uniform(0, most)), draw.uniform(0, most), draw.uniform(0, most)])

    def replica(n: int) -> ReplicaObservation:
        phase, sick = draw.choice(list(Phase)), draw.random() < 0.2
        return ReplicaObservation(f"r{n}", phase, reading(300), reading(300), reading(1.0), reading(1.0), sick=sick)

    total = 0.0
    series = []
    for _ in range(draw.randint(1, 15)):
        total += draw.choice([0.0, 1.0, 50.0, 5000.0]) * draw.random()
        seen = ModelObservation(
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


def decide(rule: Proposer, series: list[ModelObservation], every_s: float) -> list[int]:
    policy = Policy({"m": spec(most=10_000)}, rule, by_loss)
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
    blind = ModelObservation("m", 3, tuple(ReplicaObservation(f"r{n}", Phase.READY) for n in range(3)))
    rule = build_rule(name, **({"replicas": 3} if name == "fixed" else {}))
    assert decide(rule, [blind] * 50, 61.0) == [3] * 50


def test_what_an_entry_says_is_one_line() -> None:
    entries: list[RuleEntry] = list(RULES.values())
    assert all(0 < len(entry.description) < 110 and "\n" not in entry.description for entry in entries)


def test_the_docs_list_the_policies_of_a_config() -> None:
    page = (Path(__file__).parents[3] / "docs" / "autoscaling.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith("| `policy` |"))
    assert sorted(re.findall(r"`([\w-]+)`", row.split("|")[3])) == sorted(deployable_policies())
