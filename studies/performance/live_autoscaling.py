"""An hour of load in six minutes: the autoscaler on a live Ray Serve with simulated engines, beside the lab's replay.

    python -m studies.performance.live_autoscaling [--minutes 60] [--policies slo,utilization-effective]

The engines run at 10x and the autoscaler's clock, ages and prices of time with them, so one real second is ten of the
load's. Twelve recorded L40S; an 8B model with two requests in a batch, so that few requests a second need many
replicas. For each policy: counts of replicas live and in the lab, GPU-hours, requests that were answered well.
Exit status 1 when a request was lost, or when raylane's own rule decided otherwise than in the lab: further apart than
WITHIN after the first ten minutes, in which both go by the chance of their first requests.
"""

import argparse
import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raylane.cluster.local_ray import local_ray, use_a_token

use_a_token()  # before anything imports Ray

import aiohttp  # noqa: E402
import numpy as np  # noqa: E402

from raylane.autoscaling.lab.outcome import outcome  # noqa: E402
from raylane.autoscaling.lab.setup import ModelDefinition, Setup, lab_model  # noqa: E402
from raylane.autoscaling.lab.world import World  # noqa: E402
from raylane.autoscaling.live.ray_scaler import RayCluster  # noqa: E402
from raylane.autoscaling.live.scaler import Scaler  # noqa: E402
from raylane.autoscaling.rules.registry import policy_for  # noqa: E402
from raylane.autoscaling.traces.shapes import generate, shape_from_data  # noqa: E402
from raylane.autoscaling.traces.trace import Trace, between  # noqa: E402
from raylane.cluster.catalog import need_accelerator  # noqa: E402
from raylane.cluster.recording import load_recording  # noqa: E402
from raylane.deployments.config.deployment import DeploymentConfig  # noqa: E402
from raylane.deployments.directory.reports import ModelTraffic, Snapshot  # noqa: E402
from raylane.deployments.replicas.host import TOPOLOGY_VARIABLE  # noqa: E402
from raylane.deployments.rollout.rollout import delete, deploy, snapshot  # noqa: E402
from raylane.deployments.rollout.serve_api import ServeApi, dashboard_url  # noqa: E402
from raylane.deployments.sizing.engine_settings import engine_settings  # noqa: E402
from raylane.deployments.slo import Slo  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RECORDING = ROOT / "cluster" / "recordings" / "l40s-x12-six-switch-pairs.json"
MODEL, PORT, SPEED = "llama-8b", 18_333, 10.0
SLO = Slo(ttft_ms=1000, ttft_ms_per_input_token=0.25, tpot_ms=60)
COLD_START_S = 90.0
PROCESS_START_S = 2.0  # real seconds of a simulated start that are not waited for on purpose
SETTLED_S = 600.0
WITHIN = {"mean_apart": 0.5, "share_more_than_one_apart": 0.02}  # replicas, share of the time
LOAD = {
    "kind": "ramp",
    "base_rps": 0.3,
    "peak_rps": 1.6,
    "before_s": 300,
    "rise_s": 1200,
    "hold_s": 600,
    "fall_s": 900,
    "after_s": 600,
    "lengths": {"input_tokens": {"mean": 100, "p99": 300}, "output_tokens": {"mean": 64, "p99": 180, "max": 400}},
}


def config(policy: str, speedup: float) -> DeploymentConfig:
    """At `speedup` 1 the deployment as the load's own clock sees it."""
    engine = {"kind": "simulator", "max_num_seqs": 2, "max_model_len": 2048, "enable_prefix_caching": False}
    start_s = COLD_START_S / SPEED - PROCESS_START_S
    model = {
        "source": "builtin:llama-3-8b-shape",
        "engine": {**engine, "speedup": speedup, "cold_start_s": start_s},
        "replicas": {"min": 1, "max": 10},
        "slo": SLO.model_dump(),
        "cold_start_s": COLD_START_S,
        "cpus": 0.1,
        "drain_timeout_s": 60,
    }
    data = {"models": {MODEL: model}, "gateway": {"port": PORT}, "scaling": {"policy": policy, "warm_up_s": 0}}
    return DeploymentConfig.from_data(data, "live autoscaling")


