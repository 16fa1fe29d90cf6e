"""Ray's cluster autoscaler over fake nodes: what pending replicas bring up and idling takes away, as JSON.

Ray's own AutoscalingCluster cannot be used: its template is not in the wheel, and it ends every Ray of the machine.
Use: fake_nodes.py FOLDER PORT
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raylane.cluster.local_ray import use_a_token
from raylane.cluster.processes import end_processes_with

use_a_token()  # before anything imports Ray

import ray  # noqa: E402
from ray.util.placement_group import placement_group, remove_placement_group  # noqa: E402

MARK = "RAYLANE_LOCAL_CLUSTER"
GPUS_OF_A_HOST = 4
WITHIN_S = 180.0


def autoscaling_config(port: int) -> dict[str, Any]:
    """What ray-cluster.yaml's keys become, with GPU hosts that are processes of this machine."""
    mappings = ("auth", "docker", "file_mounts")
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    lists = [*(f"{name}_commands" for name in commands), "cluster_synced_files", "rsync_exclude", "rsync_filter"]
    return {
        **{key: {} for key in mappings},
        **{key: [] for key in lists},
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "file_mounts_sync_continuously": False,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            "gpu-host": {
                "resources": {"CPU": 4, "GPU": GPUS_OF_A_HOST},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
    }


def start_head(folder: Path, port: int) -> None:
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(autoscaling_config(port)))
    ray_command = str(Path(sys.executable).with_name("ray"))
    command = [ray_command, "start", "--head", "--port", str(port), "--node-ip-address", "127.0.0.1", "--num-cpus", "2"]
    options = ["--autoscaling-config", str(path), "--temp-dir", str(folder), "--include-dashboard", "false"]
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "SPT_NOENV": "1", MARK: str(folder)}
    subprocess.run(
        [*command, *options, "--disable-usage-stats"], check=True, env={**os.environ, **fake}, stdout=sys.stderr
    )


def hosts() -> int:
    """GPU hosts that are alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(node["Alive"] and node["Resources"].get("GPU", 0) == GPUS_OF_A_HOST for node in nodes)


def after_s(true: Callable[[], bool]) -> float | None:
    """Seconds until then; None when it does not come true."""
    began_s = time.monotonic()
    while not true():
        if time.monotonic() - began_s > WITHIN_S:
            return None
        time.sleep(0.2)
    return time.monotonic() - began_s


def main(folder: Path, port: int) -> None:
    told: dict[str, Any] = {}
    try:
        start_head(folder, port)
        ray.init(address=f"127.0.0.1:{port}", log_to_driver=False)
        told["at first"] = hosts()
        groups = [placement_group([{"GPU": 2.0}], strategy="STRICT_PACK")]
        told["first host after s"] = after_s(lambda: hosts() == 1)
        told["placed"] = groups[0].wait(90)
        groups += [placement_group([{"GPU": 2.0}], strategy="STRICT_PACK") for _ in range(5)]
        told["second host after s"] = after_s(lambda: hosts() == 2)
        time.sleep(5.0)
        told["hosts for twelve GPUs"] = hosts()
        for group in groups:
            remove_placement_group(group)
        told["idle hosts gone after s"] = after_s(lambda: hosts() == 0)
        ray.shutdown()
    finally:
        end_processes_with(MARK, str(folder), 5.0)
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
