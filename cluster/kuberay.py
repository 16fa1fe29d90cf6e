"""A Ray cluster for the KubeRay operator: the manifest of one deployment, as plain data. Pure.

One pod is one host with all its GPUs: leases and link choice work inside the pod as they do on a bare machine. Field
names are those of the custom resource `RayCluster`, `ray.io/v1` (KubeRay 1.5.1 and later, for `authOptions`).
"""

import re
from dataclasses import dataclass
from typing import Any

from raylane.cluster.errors import UsageError
from raylane.cluster.ray_start import SETTINGS

Json = dict[str, Any]
DNS_NAME = re.compile(r"^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$")  # the operator appends to it and stops at 63
CONFIG_FOLDER = "/etc/raylane"
CONFIG_NAME = "config.yaml"
OPERATORS_OWN = ("RAY_AUTH_MODE",)  # set through authOptions, together with the token's secret


@dataclass(frozen=True)
class PodSize:
    """What one pod asks for; `shm_gib` is memory for /dev/shm, which NCCL and Ray use."""

    cpus: int
    memory_gib: int
    gpus: int
    shm_gib: int


@dataclass(frozen=True)
class KubeCluster:
    """What the manifest is made from. `gpus_of_largest_replica` and `minimum_gpus` come from the deployment config."""

    name: str
    image: str
    ray_version: str
    hosts: int
    host: PodSize
    head: PodSize
    gateway_port: int
    config_text: str
    gpus_of_largest_replica: int
    minimum_gpus: int
    redis_address: str | None = None


def manifest(cluster: KubeCluster) -> list[Json]:
    """The documents to apply: the deployment config, the gateway's Service and the RayCluster.

    Raises UsageError when the name is no DNS label or the pods cannot hold the config's minimum.
    """
    check(cluster)
    return [config_map(cluster), gateway_service(cluster), ray_cluster(cluster)]


def check(cluster: KubeCluster) -> None:
    if not DNS_NAME.match(cluster.name):
        raise UsageError(f"--name: lower case letters, digits and '-', at most 50 (got {cluster.name!r})")
    if cluster.gpus_of_largest_replica > cluster.host.gpus:
        raise UsageError(
            f"--gpus-per-host: a replica needs {cluster.gpus_of_largest_replica} GPUs on one host, "
            f"a pod has {cluster.host.gpus}"
        )
    if cluster.minimum_gpus > cluster.hosts * cluster.host.gpus:
        raise UsageError(
            f"--hosts: the minimum replicas need {cluster.minimum_gpus} GPUs, "
            f"{cluster.hosts} pods of {cluster.host.gpus} have {cluster.hosts * cluster.host.gpus}"
        )


def config_map(cluster: KubeCluster) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{cluster.name}-config"},
        "data": {CONFIG_NAME: cluster.config_text},
    }


def gateway_service(cluster: KubeCluster) -> Json:
    """One address in front of the gateways of all pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{cluster.name}-gateway"},
        "spec": {
            "selector": {"ray.io/cluster": cluster.name},
            "ports": [{"name": "http", "port": cluster.gateway_port, "targetPort": cluster.gateway_port}],
        },
    }


def ray_cluster(cluster: KubeCluster) -> Json:
    """The custom resource: token authentication, a head that holds no replicas, one pod for each GPU host."""
    worker_group = {
        "groupName": "gpu-host",
        "replicas": cluster.hosts,
        "minReplicas": cluster.hosts,
        "maxReplicas": cluster.hosts,
        "rayStartParams": {},
        "template": pod(cluster, "ray-worker", cluster.host),
    }
    spec: Json = {
        "rayVersion": cluster.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": pod(cluster, "ray-head", cluster.head)},
        "workerGroupSpecs": [worker_group],
    }
    if cluster.redis_address is not None:
        spec["gcsFaultToleranceOptions"] = {"redisAddress": cluster.redis_address}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": cluster.name}, "spec": spec}


def pod(cluster: KubeCluster, container: str, size: PodSize) -> Json:
    """A pod template with one container; requests equal limits, so that the pod is not moved or throttled."""
    resources: Json = {"cpu": str(size.cpus), "memory": f"{size.memory_gib}Gi"}
    if size.gpus:
        resources["nvidia.com/gpu"] = str(size.gpus)
    settings = {name: value for name, value in SETTINGS.items() if name not in OPERATORS_OWN}
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": cluster.image,
                    "env": [{"name": name, "value": value} for name, value in settings.items()],
                    "ports": [{"name": "gateway", "containerPort": cluster.gateway_port}],
                    "resources": {"limits": resources, "requests": dict(resources)},
                    "volumeMounts": [
                        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the path is the kernel's
                        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
                    ],
                }
            ],
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{size.shm_gib}Gi"}},
                {"name": "config", "configMap": {"name": f"{cluster.name}-config"}},
            ],
        }
    }
