"""Loads an autoscaled deployment of simulated engines on twelve recorded GPUs and prints what happened as JSON.

A process of its own: a process can have one local Ray, and this one needs GPUs.
Use: autoscaled_cluster.py RECORDING PORT
"""

import asyncio
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raylane.cluster.local_ray import local_ray, use_a_token

use_a_token()  # before anything imports Ray

import aiohttp  # noqa: E402
import ray  # noqa: E402

from raylane.autoscaling.live.ray_scaler import LOG_NAME, running_scaler, scaler_status  # noqa: E402
from raylane.cli.demo import recorded_gpus  # noqa: E402
from raylane.cluster.leases import runtime_folder  # noqa: E402
from raylane.deployments.config.deployment import DeploymentConfig, to_yaml  # noqa: E402
from raylane.deployments.directory.ray_actor import running_directory  # noqa: E402
from raylane.deployments.rollout.rollout import snapshot  # noqa: E402
from raylane.deployments.rollout.serve_api import ServeApi, dashboard_url  # noqa: E402

BUSY, RARE = "busy", "rare"
FIRST, SECOND = "first", "second"
STEP_RPS, STEP_TOKENS = 10.0, 32
TRICKLE_RPS, TRICKLE_TOKENS = 0.25, 150
# The rule at the pace of a short test: its means over five minutes and its margins are for real traffic.
KNOBS = {
    "burst_margin": 0.0,
    "target_load": 0.7,
    "confidence": 1.0,
    "hold_s": 6.0,
    "shrink_every_s": 2.0,
    "idle_s": 12.0,
    "shrink_band": 0.05,
    "learning": 0.0,
}


def two_on_one_gpu(port: int) -> DeploymentConfig:
    """Two models that may rest, and one GPU for both."""
    data = config(port).model_dump(mode="json", exclude_defaults=True)
    data["models"] = {name: {**data["models"][RARE], "replicas": {"min": 0, "max": 1}} for name in (FIRST, SECOND)}
    data["scaling"] |= {"fleet_gpus": 1, "knobs": KNOBS | {"yield_s": 3.0, "idle_s": 600.0}}
    return DeploymentConfig.from_data(data, "two on one GPU")


def config(port: int) -> DeploymentConfig:
    engine = {"kind": "simulator", "max_num_seqs": 8, "max_model_len": 2048, "cold_start_s": 1.0}
    model = {
        "source": "builtin:llama-3-8b-shape",
        "engine": engine,
        "slo": {"ttft_ms": 1000, "tpot_ms": 60},
        "cpus": 0.1,
        "drain_timeout_s": 30,
    }
    models = {
        BUSY: {**model, "replicas": {"min": 1, "max": 5}},
        RARE: {**model, "replicas": {"min": 0, "max": 2}},
    }
    scaling = {"knobs": KNOBS, "decide_every_s": 1.0, "warm_up_s": 4.0, "usd_per_gpu_hour": 2.0}
    data = {"models": models, "gateway": {"port": port}, "scaling": scaling}
    return DeploymentConfig.from_data(data, "autoscaled cluster")


@dataclass
class Load:
    """Streams one request after the other at a rate that the main thread sets, and remembers what was not answered."""

    url: str
    model: str
    rate_rps: float = 0.0
    tokens: int = STEP_TOKENS
    sent: int = 0
    good: int = 0
    bad: list[str] = field(default_factory=list)
    ended: bool = False

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        thread.start()
        return thread

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            open_ones: set[asyncio.Task[None]] = set()
            due_s = time.monotonic()
            while not self.ended:
                if self.rate_rps and time.monotonic() >= due_s:
                    due_s = max(due_s, time.monotonic() - 1.0) + 1.0 / self.rate_rps
                    task = asyncio.create_task(self._ask(session))
                    open_ones.add(task)
                    task.add_done_callback(open_ones.discard)
                await asyncio.sleep(0.01)
            await asyncio.gather(*open_ones)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        self.sent += 1
        tokens = self.tokens
        body = {"model": self.model, "prompt": "hello " * 16, "max_tokens": tokens, "stream": True, "ignore_eos": True}
        try:
            async with session.post(self.url + "/v1/completions", json=body) as reply:
                text = (await reply.content.read()).decode()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.bad.append(f"{type(error).__name__}: {error}")
            return
        events = [line for line in text.splitlines() if line.startswith("data: {")]
        if reply.status == 200 and text.rstrip().endswith("[DONE]") and len(events) >= tokens:
            self.good += 1
        else:
            self.bad.append(f"{reply.status}: {len(events)} of {tokens} events, ...{text[-200:]!r}")


