"""The worlds of the study: its plan, its traces in a version for each seed, its models under given conditions."""

from functools import lru_cache
from pathlib import Path

from raylane.autoscaling.lab.plan import ReplayPlan, base_trace, lab_models, make_setup, seeded_trace
from raylane.autoscaling.lab.setup import LabModel, Setup
from raylane.autoscaling.traces.trace import Trace
from raylane.cluster.hosts import Host
from studies.autoscaling.job import Conditions, Job

PLAN = Path(__file__).with_name("study.yaml")


def setup_of(job: Job) -> Setup:
    """The world of a job: its seed's version of the scenario's traces."""
    plan = the_plan()
    scenario = plan.scenarios[job.scenario]
    traces = {
        name: seeded_trace(_base(job.scenario, name), traffic, job.seed) for name, traffic in scenario.traffic.items()
    }
    return make_setup(plan, job.scenario, _hosts(), _models(job.conditions), traces)


@lru_cache(maxsize=1)
def the_plan() -> ReplayPlan:
    """The study's plan."""
    return ReplayPlan.from_yaml(PLAN)


@lru_cache(maxsize=1)
def _hosts() -> tuple[Host, ...]:
    return the_plan().hosts(PLAN.parent)


@lru_cache(maxsize=4)
def _base(scenario: str, model: str) -> Trace:
    return base_trace(the_plan().scenarios[scenario].traffic[model], model, PLAN.parent)


@lru_cache(maxsize=16)
def _models(conditions: Conditions) -> dict[str, LabModel]:
    return lab_models(
        the_plan(),
        slowdown=conditions.service_time,
        cold_start_factor=conditions.cold_start,
        profile_factor=conditions.profile,
    )
