"""Policies for a replay: a rule by name with its knobs, under the arbiter it comes with."""

from collections.abc import Mapping
from typing import Any

from raylane.autoscaling.arbiter import LossArbiter
from raylane.autoscaling.lab.setup import Setup
from raylane.autoscaling.policy import Arbiter, Policy, Unshared
from raylane.autoscaling.rules.registry import build_rule

OWN_RULES = ("slo",)  # rules that come with raylane's arbiter; the others get GPUs as Ray gives them


def make_policy(setup: Setup, rule: str, knobs: Mapping[str, Any], name: str) -> Policy:
    """The policy for the models of the setup. UsageError for an unknown rule or knob."""
    arbiter: Arbiter = LossArbiter() if rule.split("-")[0] in OWN_RULES else Unshared()
    specs = {model.spec.name: model.spec for model in setup.models}
    return Policy(specs, build_rule(rule, **knobs), arbiter, name=name)