class Quick(RayCluster):
    """The cluster as a clock sees it that runs SPEED times as fast."""

    def __init__(self, policy: str) -> None:
        super().__init__()
        self._config = config(policy, 1.0)

    async def config(self) -> DeploymentConfig | None:
        return self._config

    async def snapshot(self) -> Snapshot:
        known = await super().snapshot()
        gateways = {name: {m: _aged(one) for m, one in traffic.items()} for name, traffic in known.gateways.items()}
        return replace(known, gateways=gateways)

    async def wait_for_wake(self, known: int, wait_s: float) -> tuple[int, tuple[str, ...]]:
        return await super().wait_for_wake(known, wait_s / SPEED)

    async def keep(self, text: str) -> None:
        return None


def _aged(traffic: ModelTraffic) -> ModelTraffic:
    held_s = traffic.oldest_held_age_s
    waits = {replica: wait_s * SPEED for replica, wait_s in traffic.first_byte_wait_s.items()}
    return replace(traffic, oldest_held_age_s=None if held_s is None else held_s * SPEED, first_byte_wait_s=waits)


class Counts(threading.Thread):
    """Replicas asked for and GPUs held, five times a second, in the load's time."""

    def __init__(self, api: ServeApi, began_s: float) -> None:
        super().__init__(daemon=True)
        self._api, self._began_s = api, began_s
        self.rows: list[tuple[float, int, int]] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.2):
            known = snapshot()
            held = sum(len(report.gpu_uuids) for report in known.replicas) if known else 0
            asked = self._api.state().model_targets().get(MODEL, 0)
            self.rows.append(((time.monotonic() - self._began_s) * SPEED, asked, held))

    def gpu_hours(self) -> float:
        steps = zip(self.rows, self.rows[1:], strict=False)
        return sum((after[0] - before[0]) * before[2] for before, after in steps) / 3600

    def targets(self) -> list[tuple[float, int]]:
        """(time, count) at each change."""
        rows = [(at_s, asked) for at_s, asked, _ in self.rows]
        return [row for index, row in enumerate(rows) if not index or rows[index - 1][1] != row[1]]


