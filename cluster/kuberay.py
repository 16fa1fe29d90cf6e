"""A Ray cluster for the KubeRay operator: the manifest of one deployment, as plain data. Pure.

One pod is one host with all its GPUs: leases and link choice work inside the pod as they do on a bare machine. Field
names are those of the custom resource `RayCluster`, `ray.io/v1` (KubeRay 1.5.1 and later, for `authOptions`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import le
from typing import Any

from raylane.cluster.errors import UsageError
from raylane.cluster.ray_start import SETTINGS, parse_redis

Json = dict[str, Any]
Counts = tuple[int, ...]
DNS_NAME = re.compile(r"^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$")  # the operator appends to it and stops at 63
CONFIG_FOLDER = "/etc/raylane"
CONFIG_NAME = "config.yaml"
CPU_UNITS = 10_000  # Ray counts CPUs in steps of a ten-thousandth
MOST_MIXES = 1000
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

    @property
    def size(self) -> tuple[int, int]:
        """GPUs and CPU units of one replica."""
        return self.gpus, round(self.cpus * CPU_UNITS)


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
    if not fit_together(cluster.needs, hosts, host):
        wanted = ", ".join(
            f"{need.replicas} of {need.model} with {need.gpus} GPUs and {need.cpus:g} CPUs each"
            for need in cluster.needs
            if need.replicas
        )
        raise UsageError(
            f"--hosts: the minimum replicas ({wanted}) do not fit together on {hosts} pods of {host.gpus} GPUs and "
            f"{host.cpus} CPUs"
        )


def fit_together(needs: Sequence[ReplicaNeed], hosts: int, host: PodSize) -> bool:
    """False if no way to fill the pods holds all replicas.

    Fills one pod after the other in every way that matters. With more than MOST_MIXES of them it is not known, and
    taken as fitting.
    """
    sizes = sorted({need.size for need in needs}, reverse=True)
    left = {tuple(sum(need.replicas for need in needs if need.size == size) for size in sizes)}
    for _ in range(hosts):
        left = {rest for counts in left for rest in least(after_a_pod(sizes, counts, host.gpus, host.cpus * CPU_UNITS))}
        if tuple(0 for _ in sizes) in left or len(left) > MOST_MIXES:
            return True
    return False


def after_a_pod(sizes: Sequence[tuple[int, int]], counts: Counts, gpus: int, cpu_units: int) -> Iterator[Counts]:
    """How many replicas of each size are left when a pod with so much room has taken some of them."""
    if not sizes:
        yield ()
        return
    (each_gpus, each_cpu), count = sizes[0], counts[0]
    most = min(count, gpus // each_gpus if each_gpus else count, cpu_units // each_cpu if each_cpu else count)
    for taken in range(most, -1, -1):
        room = gpus - taken * each_gpus, cpu_units - taken * each_cpu
        for rest in after_a_pod(sizes[1:], counts[1:], *room):
            yield (count - taken, *rest)


def least(found: Iterator[Counts]) -> set[Counts]:
    """Those without another one that leaves no more of any size; of very many the first, whatever they leave."""
    kept = set(islice(found, MOST_MIXES + 1))
    if len(kept) > MOST_MIXES:
        return kept
    return {counts for counts in kept if not any(other != counts and all(map(le, other, counts)) for other in kept)}


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