class Watch(threading.Thread):
    """Looks four times a second how many replicas Serve is asked for."""

    def __init__(self, api: ServeApi) -> None:
        super().__init__(daemon=True)
        self._api = api
        self.targets: dict[str, int] = {}
        self.seen: list[tuple[float, dict[str, int]]] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.25):
            try:
                targets = self._api.state().model_targets()
            except Exception:  # noqa: S112 - the controller is being restarted
                continue
            self.targets = targets
            if targets and (not self.seen or self.seen[-1][1] != targets):
                self.seen.append((time.monotonic(), targets))

    def counts(self, model: str, since_s: float) -> list[int]:
        """The targets of a model since then, the one at that time first."""
        before = [seen for at_s, seen in self.seen if at_s <= since_s][-1:]
        found = [seen[model] for seen in (*before, *(s for at_s, s in self.seen if at_s > since_s)) if model in seen]
        return [count for index, count in enumerate(found) if index == 0 or found[index - 1] != count]

    def until(self, model: str, right: Any, within_s: float) -> float:
        began_s = time.monotonic()
        while not right(self.targets.get(model)):
            if time.monotonic() - began_s > within_s:
                raise TimeoutError(f"{model}: {self.targets}; {json.dumps(scaler_status())[-3000:]}")
            time.sleep(0.1)
        return time.monotonic() - began_s

    def steady(self, model: str, for_s: float, within_s: float) -> int:
        """Wait until the target has not changed for so long; the target."""
        began_s = time.monotonic()
        while True:
            if self.seen and time.monotonic() - max(self.seen[-1][0], began_s) >= for_s:
                return self.targets[model]
            if time.monotonic() - began_s > within_s:
                raise TimeoutError(f"{model} is never steady: {self.counts(model, began_s)}")
            time.sleep(0.1)


def ready(model: str) -> int:
    known = snapshot()
    return sum(r.model == model and r.state.value == "ready" for r in known.replicas) if known else 0


def ready_soon(model: str, count: int, within_s: float) -> int:
    """The ready replicas, when they are as many or time is up."""
    deadline_s = time.monotonic() + within_s
    while ready(model) != count and time.monotonic() < deadline_s:
        time.sleep(0.2)
    return ready(model)


def decided_counts(model: str) -> list[int]:
    """Every count that the autoscaler has decided on for a model, by its own log."""
    entries = map(json.loads, (runtime_folder() / LOG_NAME).read_text().splitlines())
    return [entry["to"] for entry in entries if entry.get("model") == model and "to" in entry]


def kill_each(watch: Watch) -> dict[str, Any]:
    """End the directory, Serve's controller and the autoscaler, and see what becomes of the counts."""
    found: dict[str, Any] = {}
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    actors: dict[str, Any] = {
        "directory": running_directory(),
        "controller": controller,
        "autoscaler": running_scaler(),
    }
    for name, actor in actors.items():
        began_s, before = time.monotonic(), len(decided_counts(BUSY))
        ray.kill(actor, no_restart=False)
        time.sleep(6.0)
        found[name] = {"counts": watch.counts(BUSY, began_s), "decided": decided_counts(BUSY)[before:]}
    deadline_s = time.monotonic() + 60.0
    while (status := scaler_status()) is None or status["problem"]:
        if time.monotonic() > deadline_s:
            raise TimeoutError(str(status))
        time.sleep(0.2)
    found["decides again"] = True
    return found


