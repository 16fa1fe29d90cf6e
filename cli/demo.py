"""`raylane demo`: the whole thing on one CPU machine."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

CONFIG = Path(__file__).resolve().parent.parent / "deployments" / "configs" / "demo.yaml"
PLAN = Path(__file__).resolve().parent.parent / "benchmarks" / "plans" / "demo.yaml"
RAY_CPUS = 8  # what Ray may hand out; engines share the real cores


def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Where the run folder goes.")] = Path("runs"),
    keep: Annotated[bool, typer.Option("--keep", help="Go on serving until Ctrl-C.")] = False,
) -> None:
    """Serve two tiny models on this machine's CPU, load both for a minute, and report speed and cost."""
    from raylane.cli.bench import read_plan, run_with_progress
    from raylane.cli.report import report
    from raylane.cluster.local_ray import local_ray
    from raylane.deployments.config import load_config

    console = Console(stderr=True)
    config, plan = load_config(CONFIG), read_plan(PLAN, None)
    began_s = time.monotonic()
    console.print("starting Ray and the engines (the first start compiles, about two minutes)", highlight=False)
    with local_ray(cpus=RAY_CPUS) as context:
        from raylane.cli.deploy import progress_lines
        from raylane.deployments.rollout import deploy
        from raylane.deployments.serve_api import ServeApi, dashboard_url

        deploy(config, ServeApi(dashboard_url(context)), str(CONFIG), progress_lines(), 900.0)
        console.print(f"serving after {time.monotonic() - began_s:.0f} s", highlight=False)
        run_dir = run_with_progress(plan, out_dir, simulated=False)
        report([run_dir], prices=None, json_output=False)
        if keep:
            serve_on(plan.base_url, next(iter(config.models)))
    typer.echo(run_dir)


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
