"""What no policy can beat, and what a fixed fleet costs: `python -m studies.autoscaling.bounds FOLDER [WORKERS]`.

One line for each scenario and seed of the test into FOLDER/bounds.jsonl; what is there is not computed again. FOLDER
is not the one of the runs.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from raylane.autoscaling.lab.oracle import PENALTIES, Oracle, best_oracle, fluid_bound
from raylane.autoscaling.lab.outcome import outcome
from raylane.autoscaling.lab.schedule import Schedule
from raylane.autoscaling.lab.setup import Setup
from raylane.autoscaling.lab.static import cheapest_static, replay_static
from raylane.cluster.errors import UsageError
from studies.autoscaling.job import Job
from studies.autoscaling.jobs import LONG, SEEDS, held_out_scenarios
from studies.autoscaling.load import setup_of

ATTAINMENT = 0.99
SHORT_SEEDS, DAY_SEEDS = 3, 1  # of the study's first
DAY_PENALTIES = PENALTIES[:1]  # a replay of a day takes a quarter of a minute, so pooled plans are near the others only

World = tuple[str, int]  # scenario, seed
Record = dict[str, Any]


def worlds() -> Iterator[World]:
    """Every scenario of the test with its seeds, the short ones first."""
    for scenario in held_out_scenarios():
        seeds = SEEDS[: DAY_SEEDS if scenario in LONG else SHORT_SEEDS]
        yield from ((scenario, seed) for seed in seeds)


def bounds_of(world: World) -> Record:
    """The record of one scenario and seed: GPU-hours of each bound, with what it attains."""
    scenario, seed = world
    setup = setup_of(Job(scenario, "bounds", "fixed", {}, seed))
    found = bounds(setup, seed, DAY_PENALTIES, ()) if scenario in LONG else bounds(setup, seed)
    return {"scenario": scenario, "seed": seed, **found}


def bounds(
    setup: Setup, seed: int, each_penalties: Sequence[float] = PENALTIES, pooled_penalties: Sequence[float] = PENALTIES
) -> Record:
    """The bounds of a setup. An oracle knows the cheapest fixed fleets and, pooled, the plan for each model.

    Without penalties, pooled plans are looked for near the one for each model only.
    """
    fleets = {kind: cheapest_static(setup, ATTAINMENT, seed, each=kind == "each") for kind in ("each", "pooled")}
    known = [Schedule(counts, dict.fromkeys(counts, ())) for counts in fleets.values() if counts is not None]
    each = best_oracle(setup, ATTAINMENT, (seed,), each=True, penalties_gpu_s=each_penalties, known=known)
    pooled = best_oracle(
        setup,
        ATTAINMENT,
        (seed,),
        penalties_gpu_s=pooled_penalties,
        known=[each.schedule, *known],
        near=each.margins,
    )
    return {
        "hours": _hours(setup),
        "penalties_gpu_s": {"each": list(each_penalties), "pooled": list(pooled_penalties)},
        "fluid_gpu_hours": fluid_bound(setup),
        "static": {kind: _static(setup, counts, seed) for kind, counts in fleets.items()},
        "oracle": {"each": _oracle(each), "pooled": _oracle(pooled)},
    }


def _static(setup: Setup, counts: dict[str, int] | None, seed: int) -> Record | None:
    """None where no fleet is enough."""
    if counts is None:
        return None
    found = outcome(replay_static(setup, counts, seed))
    gpus = sum(model.spec.gpus * counts[model.spec.name] for model in setup.models)
    return {
        "counts": counts,
        "gpu_hours": gpus * _hours(setup),
        "attainment": found.attainment,
        "worst_model": found.worst_model,
    }


def _oracle(oracle: Oracle) -> Record:
    margins = oracle.margins
    return {
        "gpu_hours": oracle.gpu_hours,
        "attainment": oracle.attainment,
        "worst_model": oracle.worst_model,
        "reached": oracle.reached,
        "headroom": None if margins is None else dict(margins.headroom),
        "replays": len(oracle.points),
    }


def _hours(setup: Setup) -> float:
    return max(trace.duration_s for trace in setup.traces.values()) / 3600


def read_bounds(path: Path) -> list[Record]:
    """The records of a file, none where it does not exist yet. UsageError for a line that is not one."""
    found = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise UsageError(f"{path}: line {number}: not JSON: {error}") from error
    return found


def run_bounds(
    path: Path, wanted: Sequence[World], workers: int, compute: Callable[[World], Record] = bounds_of
) -> int:
    """Append the records that are missing, each as it is ready; how many there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {(record["scenario"], record["seed"]) for record in read_bounds(path)}
    todo = [world for world in wanted if world not in done]
    with get_context("fork").Pool(workers) as pool:
        for record in pool.imap_unordered(compute, todo):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n")
            print(f"{record['scenario']}, seed {record['seed']}", file=sys.stderr)
    return len(todo)


def main() -> None:
    """The folder and the number of workers (2) come from the command line."""
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: python -m studies.autoscaling.bounds FOLDER [WORKERS]")
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    run_bounds(Path(sys.argv[1]) / "bounds.jsonl", list(worlds()), workers)


if __name__ == "__main__":
    main()
