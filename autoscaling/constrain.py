"""Stage 3 of a decision: what holds whatever a policy says: bounds, and patience after a start. Pure."""

from collections.abc import Mapping
from enum import Enum

from raylane.autoscaling.decision import Reason, Target
from raylane.autoscaling.observation import ModelObservation, Observation
from raylane.autoscaling.propose import Specs
from raylane.autoscaling.share import deal, gpus_of
from raylane.autoscaling.spec import ModelSpec


class WatchedFor(Enum):
    """How long the load has been watched. A replay has nothing to catch up with: it begins at LONG."""

    NO_TIME = "this is the first look"
    SHORT = "too short to know a rate"
    LONG = "long enough"


def constrain(
    targets: Mapping[str, Target], specs: Specs, seen: Observation, watched: WatchedFor = WatchedFor.LONG
) -> dict[str, Target]:
    """The targets within the models' bounds.

    At the first look (NO_TIME) they repair bounds and wake, nothing else. While the load was watched for a SHORT time,
    models grow only while requests wait longer than their SLO allows, do not shrink, and grow by no more than there are
    GPUs left: what the withheld shrinks were to pay for has to wait too.
    """
    observed = {model.name: model for model in seen.models}
    held = {name: _patient(target, observed[name], specs[name], watched) for name, target in targets.items()}
    bounded = {name: _bounded(target, specs[name]) for name, target in held.items()}
    return bounded if watched is WatchedFor.LONG else _fitting(bounded, specs, seen)


def unchanged(seen: Observation) -> dict[str, Target]:
    """What is there, and one replica where requests wait for a model that has none."""
    return {model.name: _kept(model) for model in seen.models}


def _patient(target: Target, seen: ModelObservation, spec: ModelSpec, watched: WatchedFor) -> Target:
    if watched is WatchedFor.NO_TIME:
        return _kept(seen)
    late = seen.held or (seen.queue_age_s or 0.0) > spec.slo.ttft_ms / 1e3
    withheld = target.replicas < seen.target or (target.replicas > seen.target and not late)
    if watched is WatchedFor.SHORT and withheld:
        return target._replace(replicas=seen.target, reason=Reason.WARM_UP)
    return target


def _bounded(target: Target, spec: ModelSpec) -> Target:
    replicas = spec.clamp(target.replicas)
    if replicas == target.replicas:
        return target
    return target._replace(replicas=replicas, reason=Reason.FLOOR if replicas > target.replicas else Reason.CEILING)


def _fitting(targets: Mapping[str, Target], specs: Specs, seen: Observation) -> dict[str, Target]:
    """No more growth than GPUs are left for, the model with the fewest replicas first."""
    have = {model.name: model.target for model in seen.models}
    kept = {name: min(have[name], target.replicas) for name, target in targets.items()}
    wanted = {name: targets[name].replicas for name in sorted(targets, key=lambda name: have[name])}
    given = deal(seen.gpus - gpus_of(kept, specs), specs, kept, wanted)
    return {
        name: target
        if given[name] == target.replicas
        else target._replace(replicas=given[name], reason=Reason.PENDING, proposed=target.replicas)
        for name, target in targets.items()
    }


def _kept(seen: ModelObservation) -> Target:
    if seen.held and not seen.target:
        return Target(1, Reason.WAKE, f"{seen.held} requests wait")
    return Target(seen.target, Reason.STEADY)