def take_turns(api: ServeApi, address: str, port: int) -> dict[str, Any]:
    """Deploy two models on one GPU, ask the one that rests, deploy again, ask the other."""
    file = runtime_folder() / "two.yaml"
    file.write_text(to_yaml(two_on_one_gpu(port)))
    found: dict[str, Any] = {"deployed": json.loads(raylane("deploy", str(file), "--address", address, "--json"))}
    found["targets"] = [api.state().model_targets()]
    for model in (SECOND, FIRST):
        load = Load(f"http://127.0.0.1:{port}", model)
        asyncio.run(one(load))
        found[model] = [load.good, load.bad]
        found["targets"].append(api.state().model_targets())
        found["deployed again"] = json.loads(raylane("deploy", str(file), "--address", address, "--json"))
        found["targets"].append(api.state().model_targets())
    raylane("delete", "--address", address)
    return found


def raylane(*arguments: str) -> str:
    """What the command prints. Raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", "raylane.cli.main", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=150).stdout


def main(recording: str, port: int) -> None:
    told: dict[str, Any] = {}
    began_s = time.monotonic()

    def note(what: str) -> None:
        known = snapshot()
        states = [(r.model, r.state.value, round(r.started_s or 0.0, 1)) for r in known.replicas] if known else []
        sys.stderr.write(f"{time.strftime('%X')} {time.monotonic() - began_s:6.1f} s {what} {states}\n")

    with recorded_gpus(Path(recording)), local_ray(cpus=8, gpus=12) as context:
        api = ServeApi(dashboard_url(context))
        address = ray.get_runtime_context().gcs_address
        file = runtime_folder() / "deploy.yaml"
        file.write_text(to_yaml(config(port)))
        raylane("deploy", str(file), "--address", address)
        note("deployed")
        watch = Watch(api)
        watch.start()
        busy = Load(f"http://127.0.0.1:{port}", BUSY, TRICKLE_RPS, TRICKLE_TOKENS)
        thread = busy.start()
        told["to zero after s"] = watch.until(RARE, lambda count: count == 0, 120.0)
        note("to zero")
        step_s = time.monotonic()
        busy.rate_rps, busy.tokens = STEP_RPS, STEP_TOKENS
        told["up after s"] = watch.until(BUSY, lambda count: count is not None and count >= 3, 90.0)
        note("up")
        rare = Load(f"http://127.0.0.1:{port}", RARE, 0.0, STEP_TOKENS)
        asked_s = time.monotonic()
        asyncio.run(one(rare))
        told["first answer from zero after s"] = time.monotonic() - asked_s
        note("from zero")
        told["steady"] = watch.steady(BUSY, 5.0, 180.0)
        told["ready when steady"] = ready_soon(BUSY, told["steady"], 120.0)
        told["killed"] = kill_each(watch)
        note("killed each")
        busy.rate_rps, busy.tokens = TRICKLE_RPS, TRICKLE_TOKENS
        told["down after s"] = watch.until(BUSY, lambda count: count == 1, 180.0)
        note("down")
        time.sleep(4.0)
        told["counts"] = watch.counts(BUSY, step_s)
        busy.ended = True
        thread.join(120.0)
        told |= {"sent": busy.sent, "good": busy.good, "bad": busy.bad, "rare": [rare.good, rare.bad]}
        told["status"] = scaler_status()
        told["log"] = [json.loads(line) for line in (runtime_folder() / LOG_NAME).read_text().splitlines()]
        told["cold starts"] = cold_starts(port)
        watch.done.set()
        watch.join()
        told["shown"] = json.loads(raylane("scaling", "--json", "--address", address))
        raylane("delete", "--address", address)
        note("deleted")
        told["turns"] = take_turns(api, address, port)
        note("took turns")
        told["autoscaler is gone"] = running_scaler() is None
    sys.stdout.write(json.dumps(told))


async def one(load: Load) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        await load._ask(session)


def cold_starts(port: int) -> float:
    """The gateway's own count for the model that had none."""
    import urllib.request

    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
    lines = [line for line in text.splitlines() if "cold_start" in line and RARE in line and not line.startswith("#")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
