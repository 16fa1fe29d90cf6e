"""Stage 1 of a decision: each model by itself. Observations in, proposals out. Pure.

A rule remembers nothing itself: it takes what it remembered and returns what it will remember, so the same inputs give
the same outputs, in the replay lab and live.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation, Observation
from raylane.autoscaling.spec import ModelSpec

Memory = Mapping[str, Any]
"""What the rule remembers of each model, by name. Empty at the start."""
Proposals = Mapping[str, Proposal]
Specs = Mapping[str, ModelSpec]


class Proposer(Protocol):
    """A rule for one model. `memory` is what it returned last time; None the first time."""

    def propose(self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: Any) -> tuple[Proposal, Any]: ...


def propose(proposer: Proposer, specs: Specs, seen: Observation, memory: Memory) -> tuple[dict[str, Proposal], Memory]:
    """What the rule proposes for every model that has a spec, within the model's bounds, and what to remember."""
    proposals: dict[str, Proposal] = {}
    remembered: dict[str, Any] = {}
    for model in seen.models:
        spec = specs.get(model.name)
        if spec is not None:
            found, remembered[model.name] = proposer.propose(spec, model, seen.at_s, memory.get(model.name))
            proposals[model.name] = _bounded(found, spec)
    return proposals, remembered


def _bounded(proposal: Proposal, spec: ModelSpec) -> Proposal:
    replicas = spec.clamp(proposal.replicas)
    if replicas == proposal.replicas:
        return proposal
    reason = Reason.FLOOR if replicas > proposal.replicas else Reason.CEILING
    return proposal._replace(replicas=replicas, reason=reason)
