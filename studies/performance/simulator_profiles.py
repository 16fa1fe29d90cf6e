"""What the 8B profiles trade against each other, simulated on one L40S: chat traffic at two rates, and batch work.

    python -m studies.performance.simulator_profiles

Chat: 4,000 Poisson arrivals (seed 1) with a log-normal mix of about 1,155 tokens in and 211 out. Batch: 256 clients
that always wait for an answer, 512 tokens in and 256 out. `pause` is a step full of prompts: the longest gap in
a stream.
"""

import random
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from raylane.cluster.catalog import need_accelerator
from raylane.deployments.config.profiles import need_profile
from raylane.deployments.simulator.build import build_engine
from raylane.deployments.simulator.constants import constants_for
from raylane.deployments.simulator.loads import closed_loop, simulate
from raylane.deployments.simulator.replica import EngineModel
from raylane.deployments.simulator.request import Request
from raylane.deployments.sizing.fit import EngineSettings
from raylane.deployments.sizing.profile_facts import profile_facts

RATES_RPS = (2.0, 3.5)
SETTINGS = {field.name for field in fields(EngineSettings)}


def engine_of(name: str, changes: Mapping[str, Any]) -> EngineModel:
    profile, gpu = need_profile(name), need_accelerator("L40S")
    settings = {key: value for key, value in {**profile.engine, **changes}.items() if key in SETTINGS}
    return build_engine(profile_facts(profile), gpu, EngineSettings(**settings), constants_for(gpu).constants())


def chat(rate_rps: float) -> list[Request]:
    rng, now_s, found = random.Random(1), 0.0, []
    for key in range(4000):
        now_s += rng.expovariate(rate_rps)
        tokens, output = int(rng.lognormvariate(6.6, 0.95)) + 1, int(rng.lognormvariate(4.9, 0.95)) + 1
        found.append(Request(now_s, min(tokens, 6000), min(output, 2000), key))
    return found


def row(name: str, changes: Mapping[str, Any]) -> str:
    engine = engine_of(name, changes)
    cells = []
    for rate_rps in RATES_RPS:
        done = simulate(chat(rate_rps), engine).outcomes
        ttft_ms = np.percentile([outcome.ttft_s * 1e3 for outcome in done], [50, 95])
        tpot_ms = np.percentile([outcome.tpot_s * 1e3 for outcome in done if outcome.tpot_s is not None], [50, 95])
        cells.append(f"{ttft_ms[0]:7,.0f} /{ttft_ms[1]:7,.0f} {tpot_ms[0]:6.1f} /{tpot_ms[1]:6.1f}")
    batch = closed_loop(engine, concurrency=256, requests=2048, input_tokens=512, output_tokens=256)
    longest_ms = engine.steps.step_s(0, 0, engine.limits.max_num_batched_tokens) * 1e3
    return f"{longest_ms:8,.0f}   {'   '.join(cells)}   {batch.output_tokens_per_s:8,.0f}"


def main() -> None:
    print("SIMULATED, 8B BF16 on one L40S; p50 / p95")
    heads = "   ".join(f"{f'{rate:g}/s: TTFT ms':>16} {'TPOT ms':>14}" for rate in RATES_RPS)
    print(f"{'profile':20} {'pause ms':>8}   {heads}   {'batch tok/s':>11}")
    for label, name, changes in (
        ("8b-low-latency", "8b-low-latency", {}),
        ("  64 sequences", "8b-low-latency", {"max_num_seqs": 64}),
        ("8b-balanced", "8b-balanced", {}),
        ("  steps of 2,048", "8b-balanced", {"max_num_batched_tokens": 2048}),
        ("  steps of 32,768", "8b-balanced", {"max_num_batched_tokens": 32768}),
        ("8b-high-throughput", "8b-high-throughput", {}),
    ):
        print(f"{label:20} {row(name, changes)}")


if __name__ == "__main__":
    main()
