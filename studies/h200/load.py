"""Load from several client processes: four H200s give more tokens a second than one Python client takes in."""

import asyncio
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

from raylane.benchmarks.driver import run_plan
from raylane.benchmarks.pairs import Load, one_case_plan
from raylane.benchmarks.plan import BenchmarkPlan
from raylane.benchmarks.run_folder import Run, load_run
from raylane.cluster.gpu_readings import nvml_reader


@dataclass(frozen=True)
class Total:
    """Several clients' figures together."""

    clients: int
    output_tokens_per_s: float
    ttft_p50_ms: float  # mean of the clients' medians
    tpot_p50_ms: float
    errors: int
    client_cpu_share: float  # the busiest client's


def run_one(plan: BenchmarkPlan, out_dir: Path, sample_gpus: bool = False) -> Run:
    """Run a plan in this process."""
    reader = nvml_reader() if sample_gpus else None
    return load_run(asyncio.run(run_plan(plan, out_dir, gpu_reader=reader)))


def _client(model: str, url: str, load: Load, number: int, out_dir: Path) -> Path:
    return asyncio.run(run_plan(one_case_plan(model, url, load, f"client{number}", number), out_dir / f"{number}"))


def run_many(model: str, url: str, load: Load, clients: int, out_dir: Path) -> Total:
    """The same load from several processes at once, each with its own prompts."""
    with multiprocessing.get_context("spawn").Pool(clients) as pool:
        jobs = [(model, url, load, number, out_dir) for number in range(clients)]
        cases = [load_run(path).summary.cases[0] for path in pool.starmap(_client, jobs)]
    streams = [case.streams[0] for case in cases]
    ttfts = [s.ttft_ms.p50.value for s in streams if s.ttft_ms is not None]
    tpots = [s.tpot_ms.p50.value for s in streams if s.tpot_ms is not None]
    return Total(
        clients=clients,
        output_tokens_per_s=sum(stream.output_tokens_per_s or 0.0 for stream in streams),
        ttft_p50_ms=sum(ttfts) / len(ttfts),
        tpot_p50_ms=sum(tpots) / len(tpots),
        errors=sum(sum(stream.errors.values()) for stream in streams),
        client_cpu_share=max(case.client_cpu_share or 0.0 for case in cases),
    )
