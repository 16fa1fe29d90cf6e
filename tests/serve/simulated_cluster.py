"""Deploys a mixed config on eight recorded GPUs with simulated engines and prints what happened as JSON.

A process of its own: a process can have one local Ray, and this one needs GPUs.
Use: simulated_cluster.py RECORDING PORT OUT_FOLDER
"""

import json
import random
import sys
import threading
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

from raylane.cluster.local_ray import local_ray, use_a_token

use_a_token()  # before anything imports Ray

import openai  # noqa: E402

from raylane.benchmarks import load_run  # noqa: E402
from raylane.benchmarks.plan import BenchmarkPlan  # noqa: E402
from raylane.cli.bench import run_with_progress  # noqa: E402
from raylane.cli.demo import links_line, recorded_gpus  # noqa: E402
from raylane.cluster.leases import holders, runtime_folder  # noqa: E402
from raylane.cluster.recording import load_recording  # noqa: E402
from raylane.deployments.config.deployment import DeploymentConfig  # noqa: E402
from raylane.deployments.directory.reports import ReplicaReport, ReplicaState  # noqa: E402
from raylane.deployments.rollout.rollout import delete, deploy, snapshot  # noqa: E402
from raylane.deployments.rollout.serve_api import ServeApi, dashboard_url  # noqa: E402

SMALL, LARGE = "llama-8b", "llama-70b"
TARGETS = [(1, 2), (4, 2), (2, 3), (2, 1), (2, 2)]  # replicas of the two models, one step after the other
SETTLED_WITHIN_S = 180.0


def config(port: int) -> DeploymentConfig:
    small = {"source": "builtin:llama-3-8b-shape", "engine": {"kind": "simulator"}, "replicas": {"min": 2, "max": 4}}
    large = {
        "source": "builtin:llama-3-70b-shape",
        "engine": {"kind": "simulator", "quantization": "awq"},
        "tensor_parallel": 2,
        "replicas": {"min": 2, "max": 4},
    }
    models = {name: {**block, "cpus": 0.1, "drain_timeout_s": 10} for name, block in ((SMALL, small), (LARGE, large))}
    return DeploymentConfig.from_data({"models": models, "gateway": {"port": port}}, "simulated cluster")


class Watch(threading.Thread):
    """Looks ten times a second which GPUs are locked and which the replicas say they hold, and remembers the worst.

    A replica withdraws its report before it lets go of its GPUs, so two reports never name one GPU for good reason.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.unknown: set[str] = set()
        self.doubled: set[str] = set()
        self.done = threading.Event()
        self._known = {gpu.uuid for gpu in load_recording(Path(sys.argv[1]))[0].gpus}

    def run(self) -> None:
        folder = runtime_folder()
        while not self.done.wait(0.1):
            held = [holder.resource for holder in holders(folder)]
            self.most = max(self.most, len(held))
            self.unknown |= set(held) - self._known
            known = snapshot()
            told = Counter(uuid for replica in (known.replicas if known else ()) for uuid in replica.gpu_uuids)
            self.doubled |= {uuid for uuid, times in told.items() if times > 1}


def ready() -> list[ReplicaReport]:
    known = snapshot()
    return [r for r in known.replicas if r.state is ReplicaState.READY] if known else []


def settled(api: ServeApi, small: int, large: int) -> dict[str, Any]:
    """Scale both models, wait until exactly these replicas are ready and nothing else is leased; what they hold."""
    api.scale(SMALL, small)
    api.scale(LARGE, large)
    wanted = Counter({SMALL: small, LARGE: large})
    deadline_s = time.monotonic() + SETTLED_WITHIN_S
    while True:
        replicas = ready()
        leased = sorted(holder.resource for holder in holders(runtime_folder()))
        told = sorted(chain.from_iterable(r.gpu_uuids for r in replicas))
        if Counter(r.model for r in replicas) == wanted and told == leased:
            break
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"wanted {wanted}, have {Counter(r.model for r in replicas)}, leased {leased}")
        time.sleep(0.2)
    return {
        "replicas": {SMALL: small, LARGE: large},
        "gpus": told,
        "pairs": [list(r.gpu_uuids) for r in replicas if r.model == LARGE],
        "second_best": sum(r.second_best for r in replicas),
    }


def answers(port: int) -> dict[str, int]:
    """Tokens of one answer of each model, through the gateway."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", timeout=120.0, max_retries=0)
    found = {}
    for model in (SMALL, LARGE):
        reply = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=8
        )
        found[model] = reply.usage.completion_tokens if reply.usage else 0
    return found


def plan(port: int) -> BenchmarkPlan:
    sizes = {"input_tokens": 64, "output_tokens": 16, "load": {"shape": "concurrency", "concurrency": 2}}
    streams = [{"model": model, **sizes} for model in (SMALL, LARGE)]
    data = {"name": "simulated", "base_url": f"http://127.0.0.1:{port}", "warmup": {"requests": 2}}
    return BenchmarkPlan.from_data({**data, "cases": [{"name": "mixed", "duration_s": 3, "streams": streams}]}, "test")


def main(recording: str, port: int, out: str) -> None:
    steps, replies = [], []
    targets = random.Random(7).sample(TARGETS[:-1], len(TARGETS) - 1) + TARGETS[-1:]
    with recorded_gpus(Path(recording)), local_ray(cpus=8, gpus=8) as context:
        api = ServeApi(dashboard_url(context))
        watch = Watch()
        watch.start()
        deploy(config(port), api, "simulated cluster", lambda statuses: None, 240.0)
        for small, large in [TARGETS[-1], *targets]:
            steps.append(settled(api, small, large))
            replies.append(answers(port))
        run = load_run(run_with_progress(plan(port), Path(out), simulated=False))  # the replies' header must mark it
        line = links_line(snapshot())
        watch.done.set()
        watch.join()
        delete(api, [])
        left = [holder.resource for holder in holders(runtime_folder())]
    case = run.summary.cases[0]
    found = {
        "steps": steps,
        "replies": replies,
        "most_leased": watch.most,
        "unknown": sorted(watch.unknown),
        "doubled": sorted(watch.doubled),
        "left": left,
        "links": line,
        "simulated": run.simulated,
        "completed": {stream.model: stream.completed for stream in case.streams},
        "errors": [stream.errors for stream in case.streams if stream.errors],
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
