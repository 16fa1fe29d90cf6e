"""The two halves of a decision: what each model wishes for on its own, and what the fleet can give. Pure.

A policy remembers nothing itself: `decide` takes what it remembered and returns what it will remember, so the same
inputs give the same outputs, in the replay lab and live.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from raylane.autoscaling.decision import Decision, Reason, Target
from raylane.autoscaling.moves import DomainMoves
from raylane.autoscaling.observation import ModelSeen, Observation, clean
from raylane.autoscaling.profile import CapacityProfile
from raylane.deployments.config import Slo


@dataclass(frozen=True)
class ModelSpec:
    """What a policy knows of a model beforehand."""

    name: str
    gpus: int
    """GPUs of one replica."""
    min_replicas: int
    max_replicas: int
    slo: Slo
    profile: CapacityProfile
    cold_start_s: float
    """From the decision to the first token of a new replica: the median expected."""
    priority: float = 1.0
    """Weight of one of its requests where models compete."""


class Wish(NamedTuple):
    """What one model would have if the fleet were its own."""

    replicas: int
    reason: Reason
    need: float | None = None
    """Replicas its load fills, as a fraction: what the arbiter weighs. None: as many as wished."""
    detail: str = ""


class Wisher(Protocol):
    """A rule for one model. `memory` is what it returned last time; None the first time."""

    def wish(self, spec: ModelSpec, seen: ModelSeen, at_s: float, memory: Any) -> tuple[Wish, Any]: ...


class Arbiter(Protocol):
    """Fits wishes into the fleet."""

    def share(self, wishes: Mapping[str, Wish], specs: Mapping[str, ModelSpec], seen: Observation) -> Decision: ...


Memory = Mapping[str, Any]


@dataclass(frozen=True)
class Policy:
    """One rule for every model, and one arbiter for all. Wishes are clamped to each model's bounds."""

    specs: Mapping[str, ModelSpec]
    wisher: Wisher
    arbiter: Arbiter
    decide_every_s: float = 5.0
    moves: DomainMoves | None = None
    """Where set, singles are moved out of the way of pairs."""
    name: str = ""

    def decide(self, seen: Observation, memory: Memory) -> tuple[Decision, Memory]:
        """Replicas for every model that is known, with reasons; and what to remember. Start with an empty memory."""
        wishes: dict[str, Wish] = {}
        remembered: dict[str, Any] = {}
        for model in map(clean, seen.models):
            spec = self.specs.get(model.name)
            if spec is not None:
                wish, remembered[model.name] = self.wisher.wish(spec, model, seen.at_s, memory.get(model.name))
                wishes[model.name] = clamp(wish, spec)
        decision = self.arbiter.share(wishes, self.specs, seen)
        if self.moves is not None:
            decision = self.moves.plan(decision, seen, {name: spec.gpus for name, spec in self.specs.items()})
        return decision, remembered


def clamp(wish: Wish, spec: ModelSpec) -> Wish:
    """The wish within the model's bounds."""
    if wish.replicas < spec.min_replicas:
        return wish._replace(replicas=spec.min_replicas, reason=Reason.FLOOR)
    if wish.replicas > spec.max_replicas:
        return wish._replace(replicas=spec.max_replicas, reason=Reason.CEILING)
    return wish


@dataclass(frozen=True)
class Unshared:
    """Gives every wish as it is, in the order of the models, as far as GPUs last: Ray's way, where a replica too many
    waits until another model gives its GPUs up. Models keep what they have."""

    def share(self, wishes: Mapping[str, Wish], specs: Mapping[str, ModelSpec], seen: Observation) -> Decision:
        have = {model.name: model.target for model in seen.models if model.name in wishes}
        kept = {name: min(wish.replicas, have[name]) for name, wish in wishes.items()}
        draining = sum(
            specs[model.name].gpus * sum(1 for r in model.replicas if r.phase == "draining" and r.gpus)
            for model in seen.models
            if model.name in specs
        )
        left = seen.gpus - draining - sum(specs[name].gpus * count for name, count in kept.items())
        targets = {}
        for name, wish in wishes.items():
            more = min(wish.replicas - kept[name], max(0, left) // specs[name].gpus)
            left -= more * specs[name].gpus
            given = kept[name] + more
            reason = wish.reason if given == wish.replicas else Reason.PENDING
            targets[name] = Target(given, reason, wish.detail)
        return Decision(targets)
