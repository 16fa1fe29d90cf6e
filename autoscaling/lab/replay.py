"""Run a replay plan: every policy on every scenario and seed, in virtual time."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from raylane.autoscaling.lab.choices import BOUND_KNOBS, BOUNDS, need_traces
from raylane.autoscaling.lab.oracle import best_oracle, replay_schedule
from raylane.autoscaling.lab.outcome import outcome
from raylane.autoscaling.lab.plan import (
    PolicyChoice,
    ReplayPlan,
    base_trace,
    lab_models,
    make_setup,
    naming,
    seeded_trace,
)
from raylane.autoscaling.lab.policies import make_policy
from raylane.autoscaling.lab.setup import Setup
from raylane.autoscaling.lab.static import cheapest_static, replay_static
from raylane.autoscaling.lab.world import World
from raylane.autoscaling.traces.trace import Trace
from raylane.cluster.errors import UsageError

Targets = Mapping[str, Sequence[tuple[float, int]]]
"""Replicas asked for, by model: (time, replicas from then on)."""
Where = tuple[str, int]
"""Scenario and seed."""


@dataclass(frozen=True)
class Offered:
    """The requests of one model on one seed of one scenario."""

    requests: int
    cut: int
    """How many of them were longer and cut to the limits of the traffic or of the model."""
    source: str
    """Where they came from and what was done to them."""


@dataclass(frozen=True)
class Replayed:
    """One policy on one seed of one scenario."""

    scenario: str
    policy: str
    rule: str
    knobs: Mapping[str, Any]
    seed: int
    outcome: Mapping[str, Any] | None
    """As JSON; None for a bound that does not exist: no fixed fleet is enough."""
    targets: Targets
    note: str = ""
    curve: str = ""
    """Name of the policy's line in the Pareto figure: settings of one sweep share it."""
    offered: Mapping[str, Offered] = field(default_factory=dict)
    """By model; the same for every policy of the scenario and seed."""


def replay(plan: ReplayPlan, folder: Path, workers: int) -> Iterator[list[Replayed]]:
    """The policies of each scenario and seed, as they end, in the plan's order. `folder`: where the plan's files are.

    UsageError before anything runs when a trace is missing.
    """
    for scenario in plan.scenarios.values():
        need_traces(scenario, folder)
    seeds = range(plan.first_seed, plan.first_seed + plan.seeds)
    wheres = [(scenario, seed) for scenario in plan.scenarios for seed in seeds]
    run = partial(replay_all, plan, folder)
    if workers == 1 or len(wheres) == 1:
        yield from map(run, wheres)
        return
    # a worker that ran our caller's handler of SIGTERM could miss the end of the pool, which is a SIGTERM
    default = (signal.SIGTERM, signal.SIG_DFL)
    with get_context("fork").Pool(min(workers, len(wheres)), signal.signal, default) as pool:
        yield from pool.imap(run, wheres)


def replay_all(plan: ReplayPlan, folder: Path, where: Where) -> list[Replayed]:
    """Every policy on one seed of one scenario."""
    scenario, seed = where
    traces = {name: _requests(plan, scenario, name, seed, folder) for name in plan.scenarios[scenario].traffic}
    if not any(map(len, traces.values())):
        sources = ", ".join(trace.source for trace in traces.values())
        raise UsageError(f"plan {plan.name}: scenario {scenario}: no model has requests on seed {seed} ({sources})")
    setup = make_setup(plan, scenario, plan.hosts(folder), lab_models(plan), traces)
    offered = {name: _offered(trace, setup.traces[name]) for name, trace in traces.items()}
    return [replace(replay_one(setup, choice, seed), offered=offered) for choice in plan.policies]


def _requests(plan: ReplayPlan, scenario: str, model: str, seed: int, folder: Path) -> Trace:
    traffic = plan.scenarios[scenario].traffic[model]
    with naming(f"plan {plan.name}: scenario {scenario}: model {model}"):
        return seeded_trace(base_trace(traffic, model, folder), traffic, seed)


def _offered(asked: Trace, given: Trace) -> Offered:
    cut = (given.input_tokens < asked.input_tokens) | (given.output_tokens < asked.output_tokens)
    return Offered(len(given), int(cut.sum()), given.source)


def replay_one(setup: Setup, choice: PolicyChoice, seed: int) -> Replayed:
    """One policy or bound."""
    if choice.rule in BOUNDS:
        world, note = _replay_bound(setup, choice, seed)
    else:
        policy = make_policy(setup, choice.rule, choice.knobs, choice.name, sharing=choice.sharing, moves=choice.moves)
        world, note = World(setup, policy, seed).run(), ""
    return Replayed(
        setup.name,
        choice.name,
        choice.rule,
        choice.knobs,
        seed,
        None if world is None else outcome(world).to_json(),
        {} if world is None else {model.name: tuple(model.targets) for model in world.models},
        note,
        choice.line,
    )


def _replay_bound(setup: Setup, choice: PolicyChoice, seed: int) -> tuple[World | None, str]:
    knobs = {**BOUND_KNOBS, **choice.knobs}
    attainment, each = float(knobs["attainment"]), bool(knobs["each"])
    whose = "every model" if each else "all requests"
    if choice.rule == "static":
        counts = cheapest_static(setup, attainment, seed, each=each)
        if counts is None:
            return None, f"no fixed fleet reaches {attainment:g} of {whose}"
        return replay_static(setup, counts, seed), ", ".join(f"{count} x {name}" for name, count in counts.items())
    oracle = best_oracle(setup, attainment, (seed,), each=each)
    note = "" if oracle.reached else f"no plan found reaches {attainment:g} of {whose}; this one attains most"
    return replay_schedule(setup, oracle.schedule, seed), note
