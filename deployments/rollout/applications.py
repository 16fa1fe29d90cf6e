"""What `raylane deploy` asks of Ray Serve, as data: our applications merged with those that are there. Pure.

Serve takes the whole state in one PUT and deletes the applications that are not in it, so other people's are carried
along as they are. An application restarts when its arguments change; replica counts are not part of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raylane.deployments.config.deployment import DeploymentConfig, ModelConfig

PREFIX = "raylane-"
MODEL_PREFIX = PREFIX + "model-"
GATEWAY = PREFIX + "gateway"
REPLICA = "replica"  # the one deployment in a model's application
VERSION = (
    "2"  # part of every application's arguments: change it when replicas or gateways must restart after an upgrade
)

# Keys of a model that its replicas need not know: a change of them restarts nothing.
SCALED_BY = {"replicas", "slo", "priority", "cold_start_s", "capacity"}

Json = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """What a deploy does to each of our applications."""

    added: tuple[str, ...]
    restarted: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: tuple[str, ...]
    resting: tuple[str, ...] = ()
    """Those of the first, second and last that are left without a replica, until somebody asks for the model."""


def is_ours(application: str) -> bool:
    return application == GATEWAY or application.startswith(MODEL_PREFIX)


def model_application(name: str, model: ModelConfig, replicas: int) -> Json:
    """The Serve application of one model."""
    block = model.model_dump(mode="json", exclude=SCALED_BY, exclude_defaults=True)
    return {
        "name": MODEL_PREFIX + name,
        "route_prefix": None,
        "import_path": "raylane.deployments.app:build_model",
        "args": {"name": name, "block": block, "version": VERSION},
        "deployments": [{"name": REPLICA, "num_replicas": replicas}],
        "external_scaler_enabled": True,
    }


def gateway_application(config: DeploymentConfig, hosts: int) -> Json:
    """The Serve application of the gateway, one replica on each host."""
    block = config.gateway.model_dump(mode="json", exclude_defaults=True)
    return {
        "name": GATEWAY,
        "route_prefix": None,
        "import_path": "raylane.deployments.app:build_gateway",
        "args": {"block": block, "version": VERSION},
        "deployments": [{"name": "gateway", "num_replicas": hosts}],
        "external_scaler_enabled": True,
    }


def required_replicas(config: DeploymentConfig) -> dict[str, int]:
    """Replicas that a new deployment cannot do without: each model's minimum; one where nothing would start it."""
    woken = config.wants_scaling and config.scaling is not None and config.scaling.mode == "act"
    least = 0 if woken else 1
    return {name: max(least, model.replicas.min) for name, model in config.models.items()}


def first_replicas(config: DeploymentConfig, running: Mapping[str, int], gpus: float) -> dict[str, int]:
    """Replicas of each model after a deploy on a cluster with `gpus` GPUs.

    What runs now stays within the new bounds; a new model starts with its minimum. One that may rest starts with one
    replica, which shows that it works, where GPUs are left for it in the config's order, and else at rest.
    """
    found = required_replicas(config)
    for name in running.keys() & found.keys():
        found[name] = max(found[name], min(config.models[name].replicas.max, running[name]))
    left = gpus - sum(config.models[name].gpus * count for name, count in found.items())
    for name, model in config.models.items():
        if name not in running and not found[name] and model.gpus <= left:
            found[name] = 1
            left -= model.gpus
    return found


def merge(config: DeploymentConfig, there: Mapping[str, Json], replicas: Mapping[str, int], hosts: int) -> list[Json]:
    """The applications to PUT: other people's as they are, then ours.

    `there` maps the names of deployed applications to their configs, `replicas` model names to what they are to have.
    Serve takes no application without replicas: one that is to rest is put with one, to be scaled to none at once.
    """
    others = [app for name, app in there.items() if not is_ours(name)]
    models = [model_application(name, model, max(1, replicas[name])) for name, model in config.models.items()]
    return [*others, *models, gateway_application(config, hosts)]


def change(before: Mapping[str, Json], after: list[Json]) -> Change:
    """What a PUT of `after` does to our applications."""
    ours_before = {name: app for name, app in before.items() if is_ours(name)}
    ours_after = {app["name"]: app for app in after if is_ours(app["name"])}
    kept = ours_before.keys() & ours_after.keys()
    same = {name for name in kept if _restart_key(ours_before[name]) == _restart_key(ours_after[name])}
    return Change(
        added=tuple(name for name in ours_after if name not in ours_before),
        restarted=tuple(name for name in ours_after if name in kept and name not in same),
        removed=tuple(name for name in ours_before if name not in ours_after),
        unchanged=tuple(name for name in ours_after if name in same),
    )


def _restart_key(app: Json) -> tuple[Any, ...]:
    """What Serve compares to decide whether an application's replicas are replaced."""
    return app["import_path"], app.get("args") or {}, app.get("runtime_env") or {}
