"""What the actor asks of the cluster, as far as it needs none."""

import socket
import time
from typing import Any

import pytest

from raylane.autoscaling.live import ray_scaler
from raylane.autoscaling.live.scaler import READ_TIMEOUT_S
from raylane.cluster.errors import FailedError


def test_a_call_to_serve_that_is_given_up_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread must not change a count after a later decision has: it ends before the loop stops waiting."""
    assert 2 * ray_scaler.SERVE_WITHIN_S < READ_TIMEOUT_S, "targets are read with two calls"
    monkeypatch.setattr(ray_scaler, "SERVE_WITHIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        began_s = time.monotonic()
        with pytest.raises(FailedError, match="no answer: timed out"):
            ray_scaler.serve_api().scale("m", 2)
    assert time.monotonic() - began_s < 5.0


def test_the_fleet_is_that_of_the_nodes_that_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(address: str, resources: dict[str, float], alive: bool = True) -> dict[str, Any]:
        return {"NodeManagerAddress": address, "Resources": resources, "Alive": alive}

    card = "accelerator_type:L40S"
    nodes = [
        node("10.0.0.1", {"CPU": 8.0}),
        node("10.0.0.2", {"GPU": 4.0, card: 1.0}),
        node("10.0.0.3", {"GPU": 8.0, card: 1.0}),
        node("10.0.0.4", {"GPU": 8.0}, alive=False),
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    fleet = ray_scaler.read_fleet()
    assert (fleet.gpus, fleet.card) == (12, "L40S")
    assert fleet.gpus_of == {"10.0.0.1": 0, "10.0.0.2": 4, "10.0.0.3": 8}
