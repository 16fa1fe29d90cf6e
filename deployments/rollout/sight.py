"""What every node of the cluster sees of itself: its GPUs, who leases them, which processes are raylane's."""

from collections.abc import Iterable

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylane.cluster.errors import RaylaneError
from raylane.cluster.leases import holders, runtime_folder
from raylane.cluster.processes import marked_processes
from raylane.deployments.directory.cluster_view import NodeSight, Seen
from raylane.deployments.engines.process import MARK
from raylane.deployments.replicas.host import read_hardware
from raylane.deployments.rollout.rollout import Node

ANSWERS_WITHIN_S = 30.0  # a node may have to start a worker process first


def look() -> Seen | str:
    """This machine now; the reason in words when it cannot be read."""
    try:
        folder = runtime_folder()
        gpus, ports = (tuple(holders(folder, part)) for part in ("gpus", "ports"))
        return Seen(read_hardware(folder), gpus, ports, frozenset(marked_processes(MARK)))
    except RaylaneError as error:
        return str(error)


def look_everywhere(nodes: Iterable[Node], within_s: float = ANSWERS_WITHIN_S) -> list[NodeSight]:
    """Have each node look at itself, all at once."""
    task = ray.remote(look)
    asked = {task.options(num_cpus=0, max_retries=0, scheduling_strategy=_on(node)).remote(): node for node in nodes}
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=within_s) if asked else ([], [])
    answered = set(done)
    return [
        _sight(node, ref)
        if ref in answered
        else NodeSight(node.address, node.gpus, None, f"no answer within {within_s:.0f} s")
        for ref, node in asked.items()
    ]


def _on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.node_id, soft=False)


def _sight(node: Node, ref: "ray.ObjectRef[Seen | str]") -> NodeSight:
    try:
        seen = ray.get(ref)
    except ray.exceptions.RayError as error:  # the node went away, or has no raylane installed
        return NodeSight(node.address, node.gpus, None, str(error).strip().splitlines()[-1])
    if isinstance(seen, str):
        return NodeSight(node.address, node.gpus, None, seen)
    return NodeSight(node.address, node.gpus, seen)
