"""Singles and pairs on two recorded hosts, scaled up and down and killed at random; prints what happened as JSON.

A process of its own: a process can have one local Ray. Two raylets on the loopback address, four recorded GPUs each.
Use: churning_cluster.py RECORDING PORT
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raylane.cluster.local_ray import local_ray, use_a_token

use_a_token()  # before anything imports Ray

import openai  # noqa: E402

from raylane.cli.demo import recorded_gpus  # noqa: E402
from raylane.cluster.leases import Holder, holders, runtime_folder  # noqa: E402
from raylane.cluster.processes import marked_processes  # noqa: E402
from raylane.deployments.config.deployment import DeploymentConfig  # noqa: E402
from raylane.deployments.directory.cluster_view import cluster_view  # noqa: E402
from raylane.deployments.directory.reports import ReplicaReport, ReplicaState  # noqa: E402
from raylane.deployments.engines.process import MARK  # noqa: E402
from raylane.deployments.rollout.moving import move  # noqa: E402
from raylane.deployments.rollout.rollout import alive_nodes, delete, deploy, snapshot  # noqa: E402
from raylane.deployments.rollout.serve_api import ServeApi, dashboard_url  # noqa: E402
from raylane.deployments.rollout.sight import look_everywhere  # noqa: E402

SINGLE, PAIR = "llama-8b", "llama-70b"
HOSTS = ("l40s-1", "l40s-2")
STEPS = 20
# What both models may be scaled to: at most seven GPUs of eight, so that a replica that was killed finds a new place
# on either host while its old one is still being cleared away.
TARGETS = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 0), (0, 2), (3, 2), (0, 1), (4, 1)]
SETTLED_WITHIN_S = 180.0
STREAMED_TOKENS = 100


def config(port: int) -> DeploymentConfig:
    single = {"source": "builtin:llama-3-8b-shape", "engine": {"kind": "simulator"}, "replicas": {"min": 1, "max": 4}}
    pair = {
        "source": "builtin:llama-3-70b-shape",
        "engine": {"kind": "simulator", "quantization": "awq"},
        "tensor_parallel": 2,
        "replicas": {"min": 1, "max": 3},
    }
    models = {name: {**block, "cpus": 0.1, "drain_timeout_s": 20} for name, block in ((SINGLE, single), (PAIR, pair))}
    return DeploymentConfig.from_data({"models": models, "gateway": {"port": port}}, "churning cluster")


@contextmanager
def playing(host: str) -> Iterator[None]:
    """Processes started meanwhile take this host of the recording for theirs."""
    os.environ["RAYLANE_HOST_NAME"] = host
    try:
        yield
    finally:
        del os.environ["RAYLANE_HOST_NAME"]


def second_raylet(head: str, temp_dir: str) -> None:
    """Another raylet on this address; it ends with the cluster, whose mark it inherits."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", head, "--num-cpus", "8"]
    options = ["--num-gpus", "4", "--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", "0"]
    done = subprocess.run([*command, *options, "--temp-dir", temp_dir], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


class Watch(threading.Thread):
    """Looks ten times a second at the locks and at the reports, and remembers the worst.

    `split`: a ready replica that says it has two GPUs, of which another one has signed a lock. `overfull`: more GPUs
    locked by one replica than it needs. A killed replica cannot withdraw its report: it counts while a lock is its own.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.looks = self.most = 0
        self.split: set[str] = set()
        self.overfull: set[str] = set()
        self.replica_ids: set[str] = set()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.1):
            held = leased()
            self.looks += 1
            self.most = max(self.most, len(held))
            owners = {holder.resource: holder.owner for holder in held}
            sizes = Counter(holder.owner for holder in held)
            self.overfull |= {owner for owner, gpus in sizes.items() if gpus > (2 if owner.startswith(PAIR) else 1)}
            known = snapshot()
            for replica in known.replicas if known else ():
                self.replica_ids.add(replica.replica_id)
                if replica.state is ReplicaState.READY and len(replica.gpu_uuids) > 1:
                    signed = {owners.get(uuid, "").partition(" ")[2] for uuid in replica.gpu_uuids}
                    if replica.replica_id in signed and len(signed - {""}) > 1:
                        self.split |= {f"{replica.replica_id}: {sorted(signed)}"}


def leased() -> list[Holder]:
    """Leases of both hosts: they share one runtime folder, like containers, because they share one address's ports."""
    return holders(runtime_folder())


def ready() -> list[ReplicaReport]:
    known = snapshot()
    return [r for r in known.replicas if r.state is ReplicaState.READY] if known else []


def settle(wanted: Counter[str]) -> dict[str, Any]:
    """Wait until these replicas are ready, each on the GPUs that it says, and nothing else is leased."""
    deadline_s = time.monotonic() + SETTLED_WITHIN_S
    while True:
        replicas, held = ready(), leased()
        signed = sorted((holder.resource, holder.owner) for holder in held)
        told = sorted((uuid, f"{r.model} {r.replica_id}") for r in replicas for uuid in r.gpu_uuids)
        if Counter(r.model for r in replicas) == wanted and signed == told:
            return {"replicas": dict(wanted), "gpus": [uuid for uuid, _ in told]}
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"wanted {wanted}, have {Counter(r.model for r in replicas)}: {told}; leased: {signed}")
        time.sleep(0.2)


