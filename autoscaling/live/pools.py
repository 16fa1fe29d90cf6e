"""Which models of a live cluster share which GPUs. Pure."""

from raylane.autoscaling.observation import ModelObservation, Observation, Phase
from raylane.autoscaling.propose import Specs
from raylane.deployments.config.deployment import DeploymentConfig


def pools(seen: Observation, specs: Specs, config: DeploymentConfig) -> tuple[Observation, ...]:
    """The scaled models on GPUs, with the GPUs that models of a fixed size leave them; and each scaled model without
    GPUs, with room for all its replicas, as it competes with nobody.
    """
    scaled = [model for model in seen.models if model.name in specs]
    on_gpus = tuple(model for model in scaled if config.models[model.name].gpus)
    fixed = [model for model in seen.models if model.name not in specs]
    taken = sum(config.models[model.name].gpus * max(model.target, _alive(model)) for model in fixed)
    found = [Observation(seen.at_s, on_gpus, max(0, seen.gpus - taken))] if on_gpus else []
    for model in scaled:
        if not config.models[model.name].gpus:
            spec = specs[model.name]
            found.append(Observation(seen.at_s, (model,), spec.gpus * max(spec.max_replicas, model.target)))
    return tuple(found)


def _alive(model: ModelObservation) -> int:
    return sum(replica.phase is not Phase.DRAINING for replica in model.replicas)