async def send(trace: Trace, began_s: float) -> list[tuple[bool, bool]]:
    """(completed, good) for each request of the trace."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        asked = []
        for at_s, tokens_in, tokens_out in zip(trace.at_s, trace.input_tokens, trace.output_tokens, strict=True):
            await asyncio.sleep(max(0.0, began_s + at_s / SPEED - time.monotonic()))
            asked.append(asyncio.create_task(ask(session, int(tokens_in), int(tokens_out))))
        return list(await asyncio.gather(*asked))


async def ask(session: aiohttp.ClientSession, tokens_in: int, tokens_out: int) -> tuple[bool, bool]:
    body = {
        "model": MODEL,
        "prompt": "hello " * tokens_in,
        "max_tokens": tokens_out,
        "stream": True,
        "ignore_eos": True,
    }
    sent_s, first_s, end = time.monotonic(), None, b""
    try:
        async with session.post(f"http://127.0.0.1:{PORT}/v1/completions", json=body) as reply:
            async for chunk in reply.content.iter_any():
                first_s = first_s or time.monotonic()
                end = (end + chunk)[-64:]
    except (aiohttp.ClientError, TimeoutError):
        return False, False
    if reply.status != 200 or first_s is None or not end.rstrip().endswith(b"[DONE]"):
        return False, False
    ttft_ms = (first_s - sent_s) * SPEED * 1e3
    tpot_ms = (time.monotonic() - first_s) * SPEED * 1e3 / max(1, tokens_out - 1)
    allowed_ms = SLO.ttft_ms + SLO.ttft_ms_per_input_token * tokens_in
    return True, ttft_ms <= allowed_ms and tpot_ms <= SLO.tpot_ms


def live(policy: str, trace: Trace, api: ServeApi) -> dict[str, Any]:
    """One policy on the live cluster, begun with one replica."""
    deploy(config(policy, SPEED), api, "live autoscaling", lambda statuses: None, 240.0)
    log: list[Mapping[str, Any]] = []
    scaler = Scaler(Quick(policy), log.append, now_s=lambda: time.monotonic() * SPEED)
    began_s = time.monotonic() + 1.0
    counts = Counts(api, began_s)
    counts.start()
    loop = asyncio.new_event_loop()
    deciding = asyncio.run_coroutine_threadsafe(scaler.run(), loop)
    threading.Thread(target=loop.run_forever, daemon=True).start()
    answers = asyncio.run(send(trace, began_s))
    counts.done.set()
    counts.join()
    deciding.cancel()
    delete(api, [])
    return {
        "requests": len(answers),
        "lost": sum(not completed for completed, _ in answers),
        "attainment": sum(good for _, good in answers) / len(answers),
        "gpu_hours": counts.gpu_hours(),
        "targets": counts.targets(),
    }


def lab(policy: str, trace: Trace) -> dict[str, Any]:
    """The same in virtual time."""
    model = config(policy, 1.0).models[MODEL]
    definition = ModelDefinition(MODEL, model.source, engine_settings(model), SLO, COLD_START_S, 1, 10)
    ready = lab_model(definition, need_accelerator("L40S"))
    setup = Setup("live", tuple(load_recording(RECORDING)), (ready,), {MODEL: trace})
    world = World(setup, policy_for(policy, {}, {MODEL: ready.spec}), seed=1).run()
    found = outcome(world)
    return {"attainment": found.attainment, "gpu_hours": found.gpu_hours, "targets": list(world.models[0].targets)}


def difference(
    a: Sequence[tuple[float, int]], b: Sequence[tuple[float, int]], begin_s: float, end_s: float
) -> dict[str, float]:
    """Mean distance between two courses of counts, and the share of time in which it is more than one."""
    grid = np.arange(begin_s, end_s, 5.0)
    courses = [np.array([_at(course, float(at_s)) for at_s in grid]) for course in (a, b)]
    far = np.abs(courses[0] - courses[1])
    return {"mean_apart": float(far.mean()), "share_more_than_one_apart": float((far > 1).mean())}


def apart(live: Sequence[tuple[float, int]], lab: Sequence[tuple[float, int]], end_s: float) -> dict[str, Any]:
    """From the beginning, and once the load is known."""
    parts = {"whole": 0.0, "settled": min(SETTLED_S, end_s / 2)}
    return {name: difference(live, lab, begin_s, end_s) for name, begin_s in parts.items()}


def _at(course: Sequence[tuple[float, int]], at_s: float) -> int:
    """The count at that time; the first one before the first change."""
    return next((count for since_s, count in reversed(course) if since_s <= at_s), course[0][1])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=60.0)
    options.add_argument("--policies", default="slo,utilization-effective")
    given = options.parse_args()
    trace = generate(shape_from_data(LOAD, "load"), np.random.default_rng(1))
    trace = between(trace, 0.0, min(trace.duration_s, given.minutes * 60))
    told: dict[str, Any] = {"simulated": True, "speed": SPEED, "requests": len(trace), "duration_s": trace.duration_s}
    os.environ[TOPOLOGY_VARIABLE] = str(RECORDING)
    with local_ray(cpus=8, gpus=12) as context:
        api = ServeApi(dashboard_url(context))
        for policy in given.policies.split(","):
            ran, replayed = live(policy, trace, api), lab(policy, trace)
            told[policy] = {"live": ran, "lab": replayed} | apart(ran["targets"], replayed["targets"], trace.duration_s)
            sys.stderr.write(f"SIMULATED {policy}: {summary(told[policy])}\n")
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    wrong = [text for policy in given.policies.split(",") for text in differences(policy, told[policy])]
    if wrong:
        sys.exit("; ".join(wrong))


def differences(policy: str, one: Mapping[str, Any]) -> list[str]:
    """What must not be: requests lost by any policy, decisions of raylane's own that are not those of the lab."""
    lost = [f"{policy}: {one['live']['lost']} requests lost"] if one["live"]["lost"] else []
    if policy != "slo":
        return lost
    found = one["settled"]
    return lost + [
        f"{policy}: {name} is {found[name]:.3f} > {most}" for name, most in WITHIN.items() if found[name] > most
    ]


def summary(one: Mapping[str, Any]) -> str:
    parts = [
        f"{where} {one[where]['gpu_hours']:.2f} GPU-hours, attainment {one[where]['attainment']:.3f}, "
        f"most {max(count for _, count in one[where]['targets'])} replicas"
        for where in ("live", "lab")
    ]
    far = f"{one['whole']['mean_apart']:.2f} replicas apart on average, {one['settled']['mean_apart']:.2f} once settled"
    return f"{'; '.join(parts)}; {far}; lost {one['live']['lost']}"


if __name__ == "__main__":
    main()
