"""`raylane demo`: the whole thing on one machine, with real engines on its CPU or with simulated GPUs."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.interrupts import ends_at_once
from raylane.cluster.local_ray import LOOPBACK, local_ray, use_a_token
from raylane.cluster.ray_driver import environment, import_ray

if TYPE_CHECKING:
    from raylane.benchmarks.plan import BenchmarkPlan
    from raylane.deployments.config.deployment import DeploymentConfig
    from raylane.deployments.directory.reports import Snapshot

ROOT = Path(__file__).resolve().parent.parent
UP_WITHIN_S = 900.0
PORTS_TRIED = 20
NEEDED = (  # imported before anything is started, as an interrupt while they are imported may crash Python
    "raylane.cli.bench",
    "raylane.cli.deploy",
    "raylane.deployments.rollout.rollout",
    "raylane.deployments.rollout.serve_api",
    "raylane.deployments.engines.simulator.engine",
    "matplotlib.backends.backend_svg",
)


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
    chosen = chosen_demo(simulate)
    console = Console(stderr=True)
    console.print(chosen.starting, highlight=False, soft_wrap=True)
    with ends_at_once():
        use_a_token()
        import_ray()
        for module in NEEDED:
            import_module(module)
    from raylane.benchmarks.run_folder import check_writable
    from raylane.cli.bench import read_plan
    from raylane.deployments.config.deployment import load_config
    from raylane.deployments.engines.simulator.engine import simulated

    check_writable(out_dir)
    config, plan = load_config(chosen.config), read_plan(chosen.plan, None)
    if chosen.recording is not None:
        config = simulated(config, chosen.gpu)
    with reserved_port(config.gateway.port) as port:
        if port != config.gateway.port:
            console.print(f"port {config.gateway.port} is in use: serving on port {port}", highlight=False)
        config, plan = on_port(config, plan, port)
        typer.echo(run_demo(chosen, config, plan, out_dir, keep))


@contextmanager
def reserved_port(first: int) -> Iterator[int]:
    """A port of the loopback address on which nobody listens, and which no other demo takes before this one listens.

    The first that is free, from `first` on. Raises FailedError when none is.
    """
    for port in range(first, first + PORTS_TRIED):
        mark = reservation(port)
        if mark is not None:
            with mark:
                yield port
            return
    raise FailedError(f"ports {first} to {first + PORTS_TRIED - 1} are all in use; end what listens on one of them")


def reservation(port: int) -> socket.socket | None:
    """What keeps other demos off a port while it is open; None when the port is somebody else's."""
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0raylane-demo-{port}")  # an abstract name: it is gone with the process
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((LOOPBACK, port))
    except OSError:
        mark.close()
        return None
    return mark


def on_port(config: "DeploymentConfig", plan: "BenchmarkPlan", port: int) -> "tuple[DeploymentConfig, BenchmarkPlan]":
    """The same deployment with its gateway on this port of the loopback address, and the same load on it."""
    gateway = config.gateway.model_copy(update={"port": port})
    loaded = plan.model_copy(update={"base_url": f"http://{LOOPBACK}:{port}"})
    return config.model_copy(update={"gateway": gateway}), loaded


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
    from raylane.cli.deploy import progress_lines
    from raylane.cli.report import report
    from raylane.deployments.rollout.rollout import deploy, snapshot
    from raylane.deployments.rollout.serve_api import ServeApi, dashboard_url

    console = Console(stderr=True)
    began_s = time.monotonic()
    with recorded_gpus(chosen.recording), local_ray(cpus=chosen.cpus, gpus=chosen.gpus) as context:
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
    """While it lasts, processes started from here take their GPUs from the recording, none of this machine's. None:
    from the driver."""
    if recording is None:
        yield
        return
    with environment({"RAYLANE_TOPOLOGY": str(recording), "RAYLANE_HOST_NAME": None, "CUDA_VISIBLE_DEVICES": None}):
        yield


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
