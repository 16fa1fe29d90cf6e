"""How much faster than real time one simulated replica runs in virtual time, on one core, at several loads.

    python -m studies.performance.simulator_speed [trace.csv.gz]

Sizes come from a trace with columns t_s, input_tokens, output_tokens (arrivals are drawn anew, Poisson, seed 1), or,
without one, from a log-normal mix of the same means as the Azure 2023 conversation trace (1,155 in, 211 out). CPU time,
best of five. `load` is the share of the rate at which 95 % of requests still meet TTFT 1 s + 0.25 ms a prompt token and
60 ms a token on 8B, 3 s + 1 ms and 110 ms on 70B (simulated).
"""

import csv
import gzip
import random
import sys
import time
from pathlib import Path

from raylane.cluster.catalog import need_accelerator
from raylane.deployments.config.builtin import CONFIGS
from raylane.deployments.simulator.build import build_engine
from raylane.deployments.simulator.constants import constants_for
from raylane.deployments.simulator.replica import EngineModel, Replica
from raylane.deployments.simulator.request import Outcome, Request
from raylane.deployments.sizing.fit import EngineSettings
from raylane.deployments.sizing.model_facts import model_facts
from raylane.deployments.slo import Slo, judge

REQUESTS = 20_000
EIGHT_B = Slo(ttft_ms=1000, ttft_ms_per_input_token=0.25, tpot_ms=60)
SEVENTY_B = Slo(ttft_ms=3000, ttft_ms_per_input_token=1.0, tpot_ms=110)
CASES = {
    "8B BF16, 1x L40S": (
        "llama-3-8b-shape",
        EngineSettings(max_model_len=8192),
        Slo(ttft_ms=1000, ttft_ms_per_input_token=0.25, tpot_ms=60),
    ),
    "70B INT4, 2x L40S": (
        "llama-3-70b-shape",
        EngineSettings(quantization="awq", tensor_parallel=2, max_model_len=8192),
        SEVENTY_B,
    ),
}


def engine_of(name: str, settings: EngineSettings) -> EngineModel:
    gpu = need_accelerator("L40S")
    return build_engine(model_facts(CONFIGS[name]), gpu, settings, constants_for(gpu).constants())


def sizes_of(trace: Path | None) -> list[tuple[int, int]]:
    if trace is None:
        rng = random.Random(1)
        return [
            (int(rng.lognormvariate(6.6, 0.95)) + 1, int(rng.lognormvariate(4.9, 0.95)) + 1) for _ in range(REQUESTS)
        ]
    with gzip.open(trace, "rt") as file:
        return [(int(row["input_tokens"]), int(row["output_tokens"])) for row in csv.DictReader(file)][:REQUESTS]


def arrivals(sizes: list[tuple[int, int]], rate_rps: float) -> list[Request]:
    rng, now_s, found = random.Random(1), 0.0, []
    for key, (tokens, output) in enumerate(sizes):
        now_s += rng.expovariate(rate_rps)
        found.append(Request(now_s, min(tokens, 6000), min(max(output, 1), 2000), key))
    return found


def run(engine: EngineModel, requests: list[Request]) -> tuple[float, list[Outcome]]:
    """CPU seconds and outcomes of an open loop."""
    replica = Replica(engine)
    begin_s = time.process_time()
    for request in requests:
        replica.advance(request.arrival_s)
        replica.submit(request)
    replica.advance(1e12)
    return time.process_time() - begin_s, replica.take_finished()


def good_share(outcomes: list[Outcome], slo: Slo) -> float:
    limits = slo.limits()
    good = sum(
        judge(limits, True, outcome.ttft_s, outcome.tpot_s or 0.0, outcome.request.input_tokens).good
        for outcome in outcomes
    )
    return good / len(outcomes)


def capacity_rps(engine: EngineModel, sizes: list[tuple[int, int]], slo: Slo) -> float:
    """Highest Poisson rate at which 95 % of requests are good, by bisection."""
    low, high = 0.01, 100.0
    for _ in range(14):
        middle = (low * high) ** 0.5
        _, outcomes = run(engine, arrivals(sizes[:4000], middle))
        low, high = (middle, high) if good_share(outcomes, slo) >= 0.95 else (low, middle)
    return low


def main() -> None:
    sizes = sizes_of(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print("SIMULATED engines; virtual time over CPU time of one core")
    print(f"{'engine':20} {'load':>5} {'req/s':>6} {'times real time':>16} {'us/request':>11} {'good':>6}")
    for name, (model, settings, slo) in CASES.items():
        engine = engine_of(model, settings)
        top_rps = capacity_rps(engine, sizes, slo)
        for load in (0.1, 0.3, 0.5, 0.7, 1.0):
            requests = arrivals(sizes, load * top_rps)
            best_s = min(run(engine, requests)[0] for _ in range(5))
            share = good_share(run(engine, requests)[1], slo)
            factor, each_us = requests[-1].arrival_s / best_s, best_s / len(requests) * 1e6
            print(f"{name:20} {load:5.0%} {load * top_rps:6.2f} {factor:16,.0f} {each_us:11.1f} {share:6.1%}")


if __name__ == "__main__":
    main()
