"""Policies for a replay: a rule by name with its knobs, sharing the fleet as the rule's registry entry says."""

from collections.abc import Mapping
from typing import Any

from raylane.autoscaling.lab.setup import Setup
from raylane.autoscaling.pipeline import Policy
from raylane.autoscaling.rules.registry import policy_for


def make_policy(
    setup: Setup, rule: str, knobs: Mapping[str, Any], name: str, *, sharing: str | None = None, moves: bool = False
) -> Policy:
    """The policy for the models of the setup. `moves`: singles are moved out of the way of pairs.

    UsageError for an unknown rule or knob.
    """
    specs = {model.spec.name: model.spec for model in setup.models}
    return policy_for(rule, knobs, specs, sharing=sharing, hosts=setup.hosts if moves else (), name=name)
