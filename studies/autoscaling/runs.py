"""The records of a study, read back: runs by scenario, policy and conditions, and the bounds beside them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raylane.autoscaling.lab.pareto import Point
from raylane.cluster.errors import UsageError
from studies.autoscaling.job import Conditions, Records
from studies.autoscaling.tune import KNOBS

Measure = Literal["worst_model", "attainment"]
"""Attainment of the model that attains least, or of all requests pooled."""
Curves = Mapping[int, Sequence[Point]]
"""For each seed the points of one policy's sweep."""

NORMAL = Conditions()
OWN = "slo"
TITLES: Mapping[Measure, str] = {"worst_model": "every model", "attainment": "all requests pooled"}
_IN_BOUNDS: Mapping[Measure, str] = {"worst_model": "each", "attainment": "pooled"}


@dataclass(frozen=True)
class StudyRun:
    """One finished replay of the study."""

    scenario: str
    policy: str
    rule: str
    knobs: str
    """As JSON with sorted keys."""
    seed: int
    conditions: Conditions
    outcome: Mapping[str, Any]

    def point(self, measure: Measure) -> Point:
        return Point(self.outcome[measure], self.outcome["gpu_hours"])

    @property
    def ablation(self) -> bool:
        """raylane's own rule with a part switched off."""
        return self.rule.startswith(f"{OWN}-")

    @property
    def baseline(self) -> bool:
        """A tuned reactive rule of somebody else, not one as shipped and not a fixed fleet."""
        return self.policy == self.rule and self.rule != "fixed" and self.rule.split("-")[0] != OWN


@dataclass(frozen=True)
class Bounds:
    """What no policy can beat, or need not: for one scenario and seed, GPU-hours; None where it is not reached."""

    scenario: str
    seed: int
    fluid: float | None
    static: Mapping[str, float | None]
    oracle: Mapping[str, float | None]

    def of(self, kind: str, measure: Measure) -> float | None:
        """The bound of this kind: fluid, static or oracle."""
        if kind == "fluid":
            return self.fluid
        both: Mapping[str, float | None] = getattr(self, kind)
        return both.get(_IN_BOUNDS[measure])


@dataclass(frozen=True)
class Study:
    """Everything a results folder holds."""

    runs: tuple[StudyRun, ...]
    bounds: tuple[Bounds, ...]
    knobs: Mapping[str, Mapping[str, Any]]
    week: tuple[StudyRun, ...] = ()

    def scenarios(self) -> list[str]:
        """Names in the order in which they were first run."""
        return list(dict.fromkeys(run.scenario for run in self.runs))

    def normal(self, scenario: str) -> list[StudyRun]:
        return [run for run in self.runs if run.scenario == scenario and run.conditions == NORMAL]

    def bound(self, scenario: str, kind: str, measure: Measure) -> dict[int, float]:
        """The bound on each seed that has it."""
        found = {one.seed: one.of(kind, measure) for one in self.bounds if one.scenario == scenario}
        return {seed: value for seed, value in found.items() if value is not None}


def read_study(folder: Path) -> Study:
    """The results folder. Bounds may be missing, knobs are then those of the package; UsageError without one run."""
    runs, week = (_read_runs(folder / part) for part in ("test", "week"))
    if not runs:
        raise UsageError(f"{folder}: no runs in test.parquet or test/*.jsonl; make autoscaling-study makes them")
    return Study(runs, tuple(_read_bounds(folder / "bounds.jsonl")), _read_knobs(folder / "knobs.json"), week)


def _read_runs(folder: Path) -> tuple[StudyRun, ...]:
    return tuple(map(_run, Records(folder).read()))


def _read_knobs(path: Path) -> Mapping[str, Mapping[str, Any]]:
    found = next((each for each in (path, KNOBS) if each.is_file()), None)
    if found is None:
        raise UsageError(f"{path}: no such file, and no {KNOBS}: which setting of a rule is the tuned one?")
    entries: Mapping[str, Mapping[str, Any]] = json.loads(found.read_text(encoding="utf-8"))
    return entries


def _run(record: Mapping[str, Any]) -> StudyRun:
    return StudyRun(
        record["scenario"],
        record["policy"],
        record["rule"],
        json.dumps(record["knobs"], sort_keys=True),
        record["seed"],
        Conditions(**record["conditions"]),
        record["outcome"],
    )


def _read_bounds(path: Path) -> Iterable[Bounds]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in filter(str.strip, lines):
        data = json.loads(line)
        yield Bounds(
            data["scenario"],
            data["seed"],
            _gpu_hours(data.get("fluid_gpu_hours")),
            {name: _gpu_hours(value) for name, value in (data.get("static") or {}).items()},
            {name: _gpu_hours(value) for name, value in (data.get("oracle") or {}).items()},
        )


def _gpu_hours(value: Any) -> float | None:
    """A number, or a mapping with `gpu_hours` that was `reached`; None else."""
    if isinstance(value, Mapping):
        value = value.get("gpu_hours") if value.get("reached", True) else None
    return None if value is None else float(value)


def by_policy(runs: Iterable[StudyRun]) -> dict[str, list[StudyRun]]:
    """The runs of each policy, policies in the order of their first run: raylane's own, baselines, others."""
    found: dict[str, list[StudyRun]] = defaultdict(list)
    for run in runs:
        found[run.policy].append(run)
    return {name: found[name] for name in sorted(found, key=lambda name: (name != OWN, not found[name][0].baseline))}


def curves(runs: Iterable[StudyRun], measure: Measure) -> Curves:
    """The sweep of one policy, seed by seed."""
    points: dict[int, list[Point]] = defaultdict(list)
    for run in runs:
        points[run.seed].append(run.point(measure))
    return points


def mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)
