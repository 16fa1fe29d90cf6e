"""Run a random share of the recorded runs, and one random bound, again:
`python -m studies.autoscaling.check RESULTS_FOLDER`.

Runs of the test and of the tuning are drawn from alike. Each call draws others unless it is given a seed, which it
prints. Outcomes must be equal to the last digit. Scenarios whose traces are not on this machine are left out, aloud.
"""

import argparse
import json
import math
import os
import random
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylane.autoscaling.lab.choices import need_traces
from raylane.cluster.errors import FailedError, RaylaneError, UsageError
from studies.autoscaling.bounds import World, bounds_of, read_bounds
from studies.autoscaling.job import Job, Records
from studies.autoscaling.load import PLAN, the_plan
from studies.autoscaling.runner import run_jobs

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Checked:
    """What was run again, and which scenarios could not be, with the reason."""

    runs: int
    recorded: int
    bound: World | None
    """None where none is recorded, or none can be computed here."""
    left_out: Mapping[str, str]


def check(results: Path, share: float, seed: int, workers: int) -> Checked:
    """FailedError when a record is not what its run gives, or stands under another run's key."""
    if not 0.0 < share <= 1.0:
        raise UsageError(f"--share {share:g} is not within 0 and 1")
    records = recorded_runs(results)
    bounds = read_bounds(results / "bounds.jsonl")
    left_out = without_traces([*records, *bounds])
    chosen = draw([record for record in records if record["scenario"] not in left_out], share, seed)
    bound = draw_bound([record for record in bounds if record["scenario"] not in left_out], seed)
    wrong = [*wrong_keys(records), *differences(chosen, workers)]
    if bound is not None:
        wrong += wrong_bound(bound)
    if wrong:
        raise FailedError(f"{len(wrong)} of the records are not what their runs give:\n" + "\n".join(wrong))
    return Checked(len(chosen), len(records), None if bound is None else _world(bound), left_out)


def recorded_runs(results: Path) -> Sequence[Record]:
    """Every run of the test, of the tuning and of the week. UsageError without one of the test."""
    if not (found := Records(results / "test").read()):
        raise UsageError(f"{results}: no runs in test.parquet or test/*.jsonl")
    others = [Records(results / part).read() for part in ("tuning", "week")]
    return [record for each in (found, *others) for record in each]


def draw(records: Sequence[Record], share: float, seed: int) -> list[Record]:
    """This share of the records, at least one; the same for the same seed."""
    rng = random.Random(seed)
    return rng.sample(list(records), min(len(records), math.ceil(share * len(records))))


def draw_bound(records: Sequence[Record], seed: int) -> Record | None:
    """One of the bounds, the same for the same seed; None where there is none."""
    return random.Random(seed).choice(list(records)) if records else None


def without_traces(records: Sequence[Record]) -> dict[str, str]:
    """Scenarios that need a trace which is not there, and which."""
    found = {}
    for scenario in dict.fromkeys(record["scenario"] for record in records):
        if scenario not in the_plan().scenarios:
            raise UsageError(f"scenario {scenario!r} is not in {PLAN.name}")
        try:
            need_traces(the_plan().scenarios[scenario], PLAN.parent)
        except UsageError as error:
            found[scenario] = str(error)
    return found


def wrong_keys(records: Sequence[Record]) -> Iterator[str]:
    """Records whose key is not that of the run they describe."""
    for record in records:
        expected = Job.from_json(record).key
        if record["key"] != expected:
            yield f"{_name(record)}: recorded under {record['key']}, the run's key is {expected}"


def differences(records: Sequence[Record], workers: int) -> Iterator[str]:
    """The first differing figure of each record that its run does not give."""
    with tempfile.TemporaryDirectory() as folder:
        again = Records(Path(folder))
        run_jobs([Job.from_json(record) for record in records], again, workers)
        outcomes = {record["key"]: record["outcome"] for record in again.read()}
    for record in records:
        new = outcomes[Job.from_json(record).key]
        if new != record["outcome"]:
            yield f"{_name(record)}: {_first_difference(record['outcome'], new)}"


def wrong_bound(record: Record) -> Iterator[str]:
    """The first differing figure of a bound that is computed anew; some minutes for a scenario of a day."""
    new = json.loads(json.dumps(bounds_of(_world(record))))
    if new != record:
        yield f"bounds of {record['scenario']}, seed {record['seed']}: {_first_difference(record, new)}"


def _first_difference(old: Record, new: Record) -> str:
    figure = next(name for name in {**old, **new} if old.get(name) != new.get(name))
    return f"{figure} is recorded as {old.get(figure)}, now {new.get(figure)}"


def _world(record: Record) -> World:
    return record["scenario"], record["seed"]


def _name(record: Record) -> str:
    return f"{record['scenario']}, {record['policy']}, seed {record['seed']} ({record['key']})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="studies.autoscaling.check", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--share", type=float, default=0.02, help="of the records, 0 to 1")
    parser.add_argument("--seed", type=int, help="which records are drawn (without it others each time)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"--seed {seed}", flush=True)
    try:
        done = check(options.results, options.share, seed, options.workers)
    except RaylaneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for scenario, reason in done.left_out.items():
        print(f"NOT CHECKED: {scenario}: {reason}", file=sys.stderr)
    bound = "no bound" if done.bound is None else f"the bounds of {done.bound[0]}, seed {done.bound[1]}"
    print(f"{done.runs} of {done.recorded} records, and {bound}, run again: equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
