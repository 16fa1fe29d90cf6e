"""How replicas that wait for GPUs become hosts: Ray's cluster autoscaler with fake nodes."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import free_port, told_by

from raylane.cluster.processes import processes_with

pytestmark = [pytest.mark.serve, pytest.mark.timeout(960)]
SCRIPT = Path(__file__).with_name("fake_nodes.py")
SHIPPED = Path(__file__).resolve().parents[2] / "ray-cluster.yaml"


@pytest.fixture(scope="module")
def told() -> Iterator[dict[str, Any]]:
    """What the cluster did."""
    folder = Path(tempfile.mkdtemp(prefix="rl-"))  # short: Ray puts sockets below it
    try:
        found = told_by(SCRIPT, folder, free_port())
        assert list(processes_with("RAYLANE_LOCAL_CLUSTER", str(folder))) == []
        yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_replica_that_waits_for_gpus_brings_a_host(told: dict[str, Any]) -> None:
    assert told["at first"] == 0
    assert told["first host after s"] is not None
    assert told["placed"]


def test_more_replicas_bring_more_hosts_but_never_more_than_max_workers(told: dict[str, Any]) -> None:
    assert told["second host after s"] is not None
    assert told["hosts for twelve GPUs"] == 2


def test_hosts_without_replicas_go_after_the_idle_timeout(told: dict[str, Any]) -> None:
    assert told["idle hosts gone after s"] is not None
    assert told["idle hosts gone after s"] >= 3.0, "not at once: a replica may come back"


@pytest.mark.parametrize(("more", "least"), [({}, 2), ({"min_workers": 0}, 0)], ids=["all stay", "all may go"])
def test_the_shipped_file_names_what_rays_cluster_autoscaler_needs(more: dict[str, int], least: int) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config({**yaml.safe_load(SHIPPED.read_text()), **more})
    validate_config(prepared)
    (workers,) = prepared["available_node_types"].values()
    assert (workers["min_workers"], workers["max_workers"]) == (least, 2)
    assert prepared["idle_timeout_minutes"] >= 10, "longer than a cold start"
