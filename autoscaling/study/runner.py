"""Run jobs on all cores, and file each as it ends."""

import sys
import time
from collections.abc import Iterable
from multiprocessing import get_context
from typing import Any

from raylane.autoscaling.arbiter import LossArbiter
from raylane.autoscaling.lab.outcome import outcome
from raylane.autoscaling.lab.setup import Setup
from raylane.autoscaling.lab.world import World
from raylane.autoscaling.policy import Arbiter, Policy, Unshared
from raylane.autoscaling.rules.registry import build_rule
from raylane.autoscaling.study.job import Job, Records
from raylane.autoscaling.study.load import setup_of

OWN_RULES = ("slo",)  # rules that come with raylane's arbiter; the others get GPUs as Ray gives them


def run_jobs(jobs: Iterable[Job], records: Records, workers: int) -> int:
    """Run what is missing, in any order; the number of runs made."""
    todo = records.missing(list(jobs))
    begin_s, done = time.monotonic(), 0
    with get_context("fork").Pool(workers, maxtasksperchild=200) as pool:
        for job, found in pool.imap_unordered(_run, sorted(todo, key=lambda job: (job.scenario, job.seed))):
            records.add(job, found)
            done += 1
            if done % 50 == 0 or done == len(todo):
                print(f"{done}/{len(todo)} runs, {time.monotonic() - begin_s:.0f} s", file=sys.stderr)  # noqa: T201
    return done


def _run(job: Job) -> tuple[Job, dict[str, Any]]:
    return job, run_job(job)


def run_job(job: Job) -> dict[str, Any]:
    """The outcome of one job. Depends on nothing but the job, the plan and the traces."""
    setup = setup_of(job)
    return outcome(World(setup, policy_of(job, setup), job.seed).run()).to_json()


def policy_of(job: Job, setup: Setup) -> Policy:
    """The job's policy for the models of the setup."""
    arbiter: Arbiter = LossArbiter() if job.rule.split("-")[0] in OWN_RULES else Unshared()
    specs = {model.spec.name: model.spec for model in setup.models}
    return Policy(specs, build_rule(job.rule, **job.knobs), arbiter, name=job.policy)
