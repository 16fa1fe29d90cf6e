"""Tune every rule on the tuning scenarios with the same budget: `python -m studies.autoscaling.tune FOLDER`.

Each rule gets the same number of settings: its own defaults and random draws from its space. The score is what a user
would pay: GPU-hours over those of the 10-GPU fixed fleet, plus a penalty for each percent that the worst model lacks
to its attainment. The best setting of each rule is frozen in knobs.json; raylane's own must also turn back no more than
once an hour on average, which is asked of no other rule.
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from raylane.autoscaling.rules.registry import RULES
from studies.autoscaling.job import Job, Records
from studies.autoscaling.load import the_plan
from studies.autoscaling.runner import run_jobs

BUDGET = 90
SEED = 1
STATIC_GPUS = 10
WANTED = 0.99
OWN, MOST_REVERSALS_PER_HOUR = "slo", 1.0
PENALTY = 10.0  # a percent of requests counts as much as a tenth of the fixed fleet
KNOBS = Path(__file__).with_name("knobs.json")
TUNED = ("slo", "ray-tuned", "utilization", "utilization-effective", "queue", "kpa", "apa", "planner")


def settings(rule: str) -> list[dict[str, Any]]:
    """The settings to try: the defaults, then draws. The same on every machine."""
    rng = random.Random(f"{rule} {SEED}")
    space = RULES[rule].space
    drawn = [{knob: rng.choice(values) for knob, values in space.items()} for _ in range(BUDGET - 1)]
    return [{}, *drawn]


def tuning_scenarios() -> list[str]:
    return [name for name in the_plan().scenarios if name.startswith("tune-")]


def tuning_jobs() -> list[Job]:
    """Every run of the tuning."""
    return [
        Job(scenario, rule, rule, knobs, SEED)
        for scenario in tuning_scenarios()
        for rule in TUNED
        for knobs in settings(rule)
    ]


def score(outcome: dict[str, Any]) -> float:
    """Less is better; 1 is the fixed fleet at the wanted attainment."""
    return float(
        outcome["gpu_hours"] / (STATIC_GPUS * outcome["hours"]) + PENALTY * max(0.0, WANTED - outcome["worst_model"])
    )


def best_knobs(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The setting of each rule with the best mean score over the tuning scenarios."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        knobs = json.dumps(record["knobs"], sort_keys=True)
        found[record["rule"]][knobs][record["scenario"]] = record["outcome"]
    every = set(tuning_scenarios())
    best = {}
    for rule, outcomes in found.items():
        complete = {knobs: list(each.values()) for knobs, each in outcomes.items() if set(each) == every}
        allowed = {knobs: each for knobs, each in complete.items() if rule != OWN or _steady(each)}
        if allowed:
            knobs = min(allowed, key=lambda name: (_mean_score(allowed[name]), name))
            score_of = round(_mean_score(allowed[knobs]), 4)
            best[rule] = {"knobs": json.loads(knobs), "score": score_of, "tried": len(complete)}
    return best


def _mean_score(outcomes: list[dict[str, Any]]) -> float:
    return sum(map(score, outcomes)) / len(outcomes)


def _steady(outcomes: list[dict[str, Any]]) -> bool:
    turns = [float(each["reversals_per_hour"]) for each in outcomes]
    return sum(turns) / len(turns) <= MOST_REVERSALS_PER_HOUR


def main() -> None:
    records = Records(Path(sys.argv[1]))
    run_jobs(tuning_jobs(), records, workers=int(sys.argv[2]) if len(sys.argv) > 2 else 2)
    records.seal()
    KNOBS.write_text(json.dumps(best_knobs(records.read()), indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
