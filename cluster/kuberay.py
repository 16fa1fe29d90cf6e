"""A Ray cluster for the KubeRay operator: the manifest of one deployment, as plain data. Pure.

One pod is one host with all its GPUs: leases and link choice work inside the pod as they do on a bare machine. Field
names are those of the custom resource `RayCluster`, `ray.io/v1` (KubeRay 1.5.1 and later, for `authOptions`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylane.cluster.errors import UsageError
from raylane.cluster.ray_start import SETTINGS, parse_redis

Json = dict[str, Any]
DNS_NAME = re.compile(r"^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$")  # the operator appends to it and stops at 63
CONFIG_FOLDER = "/etc/raylane"
CONFIG_NAME = "config.yaml"
CPU_UNITS = 10_000  # Ray counts CPUs in steps of a ten-thousandth
OPERATORS_OWN = ("RAY_AUTH_MODE",)  # set through authOptions, together with the token's secret


@dataclass(frozen=True)
class PodSize:
    """What one pod asks for; `shm_gib` is memory for /dev/shm, which NCCL and Ray use."""

    cpus: int
    memory_gib: int
    gpus: int
    shm_gib: int


@dataclass(frozen=True)
class ReplicaNeed:
    """What each replica of a model reserves of its pod, and how many of them must stand at once."""

    model: str
    gpus: int
    cpus: float
    replicas: int


@dataclass(frozen=True)
class KubeCluster:
    """What the manifest is made from. `needs` come from the deployment config."""

    name: str
    image: str
    ray_version: str
    hosts: int
    host: PodSize
    head: PodSize
    gateway_port: int
    config_text: str
    needs: tuple[ReplicaNeed, ...]
    redis_address: str | None = None


def manifest(cluster: KubeCluster) -> list[Json]:
    """The documents to apply: the deployment config, the gateway's Service and the RayCluster.

    Raises UsageError when the name is no DNS label, or something else could never start, or the pods cannot hold the
    config's minimum.
    """
    check(cluster)
    return [config_map(cluster), gateway_service(cluster), ray_cluster(cluster)]


def check(cluster: KubeCluster) -> None:
    if not DNS_NAME.match(cluster.name):
        raise UsageError(f"--name: lower case letters, digits and '-', at most 50 (got {cluster.name!r})")
    if not cluster.image.strip():
        raise UsageError(f"--image: a container image is needed (got {cluster.image!r})")
    if cluster.redis_address is not None:
        parse_redis(cluster.redis_address, None, cluster.name)
    shm, memory = cluster.host.shm_gib, cluster.host.memory_gib
    if shm >= memory:
        raise UsageError(
            f"--shm-gib: {shm} GiB are part of the pod's memory and leave nothing of --memory-gib {memory}"
        )
    check_room(cluster)


def check_room(cluster: KubeCluster) -> None:
    """UsageError where a replica is too large for a pod, or the minimum replicas for all pods together."""
    host, hosts = cluster.host, cluster.hosts
    for need in cluster.needs:
        if need.gpus > host.gpus:
            raise UsageError(
                f"--gpus-per-host: a replica of {need.model} needs {need.gpus} GPUs on one host, a pod has {host.gpus}"
            )
        if need.cpus > host.cpus:
            raise UsageError(
                f"--cpus-per-host: a replica of {need.model} reserves {need.cpus:g} CPUs, a pod has {host.cpus}"
            )
    gpus = sum(need.gpus * need.replicas for need in cluster.needs)
    if gpus > hosts * host.gpus:
        raise UsageError(
            f"--hosts: the minimum replicas need {gpus} GPUs, {hosts} pods of {host.gpus} have {hosts * host.gpus}"
        )
    if too_many(cluster.needs, hosts, host):
        wanted = ", ".join(
            f"{need.replicas} of {need.model} with {need.gpus} GPUs and {need.cpus:g} CPUs each"
            for need in cluster.needs
            if need.replicas
        )
        raise UsageError(
            f"--hosts: the minimum replicas ({wanted}) do not fit together on {hosts} pods of {host.gpus} GPUs and "
            f"{host.cpus} CPUs"
        )


def too_many(needs: Sequence[ReplicaNeed], hosts: int, host: PodSize) -> bool:
    """True where the pods cannot hold all replicas however they are filled.

    Counts all GPUs and CPUs, and of each size how many replicas at least as large there are places for. What fits is
    never refused; a rare mix that does not is left to `raylane deploy`.
    """
    gpus = [(need.gpus, need.replicas) for need in needs]
    cpu_units = [(round(need.cpus * CPU_UNITS), need.replicas) for need in needs]
    return overfull(gpus, hosts, host.gpus) or overfull(cpu_units, hosts, host.cpus * CPU_UNITS)


def overfull(sizes: Sequence[tuple[int, int]], pods: int, room: int) -> bool:
    """Whether (size, how many) are surely more than so many pods with so much room each can hold."""
    if sum(size * count for size, count in sizes) > pods * room:
        return True
    thresholds = {size for size, _ in sizes if size}
    return any(sum(n for size, n in sizes if size >= least) > pods * (room // least) for least in thresholds)


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
