"""Which runs the study is made of, from the frozen knobs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raylane.autoscaling.rules.registry import RULES
from studies.autoscaling.job import Conditions, Job
from studies.autoscaling.load import the_plan
from studies.autoscaling.tune import KNOBS

SEEDS = range(11, 21)
LONG = ("servegen-weekday", "azure2024-conv", "azure2024-code")  # many requests: fewer levels
LONG_LEVELS = (1, 3, 5)  # of the six of a sweep
WEEK = "week"  # once for each policy, at its tuned setting
AS_SHIPPED = {"ray-default": "Ray Serve's default as shipped", "utilization": "70/40 with 15 min cooldown"}
ABLATIONS = (
    "slo-with-forecast",
    "slo-no-learning",
    "slo-no-margin",
    "slo-no-band",
    "slo-no-hold",
    "slo-no-confidence",
)
CONDITIONS = (
    Conditions(service_time=0.8),
    Conditions(service_time=1.2),
    Conditions(cold_start=0.5),
    Conditions(cold_start=2.0),
    Conditions(profile=0.8),
    Conditions(profile=1.2),
)
CONDITION_SEEDS = {
    "flash-crowd": SEEDS,
    "azure2023-code": SEEDS,
    "azure2024-code": SEEDS[:2],
}
CONDITION_RULES = ("slo", "ray-tuned", "utilization-effective", "kpa")


def held_out_scenarios() -> list[str]:
    """Everything that no knob was tuned on but the week, the short ones first."""
    names = [name for name in the_plan().scenarios if not name.startswith("tune-") and name != WEEK]
    return [name for name in names if name not in LONG] + [name for name in names if name in LONG]


def frozen_knobs(path: Path = KNOBS) -> dict[str, dict[str, Any]]:
    """The tuned setting of each rule."""
    return {rule: entry["knobs"] for rule, entry in json.loads(path.read_text(encoding="utf-8")).items()}


def study_jobs() -> list[Job]:
    """Every run of the test: sweeps, rules as shipped, fixed fleets, ablations; then changed conditions."""
    return [job for scenario in held_out_scenarios() for job in _scenario_jobs(scenario)] + list(_condition_jobs())


def week_jobs() -> list[Job]:
    """Every policy at its tuned setting on the whole week, and fixed fleets of 10 and 12 GPUs."""
    tuned = [Job(WEEK, rule, rule, knobs, SEEDS[0]) for rule, knobs in frozen_knobs().items()]
    shipped = [Job(WEEK, label, rule, {}, SEEDS[0]) for rule, label in AS_SHIPPED.items()]
    fleets = {f"fixed {small} + 3": {"llama-8b": small, "llama-70b": 3} for small in (4, 6)}
    fixed = [Job(WEEK, name, "fixed", {"replicas": counts}, SEEDS[0]) for name, counts in fleets.items()]
    return tuned + shipped + fixed


def _scenario_jobs(scenario: str) -> Iterator[Job]:
    long = scenario in LONG
    knobs = frozen_knobs()
    for seed in SEEDS:
        for rule in knobs:
            yield from sweep(scenario, rule, knobs[rule], seed, LONG_LEVELS if long else range(6))
        for rule, label in AS_SHIPPED.items():
            yield Job(scenario, label, rule, {}, seed)
        yield Job(scenario, "all 12 GPUs", "fixed", {"replicas": {"llama-8b": 6, "llama-70b": 3}}, seed)
        if not long:
            for name in ABLATIONS:
                yield Job(scenario, name, name, _without_preset(name, knobs["slo"]), seed)


def _condition_jobs() -> Iterator[Job]:
    knobs = frozen_knobs()
    for conditions in CONDITIONS:
        for scenario, seeds in CONDITION_SEEDS.items():
            for seed in seeds:
                for rule in CONDITION_RULES:
                    yield from sweep(scenario, rule, knobs[rule], seed, LONG_LEVELS, conditions)


def sweep(
    scenario: str,
    rule: str,
    knobs: dict[str, Any],
    seed: int,
    levels: Any,
    conditions: Conditions = Conditions(),  # noqa: B008 - frozen
) -> Iterator[Job]:
    """The tuned setting, and the same with its aggressiveness knob at these levels."""
    entry = RULES[rule]
    yield Job(scenario, rule, rule, knobs, seed, conditions)
    for level in levels:
        value = entry.sweep[level]
        if knobs.get(entry.knob) != value:
            yield Job(scenario, rule, rule, {**knobs, entry.knob: value}, seed, conditions)


def _without_preset(name: str, knobs: dict[str, Any]) -> dict[str, Any]:
    return {knob: value for knob, value in knobs.items() if knob not in RULES[name].preset}
