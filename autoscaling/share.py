"""Stage 2 of a decision: what the fleet has for all models together. Proposals in, targets out. Pure.

Two ways, of which a rule's registry entry names one:

- by loss: GPUs go one replica at a time to the model that loses most without it: the share of its own requests which
  that replica would serve, times the model's priority, for each GPU it takes. Every model's minimum comes first. What a
  model holds already counts a little more than what another lacks, so that two equal models do not pass a GPU to and
  fro.
- in turn: models keep what they have and grow in their order while GPUs last. That is Ray's way: a replica too many
  waits until another model gives its GPUs up.
"""

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, Protocol

from raylane.autoscaling.decision import Proposal, Reason, Target
from raylane.autoscaling.observation import Observation, Phase
from raylane.autoscaling.propose import Proposals, Specs
from raylane.autoscaling.spec import ModelSpec

KEEP_MARGIN = 1.3  # how many times more another model must lose before a replica that runs is given up for it
STILL_NEEDED = 1.1  # a replica that runs counts in full while this much more than the need would use it

Counts = Mapping[str, int]
"""Replicas by model name."""


class Sharing(Protocol):
    """Fits proposals into the fleet. A model that has no proposal gets no target."""

    def __call__(self, proposals: Proposals, specs: Specs, seen: Observation) -> dict[str, Target]: ...


def deal(
    gpus: int, specs: Specs, given: Counts, wanted: Counts, worth: Callable[[str, int], Any] | None = None
) -> dict[str, int]:
    """`given` and as many more of the replicas `wanted` as `gpus` free GPUs hold.

    One replica at a time, to the model whose next one is worth most: `worth(name, what it has so far)`. Without
    `worth`, and among equals, the first of `wanted` is served first.
    """
    dealt, left = dict(given), gpus
    while able := [name for name in wanted if dealt[name] < wanted[name] and specs[name].gpus <= left]:
        best = able[0] if worth is None else max(able, key=lambda name: worth(name, dealt[name]))
        dealt[best] += 1
        left -= specs[best].gpus
    return dealt


def gpus_of(counts: Counts, specs: Specs) -> int:
    """GPUs of so many replicas."""
    return sum(specs[name].gpus * count for name, count in counts.items())


def by_loss(proposals: Proposals, specs: Specs, seen: Observation) -> dict[str, Target]:
    """Every proposal where they fit together; else the best use of the fleet. Never more GPUs than there are."""
    have = {model.name: model.target for model in seen.models}
    wanted = {name: proposal.replicas for name, proposal in proposals.items()}
    if gpus_of(wanted, specs) <= seen.gpus:
        return {name: _target(proposal, proposal.replicas) for name, proposal in proposals.items()}
    first = sorted(wanted, key=lambda name: -specs[name].priority)
    floors = {name: min(specs[name].min_replicas, wanted[name]) for name in first}
    floors = deal(seen.gpus, specs, dict.fromkeys(floors, 0), floors)

    def worth(name: str, count: int) -> tuple[float, int, int]:
        before = have.get(name, 0)
        return _loss(proposals[name], specs[name], count + 1, before), -count, before

    given = deal(seen.gpus - gpus_of(floors, specs), specs, floors, wanted, worth)
    return {
        name: _target(proposal, given[name], Reason.YIELD if given[name] < have.get(name, 0) else Reason.SHARE)
        for name, proposal in proposals.items()
    }


def in_turn(proposals: Proposals, specs: Specs, seen: Observation) -> dict[str, Target]:
    """Every proposal as far as GPUs last, in the order of the models, of which each keeps what it has."""
    have = {model.name: model.target for model in seen.models}
    wanted = {name: proposal.replicas for name, proposal in proposals.items()}
    kept = {name: min(count, have[name]) for name, count in wanted.items()}
    draining = {
        model.name: sum(1 for one in model.replicas if one.phase is Phase.DRAINING and one.gpus)
        for model in seen.models
        if model.name in specs
    }
    given = deal(seen.gpus - gpus_of(draining, specs) - gpus_of(kept, specs), specs, kept, wanted)
    return {name: _target(proposal, given[name], Reason.PENDING) for name, proposal in proposals.items()}


SHARINGS: Mapping[str, Sharing] = {"by-loss": by_loss, "in-turn": in_turn}
"""By the name that a deployment config and a replay plan may give."""


def _loss(proposal: Proposal, spec: ModelSpec, nth: int, have: int) -> float:
    """Share of the model's requests that its nth replica serves, times its priority, for each GPU."""
    need = proposal.need if proposal.need is not None else proposal.replicas
    if need <= 0.0:
        return 0.0
    if nth <= min(have, ceil(need * STILL_NEEDED)):
        return spec.priority * KEEP_MARGIN * min(1.0, 1.0 / need) / spec.gpus
    return spec.priority * max(0.0, min(1.0, need - (nth - 1))) / need / spec.gpus


def _target(proposal: Proposal, given: int, short: Reason = Reason.SHARE) -> Target:
    """The proposal's target; `short` is the reason where it gets fewer."""
    reason = proposal.reason if given >= proposal.replicas else short
    return Target(given, reason, proposal.detail, proposal.replicas, proposal.need)
