"""`raylane demo`: the whole thing on one machine, with real engines on its CPU or with simulated GPUs."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from raylane.cluster.errors import UsageError

if TYPE_CHECKING:
    from raylane.benchmarks.plan import BenchmarkPlan
    from raylane.deployments.config import DeploymentConfig
    from raylane.deployments.reports import Snapshot

ROOT = Path(__file__).resolve().parent.parent
UP_WITHIN_S = 900.0


@dataclass(frozen=True)
class Demo:
    """What one demo serves and runs. `recording` holds the GPUs of a simulated one, all of the card `gpu`."""

    config: Path
    plan: Path
    cpus: int  # what Ray may hand out; engines share the real cores
    gpus: int = 0
    recording: Path | None = None
    gpu: str = ""
    starting: str = "starting Ray and the engines (the first start compiles, about two minutes)"


CPU_DEMO = Demo(ROOT / "deployments/configs/demo.yaml", ROOT / "benchmarks/plans/demo.yaml", cpus=8)
SIMULATED = {
    "l40s-x12": Demo(
        ROOT / "deployments/configs/l40s-x12-mixed.yaml",
        ROOT / "benchmarks/plans/l40s-x12.yaml",
        cpus=16,
        gpus=12,
        recording=ROOT / "cluster/recordings/l40s-x12-six-switch-pairs.json",
        gpu="L40S",
        starting="starting Ray and SIMULATED engines on 12 recorded L40S (about a minute on two cores)",
    )
}


def demo(
    simulate: Annotated[
        str | None, typer.Option("--simulate", help=f"Simulated GPUs instead of this CPU: {', '.join(SIMULATED)}.")
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Where the run folder goes.")] = Path("runs"),
    keep: Annotated[bool, typer.Option("--keep", help="Go on serving until Ctrl-C.")] = False,
) -> None:
    """Serve two models on this machine, load both at once, and report speed and cost."""
    from raylane.cli.bench import read_plan
    from raylane.deployments.config import load_config
    from raylane.deployments.engines.simulator import simulated

    chosen = chosen_demo(simulate)
    config, plan = load_config(chosen.config), read_plan(chosen.plan, None)
    if chosen.recording is not None:
        config = simulated(config, chosen.gpu)
    typer.echo(run_demo(chosen, config, plan, out_dir, keep))


def chosen_demo(simulate: str | None) -> Demo:
    """The CPU demo, or the simulated one of that name."""
    if simulate is None:
        return CPU_DEMO
    if simulate not in SIMULATED:
        raise UsageError(f"--simulate: no {simulate!r}; known: {', '.join(SIMULATED)}")
    return SIMULATED[simulate]


def run_demo(chosen: Demo, config: "DeploymentConfig", plan: "BenchmarkPlan", out_dir: Path, keep: bool) -> Path:
    """Serve, load and report on a Ray of its own; the run folder."""
    from raylane.cli.bench import run_with_progress
    from raylane.cli.report import report
    from raylane.cluster.local_ray import local_ray

    console = Console(stderr=True)
    began_s = time.monotonic()
    console.print(chosen.starting, highlight=False)
    with recorded_gpus(chosen.recording), local_ray(cpus=chosen.cpus, gpus=chosen.gpus) as context:
        from raylane.cli.deploy import progress_lines
        from raylane.deployments.rollout import deploy, snapshot
        from raylane.deployments.serve_api import ServeApi, dashboard_url

        deploy(config, ServeApi(dashboard_url(context)), str(chosen.config), progress_lines(), UP_WITHIN_S)
        console.print(f"serving after {time.monotonic() - began_s:.0f} s", highlight=False)
        run_dir = run_with_progress(plan, out_dir, simulated=chosen.recording is not None)
        report([run_dir], prices=None, json_output=False)
        if chosen.gpus:
            console.print(links_line(settled(config, snapshot)), highlight=False)
        if keep:
            serve_on(plan.base_url, next(iter(config.models)))
    return run_dir


@contextmanager
def recorded_gpus(recording: Path | None) -> Iterator[None]:
    """While it lasts, processes started from here take their GPUs from the recording. None: from the driver."""
    if recording is None:
        yield
        return
    os.environ["RAYLANE_TOPOLOGY"] = str(recording)
    try:
        yield
    finally:
        del os.environ["RAYLANE_TOPOLOGY"]


def settled(config: "DeploymentConfig", read: Callable[[], "Snapshot | None"]) -> "Snapshot | None":
    """What the directory knows, once every replica of the config's minimum has reported (or after 10 s)."""
    wanted = sum(model.replicas.min for model in config.models.values())
    deadline_s = time.monotonic() + 10.0
    while True:
        known = read()
        if (known is not None and len(known.replicas) >= wanted) or time.monotonic() > deadline_s:
            return known
        time.sleep(0.5)


def links_line(known: "Snapshot | None") -> str:
    """How many of the replicas with several GPUs sit on the best links their host has for them."""
    groups = [replica for replica in (known.replicas if known else ()) if len(replica.gpu_uuids) > 1]
    best = sum(not replica.second_best for replica in groups)
    gpus = {uuid for replica in (known.replicas if known else ()) for uuid in replica.gpu_uuids}
    return f"{best} of {len(groups)} pairs are on their best link; {len(gpus)} GPUs leased"


def serve_on(url: str, model: str) -> None:
    """Print how to talk to the gateway and wait for Ctrl-C."""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "hello"}}], "max_tokens": 16}}'
    typer.echo(f"curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'")
    Console(stderr=True).print("serving until Ctrl-C")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
