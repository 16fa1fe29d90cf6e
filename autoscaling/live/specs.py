"""What a policy knows of deployed models beforehand: bounds, SLO, capacity, cold start. Reads config.json files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from raylane.autoscaling.pipeline import Policy
from raylane.autoscaling.profile import CapacityProfile, capacity_profile
from raylane.autoscaling.propose import Specs
from raylane.autoscaling.rules.registry import deployable_policies, policy_for
from raylane.autoscaling.spec import ModelSpec
from raylane.cluster.catalog import Accelerator, find_accelerator, need_accelerator
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Host
from raylane.deployments.config.builtin import PREFIX
from raylane.deployments.config.deployment import DeploymentConfig, ModelConfig
from raylane.deployments.config.model_files import describing_file
from raylane.deployments.config.scaling import CapacityConfig, ScalingConfig
from raylane.deployments.engines.simulator.config import SimulatorConfig
from raylane.deployments.simulator.build import engine_for
from raylane.deployments.sizing.checkpoint import read_model_facts
from raylane.deployments.sizing.engine_settings import engine_settings
from raylane.deployments.sizing.fit import Fits, fit
from raylane.deployments.slo import Slo

# Estimates until a start was seen. vLLM 0.26 took 70 s to serve 16 GB of weights on an H200 (results/h200/fault.json),
# and reading from a disk at half a GB/s is common.
BASE_COLD_START_S = 60.0
COLD_START_S_PER_GB = 2.0
UNKNOWN_COLD_START_S = 120.0
SIMULATED_START_S = 5.0  # processes of a simulated engine


def scaled_models(config: DeploymentConfig) -> dict[str, ModelConfig]:
    """The models whose count of replicas is to be decided: those whose bounds leave a choice."""
    if not config.wants_scaling:
        return {}
    return {name: model for name, model in config.models.items() if model.replicas.min < model.replicas.max}


def check_scaling(config: DeploymentConfig, gpu_name: str | None, origin: str) -> None:
    """Raises UsageError for a policy that is none, for knobs that it does not have and for models that it cannot
    scale."""
    check_policy(config, origin)
    if config.wants_scaling:
        model_specs(config, gpu_name, origin)


def check_policy(config: DeploymentConfig, origin: str) -> None:
    """The part of check_scaling that needs no card: the policy and its knobs."""
    if config.scaling is not None:
        chosen_policy(config.scaling, {}, (), origin)


def chosen_policy(scaling: ScalingConfig, specs: Specs, hosts: tuple[Host, ...], origin: str) -> Policy:
    """What the config asks for. Raises UsageError for an unknown policy, an unknown knob or a value that the knob
    cannot have."""
    if scaling.policy not in deployable_policies():
        known = ", ".join(deployable_policies())
        raise UsageError(f"{origin}: scaling.policy: there are {known} (got {scaling.policy!r})")
    try:
        return policy_for(
            scaling.policy,
            scaling.knobs,
            specs,
            sharing=scaling.sharing,
            decide_every_s=scaling.decide_every_s,
            hosts=hosts if scaling.moves else (),
            name=scaling.policy,
        )
    except UsageError as error:
        raise UsageError(f"{origin}: scaling.knobs: {error}") from error


def model_specs(config: DeploymentConfig, gpu_name: str | None, origin: str) -> dict[str, ModelSpec]:
    """A spec for every model that is scaled. `gpu_name` is the fleet's card; simulated engines name their own.

    Raises UsageError, beginning with `origin`, that says what is missing for which model.
    """
    return {
        name: _spec(name, model, gpu_name, f"{origin}: models.{name}") for name, model in scaled_models(config).items()
    }


def with_cold_starts(
    specs: Mapping[str, ModelSpec], config: DeploymentConfig, seen_s: Mapping[str, float]
) -> dict[str, ModelSpec]:
    """The specs with the cold starts that were seen, for models whose config names none."""
    learnt = {name: seen_s[name] for name in specs if name in seen_s and config.models[name].cold_start_s is None}
    return {name: replace(spec, cold_start_s=learnt.get(name, spec.cold_start_s)) for name, spec in specs.items()}


def _spec(name: str, model: ModelConfig, gpu_name: str | None, origin: str) -> ModelSpec:
    if model.slo is None:
        raise UsageError(f"{origin}.slo: is missing; without it nobody can say how many replicas are enough")
    gpu = _card(model, gpu_name)
    return ModelSpec(
        name=name,
        gpus=max(1, model.gpus),  # a model on CPUs competes for nothing, see pools.py
        min_replicas=model.replicas.min,
        max_replicas=model.replicas.max,
        slo=model.slo,
        profile=_profile(model, model.slo, gpu, gpu_name, origin),
        cold_start_s=model.cold_start_s or _estimated_start_s(model, gpu),
        priority=model.priority,
    )


def _card(model: ModelConfig, gpu_name: str | None) -> Accelerator | None:
    if isinstance(model.engine, SimulatorConfig):
        return need_accelerator(model.engine.gpu)
    return find_accelerator(gpu_name) if gpu_name and model.gpus else None


def _profile(
    model: ModelConfig, slo: Slo, gpu: Accelerator | None, gpu_name: str | None, origin: str
) -> CapacityProfile:
    if model.capacity is not None:
        return _given(model.capacity, slo)
    if gpu is None:
        where = f"the card {gpu_name!r} is not in the accelerator catalogue" if gpu_name else "the card is not known"
        raise UsageError(f"{origin}.capacity: is missing, and cannot be computed: {where if model.gpus else 'no card'}")
    if not _has_config(model.source):
        raise UsageError(
            f"{origin}.capacity: is missing, and cannot be computed: {model.source!r} is no builtin and no folder with "
            "a config.json (hub ids are not looked up); name a local copy, or give what a replica can do"
        )
    slowdown, speedup = 1.0, 1.0
    if isinstance(model.engine, SimulatorConfig):
        slowdown, speedup = model.engine.slowdown, model.engine.speedup
    try:
        engine = engine_for(model.source, gpu, engine_settings(model), slowdown=slowdown)
    except UsageError as error:
        raise UsageError(f"{origin}.capacity: is missing, and cannot be computed: {error}") from error
    return capacity_profile(engine, slo).faster(speedup)


def _given(capacity: CapacityConfig, slo: Slo) -> CapacityProfile:
    return CapacityProfile(
        step_s=capacity.step_ms / 1e3,
        prompt_token_s=capacity.prompt_token_ms / 1e3,
        context_token_s=capacity.context_token_ms / 1e3,
        kv_tokens=capacity.kv_tokens,
        max_num_seqs=capacity.max_num_seqs,
        tpot_s=slo.tpot_ms / 1e3,
    )


def _has_config(source: str) -> bool:
    return source.startswith(PREFIX) or describing_file(Path(source)) is not None


def _estimated_start_s(model: ModelConfig, gpu: Accelerator | None) -> float:
    if isinstance(model.engine, SimulatorConfig):
        return model.engine.cold_start_s + SIMULATED_START_S
    if gpu is None or not _has_config(model.source):
        return UNKNOWN_COLD_START_S
    try:
        found = fit(read_model_facts(model.source), gpu, engine_settings(model))
    except UsageError:  # an architecture or a weight format that cannot be sized
        return UNKNOWN_COLD_START_S
    if not isinstance(found, Fits):
        return UNKNOWN_COLD_START_S
    return BASE_COLD_START_S + COLD_START_S_PER_GB * found.weight_bytes * found.settings.gpus / 1e9
