"""The KubeRay manifest: valid against the custom resource, and big enough for what it is to hold."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from raylane.cli.export import export
from raylane.cluster.errors import UsageError
from raylane.cluster.kuberay import KubeCluster, PodSize, ReplicaNeed, manifest, too_many

FACTS = json.loads((Path(__file__).parents[2] / "fixtures" / "kuberay" / "raycluster-facts.json").read_text())
CLUSTER = KubeCluster(
    name="raylane",
    image="registry.example/raylane:0.1.0",
    ray_version="2.60.0",
    hosts=3,
    host=PodSize(cpus=16, memory_gib=128, gpus=4, shm_gib=16),
    head=PodSize(cpus=4, memory_gib=16, gpus=0, shm_gib=2),
    gateway_port=8000,
    config_text="models: {}\n",
    needs=(ReplicaNeed("big", 2, 2.0, 6),),
)
CONFIG = """
models:
  big:
    source: builtin:llama-3-70b-shape
    tensor_parallel: 2
    replicas: {min: 2, max: 4}
gateway: {host: 0.0.0.0, port: 8080}
"""


def needing(*needs: ReplicaNeed) -> KubeCluster:
    return replace(CLUSTER, needs=needs)


def ray_cluster(docs: list[dict[str, Any]]) -> dict[str, Any]:
    return next(doc for doc in docs if doc["kind"] == "RayCluster")


@pytest.mark.parametrize(
    "cluster",
    [
        pytest.param(CLUSTER, id="GPU hosts"),
        pytest.param(replace(CLUSTER, redis_address="redis:6379"), id="with Redis"),
        pytest.param(
            replace(CLUSTER, host=PodSize(4, 8, 0, 1), needs=(ReplicaNeed("small", 0, 0.1, 2),)), id="without GPUs"
        ),
    ],
)
def test_valid_custom_resource(cluster: KubeCluster) -> None:
    jsonschema.Draft7Validator(FACTS).validate(ray_cluster(manifest(cluster)))


def test_facts_refuse_a_misspelt_field() -> None:
    wrong = ray_cluster(manifest(CLUSTER))
    wrong["spec"]["workerGroupSpec"] = wrong["spec"].pop("workerGroupSpecs")
    assert not jsonschema.Draft7Validator(FACTS).is_valid(wrong)


def test_pods_hold_their_gpus_and_mount_the_config() -> None:
    docs = manifest(CLUSTER)
    workers = ray_cluster(docs)["spec"]["workerGroupSpecs"][0]
    container = workers["template"]["spec"]["containers"][0]
    assert (workers["replicas"], container["resources"]["limits"]["nvidia.com/gpu"]) == (3, "4")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    sources = {volume["name"]: volume for volume in workers["template"]["spec"]["volumes"]}
    assert mounts.keys() == sources.keys()
    assert sources["config"]["configMap"]["name"] == docs[0]["metadata"]["name"]
    head = ray_cluster(docs)["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]


def test_every_pod_has_the_placement_and_head_loss_settings() -> None:
    spec = ray_cluster(manifest(CLUSTER))["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        env = {item["name"]: item["value"] for item in group["template"]["spec"]["containers"][0]["env"]}
        assert env["RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY"] == "1"
        assert float(env["RAY_gcs_rpc_server_reconnect_timeout_s"]) == 600.0
        assert "RAY_AUTH_MODE" not in env  # the operator's, through authOptions


def test_service_leads_to_the_gateways() -> None:
    docs = manifest(CLUSTER)
    service = next(doc for doc in docs if doc["kind"] == "Service")
    assert service["spec"]["selector"] == {"ray.io/cluster": ray_cluster(docs)["metadata"]["name"]}


@pytest.mark.parametrize(
    ("cluster", "named"),
    [
        pytest.param(
            needing(ReplicaNeed("a", 8, 8, 0)), "a replica of a needs 8 GPUs on one host, a pod has 4", id="replica"
        ),
        pytest.param(needing(ReplicaNeed("a", 1, 1, 13)), "need 13 GPUs, 3 pods of 4 have 12", id="minimum"),
        pytest.param(
            needing(ReplicaNeed("a", 3, 3, 4)),
            r"\(4 of a with 3 GPUs and 3 CPUs each\) do not fit .* 3 pods",
            id="places",
        ),
        pytest.param(needing(ReplicaNeed("a", 1, 64, 0)), "a replica of a reserves 64 CPUs, a pod has 16", id="CPUs"),
        pytest.param(needing(ReplicaNeed("a", 1, 9, 4)), "do not fit .* 3 pods of 4 GPUs and 16 CPUs", id="all CPUs"),
        pytest.param(replace(CLUSTER, host=PodSize(16, 8, 4, 8)), "--shm-gib: 8 .*--memory-gib 8", id="memory"),
        pytest.param(replace(CLUSTER, redis_address="nonsense"), "--redis: .*'nonsense'", id="no port of Redis"),
        pytest.param(replace(CLUSTER, image=""), "--image: ", id="no image"),
        pytest.param(replace(CLUSTER, name="Ray Lane"), "'Ray Lane'", id="name"),
    ],
)
def test_what_does_not_fit_is_refused(cluster: KubeCluster, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        manifest(cluster)


def stand(needs: list[ReplicaNeed], hosts: int, host: PodSize) -> bool:
    """Tries every replica on every pod."""
    replicas = [need for need in needs for _ in range(need.replicas)]
    for places in product(range(hosts), repeat=len(replicas)):
        gpus, cpus = Counter[int](), Counter[int]()
        for need, place in zip(replicas, places, strict=True):
            gpus[place] += need.gpus
            cpus[place] += int(need.cpus)
        if all(gpus[i] <= host.gpus and cpus[i] <= host.cpus for i in range(hosts)):
            return True
    return False


NEEDS = st.builds(ReplicaNeed, st.just("m"), st.integers(0, 4), st.integers(0, 5), st.integers(0, 2))


@settings(max_examples=200)
@given(st.lists(NEEDS, min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 6), st.integers(1, 8))
def test_what_fits_is_never_refused(needs: list[ReplicaNeed], hosts: int, gpus: int, cpus: int) -> None:
    host = PodSize(cpus=cpus, memory_gib=128, gpus=gpus, shm_gib=16)
    assert not (too_many(needs, hosts, host) and stand(needs, hosts, host))


@settings(max_examples=200)
@given(NEEDS, st.integers(1, 3), st.integers(0, 6), st.integers(1, 8))
def test_of_one_size_all_that_does_not_fit_is_refused(need: ReplicaNeed, hosts: int, gpus: int, cpus: int) -> None:
    host = PodSize(cpus=cpus, memory_gib=128, gpus=gpus, shm_gib=16)
    assert too_many([need], hosts, host) is not stand([need], hosts, host)


def test_replicas_of_other_sizes_take_places_too() -> None:
    host = PodSize(cpus=64, memory_gib=128, gpus=8, shm_gib=16)
    assert too_many([ReplicaNeed("m", 3, 1, 400), ReplicaNeed("n", 5, 1, 2)], 200, host)
    assert not too_many([ReplicaNeed("m", 3, 1, 398), ReplicaNeed("n", 5, 1, 2)], 200, host)


def test_command_prints_documents_of_the_config(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(CONFIG)
    options = ["--image", "i", "--hosts", "2", "--gpus-per-host", "4"]
    done = CliRunner().invoke(export, ["kuberay", str(path), *options])
    docs = list(yaml.safe_load_all(done.stdout))
    assert [doc["kind"] for doc in docs] == ["ConfigMap", "Service", "RayCluster"]
    assert docs[0]["data"]["config.yaml"] == CONFIG
    assert docs[1]["spec"]["ports"][0]["port"] == 8080


def test_a_gateway_on_loopback_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(CONFIG.replace("0.0.0.0", "127.0.0.1"))
    done = CliRunner().invoke(export, ["kuberay", str(path), "--image", "i", "--hosts", "2", "--gpus-per-host", "4"])
    assert isinstance(done.exception, UsageError)
    assert "gateway.host: '127.0.0.1'" in str(done.exception)
