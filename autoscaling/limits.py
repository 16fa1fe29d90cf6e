"""What the autoscaler itself allows of a policy's answer, and which models share which GPUs. Pure."""

from collections.abc import Mapping

from raylane.autoscaling.decision import Reason, Target
from raylane.autoscaling.observation import ModelSeen, Observation, Phase
from raylane.autoscaling.policy import ModelSpec
from raylane.deployments.config import DeploymentConfig


def limited(target: Target, seen: ModelSeen, spec: ModelSpec, *, first: bool, warm: bool) -> Target:
    """The answer within the model's bounds. The `first` one repairs bounds and wakes, nothing else; until the
    autoscaler is `warm`, that is has watched long enough to know a rate, it grows only while requests wait longer than
    their SLO allows, and does not shrink.
    """
    have = seen.target
    if first:
        target = kept(seen)
    elif not warm and (target.replicas < have or not _late(seen, spec)):
        target = Target(have, Reason.STEADY if target.replicas == have else Reason.HOLD, f"warming up; {target.detail}")
    if target.replicas < spec.min_replicas:
        return Target(spec.min_replicas, Reason.FLOOR, target.detail)
    if target.replicas > spec.max_replicas:
        return Target(spec.max_replicas, Reason.CEILING, target.detail)
    return target


def fitting(targets: Mapping[str, Target], seen: Observation, specs: Mapping[str, ModelSpec]) -> dict[str, Target]:
    """The targets of these models with no more growth than GPUs are left for, the smallest model first: while shrinks
    are withheld, what they were to pay for has to wait too.
    """
    have = {model.name: model.target for model in seen.models}
    left = seen.gpus - sum(specs[name].gpus * min(have[name], target.replicas) for name, target in targets.items())
    fit = dict(targets)
    for name in sorted((name for name in targets if targets[name].replicas > have[name]), key=lambda name: have[name]):
        wants, _, detail = targets[name]
        given = min(wants, have[name] + max(0, left) // specs[name].gpus)
        left -= (given - have[name]) * specs[name].gpus
        if given < wants:
            fit[name] = Target(given, Reason.PENDING, f"wants {wants}; {detail}")
    return fit


def _late(seen: ModelSeen, spec: ModelSpec) -> bool:
    return bool(seen.held) or (seen.queue_age_s or 0.0) > spec.slo.ttft_ms / 1e3


def kept(seen: ModelSeen) -> Target:
    """What is there; one replica where requests wait for a model that has none."""
    if seen.held and not seen.target:
        return Target(1, Reason.WAKE, f"{seen.held} requests wait")
    return Target(seen.target, Reason.STEADY)


def fleets(seen: Observation, specs: Mapping[str, ModelSpec], config: DeploymentConfig) -> tuple[Observation, ...]:
    """The scaled models on GPUs, with the GPUs that models of a fixed size leave them; and each scaled model without
    GPUs, with room for all its replicas, as it competes with nobody.
    """
    scaled = [model for model in seen.models if model.name in specs]
    on_gpus = tuple(model for model in scaled if config.models[model.name].gpus)
    fixed = [model for model in seen.models if model.name not in specs]
    taken = sum(config.models[model.name].gpus * max(model.target, _alive(model)) for model in fixed)
    parts = [Observation(seen.at_s, on_gpus, max(0, seen.gpus - taken))] if on_gpus else []
    for model in scaled:
        if not config.models[model.name].gpus:
            spec = specs[model.name]
            parts.append(Observation(seen.at_s, (model,), spec.gpus * max(spec.max_replicas, model.target)))
    return tuple(parts)


def _alive(model: ModelSeen) -> int:
    return sum(replica.phase is not Phase.DRAINING for replica in model.replicas)
