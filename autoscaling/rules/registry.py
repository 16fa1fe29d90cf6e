"""Every rule by name. A new rule is a module beside this one, with a RuleEntry, and its line in RULES."""

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from raylane.autoscaling.pipeline import Policy
from raylane.autoscaling.propose import Proposer, Specs
from raylane.autoscaling.rules import apa, fixed, kpa, planner, queue, ray_default, slo, slo_parts, utilization
from raylane.autoscaling.rules.entry import RuleEntry
from raylane.autoscaling.share import SHARINGS
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Host

RULES: dict[str, RuleEntry] = {
    "slo": slo.ENTRY,
    "slo-with-forecast": slo_parts.WITH_FORECAST,
    "slo-no-learning": slo_parts.NO_LEARNING,
    "slo-no-band": slo_parts.NO_BAND,
    "slo-no-margin": slo_parts.NO_MARGIN,
    "slo-no-hold": slo_parts.NO_HOLD,
    "slo-no-confidence": slo_parts.NO_CONFIDENCE,
    "fixed": fixed.ENTRY,
    "ray-default": ray_default.AS_SHIPPED,
    "ray-tuned": ray_default.TUNED,
    "utilization": utilization.NVML,
    "utilization-effective": utilization.EFFECTIVE,
    "queue": queue.ENTRY,
    "kpa": kpa.ENTRY,
    "apa": apa.ENTRY,
    "planner": planner.ENTRY,
}


def deployable_policies() -> tuple[str, ...]:
    """What `scaling.policy` of a deployment config may be."""
    return tuple(name for name, entry in RULES.items() if entry.deployable)


def entry_of(name: str) -> RuleEntry:
    """UsageError, with those there are, for an unknown rule."""
    entry = RULES.get(name)
    if entry is None:
        raise UsageError(f"rule {name!r} is unknown; there are {', '.join(RULES)}")
    return entry


def build_rule(name: str, **knobs: object) -> Proposer:
    """The rule of this name; knobs that are not given keep its preset or default.

    UsageError for an unknown rule, an unknown knob or a value that the knob cannot have.
    """
    entry = entry_of(name)
    check_knobs(f"rule {name!r}", entry.rule, knobs)
    rule: Proposer = entry.rule(**{**entry.preset, **knobs})
    return rule


def check_knobs(owner: str, rule: type, knobs: Mapping[str, object]) -> None:
    """UsageError, beginning with `owner`, for a knob that the rule has no field for, and for a value that the field's
    annotation does not allow: another kind, out of its bounds, NaN or infinite."""
    known = _knob_types(rule)
    for knob, value in knobs.items():
        if knob not in known:
            raise UsageError(f"{owner} has no knob {knob!r}; it has {', '.join(known)}")
        try:
            known[knob].validate_python(value)
        except ValidationError as error:
            problems = "; ".join(dict.fromkeys(item["msg"] for item in error.errors()))
            raise UsageError(f"{owner}: knob {knob}: {problems} (got {value!r})") from error


@lru_cache
def _knob_types(rule: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(rule, include_extras=True)
    exact = ConfigDict(strict=True, allow_inf_nan=False)
    return {knob.name: TypeAdapter(hints[knob.name], config=exact) for knob in fields(rule)}


def policy_for(
    rule: str,
    knobs: Mapping[str, Any],
    specs: Specs,
    *,
    sharing: str | None = None,
    decide_every_s: float = 5.0,
    hosts: tuple[Host, ...] = (),
    name: str = "",
) -> Policy:
    """The policy that runs this rule, live and in the lab. `sharing` None: as the rule's entry says.

    UsageError for an unknown rule, an unknown knob or a value that the knob cannot have.
    """
    proposer = build_rule(rule, **knobs)
    share = entry_of(rule).sharing if sharing is None else SHARINGS[sharing]
    return Policy(specs, proposer, share, decide_every_s, hosts, name)
