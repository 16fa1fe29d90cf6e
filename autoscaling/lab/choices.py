"""What of a replay plan is run: its policies, scenarios and seeds, narrowed and checked before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from raylane.autoscaling.lab.plan import PolicyChoice, ReplayPlan, Scenario, find_trace
from raylane.autoscaling.rules.registry import RULES, check_knobs
from raylane.cluster.errors import UsageError

PLANS = Path(__file__).parents[1] / "plans"
BOUNDS = {"oracle": "knows every request beforehand", "static": "the cheapest fixed fleet"}


@dataclass(frozen=True)
class BoundKnobs:
    """What the bounds are asked for."""

    attainment: Annotated[float, Field(gt=0, le=1)] = 0.99
    each: bool = True
    """Of every model by itself; else of all requests together."""


BOUND_KNOBS: Mapping[str, Any] = asdict(BoundKnobs())


def plan_file(name: Path) -> Path:
    """The file, or the plan of this name that raylane ships."""
    shipped = PLANS / f"{name}.yaml"
    if name.exists() or not shipped.is_file():
        if not name.is_file():
            known = ", ".join(sorted(path.stem for path in PLANS.glob("*.yaml")))
            raise UsageError(f"{name}: no such plan; raylane ships {known}")
        return name
    return shipped


def narrowed(
    plan: ReplayPlan,
    *,
    policies: Sequence[str] = (),
    scenarios: Sequence[str] = (),
    knobs: Mapping[str, Any] | None = None,
    seeds: int | None = None,
    sweep: bool = False,
) -> ReplayPlan:
    """The plan with only these; empty means all of the plan's. Knobs go to every policy that has them; `sweep` adds
    every policy at the other levels of its rule's one knob.

    UsageError, naming what there is, for what is unknown.
    """
    chosen = with_knobs([_policy(plan, name) for name in policies] or list(plan.policies), knobs or {})
    if not chosen:
        raise UsageError(f"plan {plan.name} names no policies; name one with --policy: {', '.join(known_rules())}")
    if sweep:
        chosen = [setting for choice in chosen for setting in swept(choice)]
    names = [choice.name for choice in chosen]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"policy {', '.join(double)} is there twice; a label tells two of one rule apart")
    for choice in chosen:
        check_choice(choice)
    kept = {name: _scenario(plan, name) for name in scenarios} or plan.scenarios
    return plan.model_copy(update={"policies": tuple(chosen), "scenarios": kept, "seeds": seeds or plan.seeds})


def swept(choice: PolicyChoice) -> list[PolicyChoice]:
    """The choice, then the same at the other levels of the knob that trades GPU-hours for attainment, one line in the
    Pareto figure. A bound has no such knob and stays alone."""
    if choice.rule in BOUNDS:
        return [choice]
    entry = RULES[choice.rule]
    own = {**knobs_of(choice.rule), **entry.preset, **choice.knobs}[entry.knob]
    others = [
        {
            "knobs": {**choice.knobs, entry.knob: level},
            "label": f"{choice.name} {entry.knob}={level}",
            "curve": choice.line,
        }
        for level in entry.sweep
        if level != own
    ]
    return [choice, *(choice.model_copy(update=other) for other in others)]


def known_rules() -> list[str]:
    return [*RULES, *BOUNDS]


def knobs_of(rule: str) -> dict[str, Any]:
    """Every knob of a rule with its default. UsageError for an unknown rule."""
    return {knob.name: knob.default for knob in fields(_knob_class(rule))}


def check_choice(choice: PolicyChoice) -> None:
    """UsageError for an unknown rule, an unknown knob, or a value that the knob cannot have."""
    check_knobs(f"policy {choice.name!r}", _knob_class(choice.rule), choice.knobs)


def _knob_class(rule: str) -> type:
    if rule in BOUNDS:
        return BoundKnobs
    if rule not in RULES:
        raise UsageError(f"policy {rule!r} is unknown; there are {', '.join(known_rules())}")
    return RULES[rule].rule


def with_knobs(choices: Sequence[PolicyChoice], knobs: Mapping[str, Any]) -> list[PolicyChoice]:
    """Each choice with those of the knobs that it has. UsageError for a knob that none has."""
    known = {choice.rule: knobs_of(choice.rule) for choice in choices}
    for knob in knobs:
        if not any(knob in each for each in known.values()):
            have = "; ".join(f"{rule} has {', '.join(each)}" for rule, each in known.items())
            raise UsageError(f"no policy has a knob {knob!r}: {have}")
    return [
        choice.model_copy(
            update={"knobs": choice.knobs | {knob: v for knob, v in knobs.items() if knob in known[choice.rule]}}
        )
        for choice in choices
    ]


def need_traces(scenario: Scenario, folder: Path) -> None:
    """UsageError when a file that the scenario needs is not there."""
    for traffic in scenario.traffic.values():
        for name in filter(None, (traffic.trace, traffic.rates, traffic.lengths)):
            find_trace(name, folder)


def _policy(plan: ReplayPlan, name: str) -> PolicyChoice:
    by_name = {choice.name: choice for choice in plan.policies}
    if name not in by_name and name not in known_rules():
        every = dict.fromkeys([*by_name, *known_rules()])
        raise UsageError(f"policy {name!r} is unknown; there are {', '.join(every)}")
    return by_name.get(name) or PolicyChoice(rule=name)


def _scenario(plan: ReplayPlan, name: str) -> Scenario:
    if name not in plan.scenarios:
        raise UsageError(f"scenario {name!r} is not in plan {plan.name}; there are {', '.join(plan.scenarios)}")
    return plan.scenarios[name]
