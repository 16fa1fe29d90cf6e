"""Run jobs on all cores, and file each as it ends."""

import sys
import time
from collections.abc import Iterable
from multiprocessing import get_context
from typing import Any

from raylane.autoscaling.lab.outcome import outcome
from raylane.autoscaling.lab.policies import make_policy
from raylane.autoscaling.lab.world import World
from studies.autoscaling.job import Job, Records
from studies.autoscaling.load import setup_of


def run_jobs(jobs: Iterable[Job], records: Records, workers: int) -> int:
    """Run what is missing, in any order; the number of runs made."""
    todo = records.missing(list({job.key: job for job in jobs}.values()))
    begin_s, done = time.monotonic(), 0
    with get_context("fork").Pool(workers, maxtasksperchild=200) as pool:
        for job, found in pool.imap_unordered(_run, sorted(todo, key=lambda job: (job.scenario, job.seed))):
            records.add(job, found)
            done += 1
            if done % 50 == 0 or done == len(todo):
                print(f"{done}/{len(todo)} runs, {time.monotonic() - begin_s:.0f} s", file=sys.stderr)
    return done


def _run(job: Job) -> tuple[Job, dict[str, Any]]:
    return job, run_job(job)


def run_job(job: Job) -> dict[str, Any]:
    """The outcome of one job. Depends on nothing but the job, the plan and the traces."""
    setup = setup_of(job)
    policy = make_policy(setup, job.rule, job.knobs, job.policy)
    return outcome(World(setup, policy, job.seed).run()).to_json()
