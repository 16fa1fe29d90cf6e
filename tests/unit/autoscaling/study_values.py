"""Records of a study by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.autoscaling.job import Conditions, Job, Records

SHARES = ({"over": 0.5, "under": 0.25}, {"over": 0.7, "under": 0.75})
KNOBS = {"slo": {"knobs": {"burst_margin": 1.0}, "score": 1.0, "tried": 30}, "kpa": {"knobs": {}, "score": 1.5}}


def outcome(gpu_hours: float, worst: float, pooled: float | None = None) -> dict[str, Any]:
    """One run's figures."""
    return {
        "hours": 2.0,
        "gpu_hours": gpu_hours,
        "attainment": worst if pooled is None else pooled,
        "worst_model": worst,
        "worst_10_minutes": 0.5,
        "actions": 6,
        "reversals_per_hour": 1.5,
        "wasted_usd": 2.25,
        "models": [
            {"name": "big", "requests": 100, "good": round(100 * worst), "gpu_hours": gpu_hours * 0.75} | SHARES[0],
            {"name": "small", "requests": 1000, "good": 999, "gpu_hours": gpu_hours * 0.25} | SHARES[1],
        ],
    }


Level = tuple[float, float, float]
"""Value of the knob, GPU-hours, attainment of the worst model."""
SWEEPS: Mapping[str, tuple[str, Sequence[Level]]] = {
    "slo": ("burst_margin", ((0.5, 8.0, 0.97), (1.0, 10.0, 0.98), (2.0, 12.0, 1.0))),
    "kpa": ("target_share", ((0.7, 12.0, 0.96), (0.4, 22.0, 1.0))),
    "queue": ("spare_kv", ((0.1, 9.0, 0.90), (0.3, 11.0, 0.95))),
}


def write(
    root: Path,
    sweeps: Mapping[str, tuple[str, Sequence[Level]]] = SWEEPS,
    scenario: str = "step",
    seeds: Sequence[int] = (11, 12),
    conditions: Conditions = Conditions(),  # noqa: B008 - frozen
) -> None:
    """A results folder. On each later seed everything costs a GPU-hour more."""
    records = Records(root / "test")
    for at, seed in enumerate(seeds):
        for rule, (knob, levels) in sweeps.items():
            for value, gpu_hours, worst in levels:
                job = Job(scenario, rule, rule, {knob: value}, seed, conditions)
                records.add(job, outcome(gpu_hours + at, worst))
    (root / "knobs.json").write_text(json.dumps(KNOBS), encoding="utf-8")


def write_bounds(root: Path, **of: Any) -> None:
    """One line of bounds for the scenario step, seed 11."""
    line = {"scenario": "step", "seed": 11, **of}
    (root / "bounds.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """Tables read back: the first cell of each row and its others; the first row of a name stands."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("| "):
            first, *others = [cell.strip() for cell in line.strip("| ").split(" | ")]
            found.setdefault(first, others)
    return found
