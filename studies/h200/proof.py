"""The H200 proof, part by part, results written after each.

python -m studies.h200.proof PART [PART ...] [--out DIR] [--tiny]

hardware  GPUs, links, copy bandwidth                                     any number of GPUs
overhead  one 8B engine, bare and through raylane, alternating            1 GPU
scaling   1, 2 and 4 replicas of 8B behind one gateway                    4 GPUs
fault     kill -9 of an engine under load                                 with scaling: on its four replicas
mixed     2 x 8B and 1 x 70B TP=2 from one config, alone and together     4 GPUs
autoscaling  from zero, up and down with the load, a move, a GPU in use   2 GPUs
links     70B TP=2 without the custom all-reduce, and without peer access 4 GPUs; as it is: in `mixed`

--tiny puts tiny models on the CPU in place of all of them: that tries the script, not the hardware.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raylane.cluster.local_ray import local_ray, use_a_token

use_a_token()

import ray  # noqa: E402 - the token comes first

from raylane.benchmarks.environment import describe_environment  # noqa: E402
from raylane.benchmarks.pairs import Load, Way, compare, one_case_plan  # noqa: E402
from raylane.benchmarks.plan import BenchmarkPlan, Case, ConcurrencyLoad, Stream  # noqa: E402
from raylane.deployments.rollout.rollout import delete  # noqa: E402
from raylane.deployments.rollout.serve_api import ServeApi, dashboard_url  # noqa: E402
from studies.h200 import configs  # noqa: E402
from studies.h200.autoscaling import autoscaling  # noqa: E402
from studies.h200.fault import kill_under_load  # noqa: E402
from studies.h200.gpu_use import Gpus, RealGpus, RecordedGpus  # noqa: E402
from studies.h200.load import run_many, run_one  # noqa: E402
from studies.h200.session import URL, Proof  # noqa: E402


def hardware(proof: Proof) -> None:
    began_s = time.monotonic()
    command = (sys.executable, "-m", "raylane.cli.main", "topology", "--record", str(proof.out / "topology.json"))
    shown = run_text(*command, *(() if proof.tiny else ("--probe",)))
    (proof.out / "topology.txt").write_text(shown.stdout + shown.stderr)
    print(f"topology: status {shown.returncode}, {time.monotonic() - began_s:.0f} s\n{shown.stdout}{shown.stderr}")
    copies = run_text(sys.executable, "-m", "studies.h200.copies")
    (proof.out / "nvidia-smi.txt").write_text(run_text("nvidia-smi").stdout)
    proof.write("hardware", json.loads(copies.stdout) if copies.returncode == 0 else {"failed": copies.stderr[-2000:]})


def run_text(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)


def overhead(proof: Proof) -> None:
    ready_s = proof.up(configs.config(configs.eights(1), proof.tiny), "overhead")
    engine = proof.replicas()[0]
    ways = (Way("bare", engine.url or "", engine.api_key), Way("raylane", URL))
    loads = (
        Load(1, 512, 64 if proof.tiny else 256, requests=20, warmup_requests=3),
        Load(32, 512, 64 if proof.tiny else 256, duration_s=proof.window_s(9), warmup_requests=32),
        # Counted, not timed: clients that start together stay in waves, and a window must hold whole ones.
        Load(256, 512, 64 if proof.tiny else 256, requests=1280, warmup_requests=256),
    )
    result: dict[str, Any] = {"ready_s": ready_s, "loads": []}
    for load in (load for load in loads if not proof.clients or load.concurrency in proof.clients):
        result["loads"].append(compare("llama-8b", ways, load, 1 if proof.tiny else proof.pairs, proof.runs).to_json())
        proof.write("overhead", result)
    delete(proof.api, [])


def scaling(proof: Proof) -> None:
    result: dict[str, Any] = {"ready_s_four_replicas": proof.up(configs.config(configs.eights(4), proof.tiny), "x4")}
    result["started_s"] = [r.started_s for r in proof.replicas()]
    load = Load(256, 512, 256, duration_s=proof.window_s(20), warmup_requests=256)
    if proof.tiny:
        load = Load(16, 64, 32, duration_s=4.0)
    for replicas in (4, 2, 1):
        if replicas < 4:
            result[f"drained_to_{replicas}_s"] = proof.scale("llama-8b", replicas)
        result[f"replicas_{replicas}"] = asdict(run_many("llama-8b", URL, load, replicas, proof.runs / f"x{replicas}"))
        proof.write("scaling", result)
        if replicas == 4 and "fault" in proof.also:
            fault(proof)
    one = result["replicas_1"]["output_tokens_per_s"]
    for replicas in (2, 4):
        together = result[f"replicas_{replicas}"]["output_tokens_per_s"]
        result[f"efficiency_{replicas}"] = together / (replicas * one)
    proof.write("scaling", result)
    delete(proof.api, [])


def fault(proof: Proof) -> None:
    proof.write("fault", kill_under_load("llama-8b", URL, proof.replicas, proof.runs / "fault", proof.tiny))


def mixed(proof: Proof) -> None:
    ready_s = proof.up(configs.config(configs.mixed(), proof.tiny), "mixed")
    result: dict[str, Any] = {
        "ready_s": ready_s,
        "replicas": [{"model": r.model, "started_s": r.started_s, "gpus": r.gpu_uuids} for r in proof.replicas()],
        "placement": [r.placement for r in proof.replicas()],
    }
    proof.write("mixed", result)
    result["as_is"] = links_of(proof, "llama-70b")
    proof.write("mixed", result)
    eight = stream("llama-8b", 16 if proof.tiny else 256, proof.tiny)
    seventy = stream("llama-70b", 8 if proof.tiny else 128, proof.tiny)
    window_s = proof.window_s(20)
    cases = (("8b-alone", (eight,)), ("70b-alone", (seventy,)), ("together", (eight, seventy)))
    plan = BenchmarkPlan.model_validate(
        {
            "name": "mixed",
            "base_url": URL,
            "cases": [Case(name=name, duration_s=window_s, streams=streams) for name, streams in cases],
            "cost": {
                "llama-8b": {"gpus_per_replica": 1, "replicas": 2, "price": "h200-nebius"},
                "llama-70b": {"gpus_per_replica": 2, "replicas": 1, "price": "h200-nebius"},
            },
        }
    )
    result["run"] = run_one(plan, proof.runs / "mixed", sample_gpus=not proof.tiny).results
    proof.write("mixed", result)
    delete(proof.api, [])


def stream(model: str, concurrency: int, tiny: bool) -> Stream:
    tokens = {"input_tokens": 64, "output_tokens": 32} if tiny else {"input_tokens": 512, "output_tokens": 256}
    return Stream(model=model, load=ConcurrencyLoad(concurrency=concurrency), **tokens)


def links(proof: Proof) -> None:
    result: dict[str, Any] = {"ready_s": proof.up(configs.config(configs.links(), proof.tiny), "links")}
    for model in configs.links():
        result[model] = links_of(proof, model)
        proof.write("links", result)
    delete(proof.api, [])


def links_of(proof: Proof, model: str) -> dict[str, Any]:
    """TTFT at two prompt lengths and TPOT at two concurrencies, the other engines idle."""
    long_prompt, out = (512, 32) if proof.tiny else (4096, 128)
    loads = {
        "ttft_512": Load(1, 512, 2, requests=12, warmup_requests=3),
        "ttft_4096": Load(1, long_prompt, 2, requests=12, warmup_requests=3),
        "tpot_c1": Load(1, 512, out, requests=5, warmup_requests=1),
        "tpot_c32": Load(32, 512, out, requests=64, warmup_requests=32),
    }
    figures = {}
    for name, load in loads.items():
        run = run_one(one_case_plan(model, URL, load, f"{model}-{name}", 1), proof.runs / "links")
        only = run.summary.cases[0].streams[0]
        figures[name] = {
            "ttft_p50_ms": only.ttft_ms and only.ttft_ms.p50.value,
            "tpot_p50_ms": only.tpot_ms and only.tpot_ms.p50.value,
            "output_tokens_per_s": only.output_tokens_per_s,
            "errors": only.errors,
        }
    return figures


PARTS: dict[str, Callable[[Proof], None]] = {
    part.__name__: part for part in (hardware, overhead, scaling, fault, mixed, links, autoscaling)
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("parts", nargs="+", choices=PARTS)
    arguments.add_argument("--out", type=Path, default=Path("docs/results/h200"))
    arguments.add_argument("--gpus", type=int, default=0)
    arguments.add_argument("--tiny", action="store_true")
    arguments.add_argument("--pairs", type=int, default=3, help="overhead: alternating pairs")
    arguments.add_argument("--clients", type=int, nargs="*", default=[], help="overhead: only these concurrencies")
    arguments.add_argument("--stages", nargs="*", default=[], help="autoscaling: only these")
    chosen = arguments.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    recorded = chosen.tiny and "autoscaling" in chosen.parts  # simulated engines; set before Ray starts
    gpus: Gpus = RecordedGpus(chosen.out / "two-gpus.json") if recorded else RealGpus()
    with local_ray(cpus=16, gpus=chosen.gpus) as context:
        print(f"ray {ray.__version__}", flush=True)
        proof = Proof(chosen.out, chosen.tiny, ServeApi(dashboard_url(context)), frozenset(chosen.parts), gpus)
        environment = describe_environment({"ray": ray.__version__, "models": "random weights (load_format dummy)"})
        proof.write("environment", environment)
        proof.pairs, proof.clients, proof.stages = chosen.pairs, frozenset(chosen.clients), frozenset(chosen.stages)
        minutes = {}
        for name in chosen.parts:
            if name == "fault" and "scaling" in chosen.parts:
                continue  # done inside scaling, on its four replicas
            began_s = time.monotonic()
            try:
                PARTS[name](proof)
            except Exception as error:
                proof.write(f"{name}-failed", {"error": f"{type(error).__name__}: {error}"})
                delete(proof.api, [])
            minutes[name] = (time.monotonic() - began_s) / 60
            proof.write("minutes", minutes)


if __name__ == "__main__":
    main()
