"""`raylane export`: a deployment as other tools want it."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
import yaml

from raylane.cluster.errors import UsageError
from raylane.cluster.kuberay import KubeCluster, PodSize, ReplicaNeed, manifest
from raylane.deployments.config.builtin import PREFIX, builtin_config
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.rollout.applications import required_replicas

export = typer.Typer(no_args_is_help=True, help="Write a deployment as other tools want it.")
HEAD = PodSize(cpus=4, memory_gib=16, gpus=0, shm_gib=2)


@export.callback()
def formats() -> None:
    """Write a deployment as other tools want it."""


@export.command()
def kuberay(
    config_file: Annotated[Path, typer.Argument(help="Deployment config (YAML).")],
    image: Annotated[str, typer.Option("--image", help="Container image with raylane, this Ray and the engines.")],
    hosts: Annotated[int, typer.Option("--hosts", min=1, help="GPU hosts, one pod each.")],
    gpus_per_host: Annotated[int, typer.Option("--gpus-per-host", min=0)],
    cpus_per_host: Annotated[int, typer.Option("--cpus-per-host", min=1)] = 16,
    memory_gib: Annotated[int, typer.Option("--memory-gib", min=1, help="Host memory of a GPU pod.")] = 128,
    shm_gib: Annotated[
        int, typer.Option("--shm-gib", min=1, help="Shared memory of a GPU pod, part of its memory.")
    ] = 16,
    name: Annotated[str, typer.Option("--name", help="Name of the RayCluster.")] = "raylane",
    ray_version: Annotated[
        str | None, typer.Option("--ray-version", help="Ray in the image; default: the one installed here.")
    ] = None,
    redis: Annotated[
        str | None, typer.Option("--redis", help="HOST:PORT of a Redis that keeps the head's state.")
    ] = None,
) -> None:
    """Print a KubeRay manifest: the config, the gateway's Service and a RayCluster with one pod for each GPU host."""
    from raylane.autoscaling.live.specs import check_policy

    config = DeploymentConfig.from_yaml(config_file)
    check_policy(config, str(config_file))
    if config.gateway.host not in ("0.0.0.0", "::"):
        raise UsageError(
            f"{config_file}: gateway.host: {config.gateway.host!r} cannot be reached from outside its pod; use 0.0.0.0"
        )
    for model, block in config.models.items():
        draft = getattr(block.engine, "speculative", None) or {}
        for key, folder in (("source", block.source), ("engine.speculative.model", str(draft.get("model") or ""))):
            if folder.startswith((".", "~")):
                raise UsageError(
                    f"{config_file}: models.{model}.{key}: {folder!r} is a folder of this machine; give a hub id, "
                    "builtin:NAME, or the absolute path of a folder in the image"
                )
        if block.source.startswith(PREFIX):
            check_builtin(config_file, model, block.source)
    minimum = required_replicas(config)
    cluster = KubeCluster(
        name=name,
        image=image,
        ray_version=ray_version or version("ray"),
        hosts=hosts,
        host=PodSize(cpus_per_host, memory_gib, gpus_per_host, shm_gib),
        head=HEAD,
        gateway_port=config.gateway.port,
        config_text=config_file.read_text(),
        needs=tuple(
            ReplicaNeed(model, block.gpus, block.reserved_cpus, minimum[model])
            for model, block in config.models.items()
        ),
        redis_address=redis,
    )
    typer.echo(yaml.safe_dump_all(manifest(cluster), sort_keys=False), nl=False)


def check_builtin(config_file: Path, model: str, source: str) -> None:
    """UsageError for a builtin model that does not exist."""
    try:
        builtin_config(source)
    except UsageError as error:
        raise UsageError(f"{config_file}: models.{model}.{error}") from error