def kill_one(draw: random.Random) -> str | None:
    """Kill the engine of one ready replica, or the replica's own process."""
    replicas = sorted(ready(), key=lambda replica: replica.replica_id)
    if not replicas:
        return None
    victim, engine = draw.choice(replicas), draw.random() < 0.5
    pid = victim.engine_pid if engine else owner_pid(victim)
    if pid is None:
        return None
    with suppress(ProcessLookupError):  # it may be on its way out already
        os.kill(pid, signal.SIGKILL)
    return "engine" if engine else "replica"


def owner_pid(replica: ReplicaReport) -> int | None:
    """The process of a replica: it has signed its lock files."""
    owner = f"{replica.model} {replica.replica_id}"
    return next((holder.pid for holder in leased() if holder.owner == owner), None)


def churn(api: ServeApi, draw: random.Random) -> list[dict[str, Any]]:
    """Scale both models twenty times, with a kill right before or after in every second step or so."""
    steps = []
    for _ in range(STEPS):
        singles, pairs = draw.choice(TARGETS)
        kills = [kill_one(draw)] if draw.random() < 0.4 else []
        models = [(SINGLE, singles), (PAIR, pairs)]
        draw.shuffle(models)
        for model, replicas in models:
            api.scale(model, replicas)
        if draw.random() < 0.3:
            time.sleep(draw.random() * 2)
            kills.append(kill_one(draw))
        wanted = Counter({model: replicas for model, replicas in models if replicas})
        steps.append({**settle(wanted), "kills": [kill for kill in kills if kill]})
    return steps


def streamed(port: int, tokens: int, began: threading.Event) -> int:
    """Tokens of one streamed answer of the pair through the gateway."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", timeout=120.0, max_retries=0)
    stream = client.completions.create(
        model=PAIR, prompt="hello", max_tokens=tokens, stream=True, stream_options={"include_usage": True}
    )
    usage = None
    for chunk in stream:
        began.set()
        usage = chunk.usage or usage
    return usage.completion_tokens if usage else 0


def moved(api: ServeApi, port: int) -> dict[str, Any]:
    """Move a pair onto two GPUs that are not its best while it streams, and back by itself."""
    api.scale(SINGLE, 0)
    api.scale(PAIR, 1)
    settle(Counter({PAIR: 1}))
    (pair,) = ready()
    hosts = cluster_view(look_everywhere(alive_nodes()), [pair])
    (host,) = [host for host in hosts if any(gpu.replica_id == pair.replica_id for gpu in host.gpus())]
    odd = tuple(domain.gpus[0].uuid for domain in host.domains[:2])
    began = threading.Event()
    with ThreadPoolExecutor() as threads:
        stream = threads.submit(streamed, port, STREAMED_TOKENS, began)
        began.wait(30.0)
        there = move(pair.replica_id, odd, SETTLED_WITHIN_S, lambda line: None)
        (at_odd,) = ready()
    back = move(pair.replica_id[:4], None, SETTLED_WITHIN_S, lambda line: None)
    again = streamed(port, 8, threading.Event())
    settle(Counter({PAIR: 1}))
    (at_end,) = ready()
    return {
        "hosts": [{"name": h.name, "uses": [str(gpu.use) for gpu in h.gpus()]} for h in hosts],
        "asked": odd,
        "replicas": sorted({pair.replica_id, at_odd.replica_id, at_end.replica_id}),
        "at": [{"gpus": r.gpu_uuids, "second_best": r.second_best} for r in (pair, at_odd, at_end)],
        "said": [asdict(there), asdict(back)],
        "streamed": [stream.result(), again],
    }


def main(recording: str, port: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that the cluster ends with this process
    with recorded_gpus(Path(recording)), ExitStack() as cluster:
        with playing(HOSTS[0]):
            context = cluster.enter_context(local_ray(cpus=8, gpus=4))
        with playing(HOSTS[1]):
            second_raylet(context.address_info["gcs_address"], str(runtime_folder().parent))
        api = ServeApi(dashboard_url(context))
        watch = Watch()
        watch.start()
        deploy(config(port), api, "churning cluster", lambda statuses: None, 120.0)
        steps = churn(api, random.Random(20))
        watch.done.set()  # while a replica moves it holds both leases for a moment
        watch.join()
        told = moved(api, port)
        delete(api, [])
        left = [holder.resource for holder in leased()]
        processes = sorted(watch.replica_ids.intersection(marked_processes(MARK).values()))
    found = {
        "steps": steps,
        "moved": told,
        "most_leased": watch.most,
        "looks": watch.looks,
        "split": sorted(watch.split),
        "overfull": sorted(watch.overfull),
        "left": left,
        "processes": processes,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
