"""What a batching window, the batch size and the split over two GPUs do to throughput and TTFT, in the simulator.

    python -m studies.performance.simulator_batching

Engines that batch continuously take a request into the next step, so there is no window to wait for; `max_num_seqs` is
the batch. The requirements claim +28 % throughput from a window of 120 ms instead of 50 ms and 1.9 times from batch 32
instead of 16. Llama-3-8B BF16 on one L40S, 512 tokens in, 256 out; the split is of 70B in 4 bits over two, 32 clients.
"""

import random
from dataclasses import replace

from raylane.cluster.catalog import need_accelerator
from raylane.deployments.config.builtin import CONFIGS
from raylane.deployments.simulator.build import build_engine
from raylane.deployments.simulator.constants import constants_for
from raylane.deployments.simulator.loads import closed_loop, simulate
from raylane.deployments.simulator.replica import EngineModel
from raylane.deployments.simulator.request import Request
from raylane.deployments.sizing.fit import EngineSettings
from raylane.deployments.sizing.model_facts import model_facts

INPUT, OUTPUT = 512, 256


def engine_of(batch: int = 256) -> EngineModel:
    gpu = need_accelerator("L40S")
    facts = model_facts(CONFIGS["llama-3-8b-shape"])
    settings = EngineSettings(max_num_seqs=batch)
    return build_engine(facts, gpu, settings, constants_for(gpu).constants(), prefix_caching=False)


def pair(tensor_parallel: int, pipeline_parallel: int) -> EngineModel:
    gpu = need_accelerator("L40S")
    settings = EngineSettings(quantization="awq", tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
    facts = model_facts(CONFIGS["llama-3-70b-shape"])
    return build_engine(facts, gpu, settings, constants_for(gpu).constants(), prefix_caching=False)


def poisson(rate_rps: float, count: int = 3000) -> list[Request]:
    rng, now_s, found = random.Random(7), 0.0, []
    for key in range(count):
        now_s += rng.expovariate(rate_rps)
        found.append(Request(now_s, INPUT, OUTPUT, key))
    return found


def main() -> None:
    print("SIMULATED: batching window (open loop, Poisson)")
    print(f"{'req/s':>6} {'window ms':>10} {'output tok/s':>13} {'TTFT p50 ms':>12} {'TPOT p50 ms':>12}")
    for rate_rps in (2.0, 6.0, 8.0):
        for window_ms in (0, 50, 120, 250):
            engine = replace(engine_of(), batching_window_s=window_ms / 1e3)
            found = simulate(poisson(rate_rps), engine)
            tpot_ms = (found.tpot_p50_s or 0) * 1e3
            print(
                f"{rate_rps:6.1f} {window_ms:10d} {found.output_tokens_per_s:13,.0f} {found.ttft_p50_s * 1e3:12.0f} "
                f"{tpot_ms:12.1f}"
            )
    print("SIMULATED: batch size (max_num_seqs; 256 clients in a closed loop)")
    print(f"{'batch':>6} {'output tok/s':>13} {'gain':>6} {'TTFT p50 ms':>12} {'TPOT p50 ms':>12}")
    before = None
    for batch in (8, 16, 32, 64, 128, 256):
        found = closed_loop(engine_of(batch), concurrency=256, requests=2048, input_tokens=INPUT, output_tokens=OUTPUT)
        rate = found.output_tokens_per_s
        gain = "" if before is None else f"{rate / before:.2f}x"
        tpot_ms = (found.tpot_p50_s or 0) * 1e3
        print(f"{batch:6d} {rate:13,.0f} {gain:>6} {found.ttft_p50_s * 1e3:12,.0f} {tpot_ms:12.1f}")
        before = rate
    print("SIMULATED: tensor against pipeline parallelism (70B in 4 bits, 2x L40S, 32 clients in a closed loop)")
    print(f"{'split':>6} {'in / out':>10} {'output tok/s':>13} {'TTFT p50 ms':>12} {'TPOT p50 ms':>12}")
    for tokens, output in ((512, 256), (2048, 64)):
        for tp, pp in ((2, 1), (1, 2)):
            found = closed_loop(pair(tp, pp), concurrency=32, requests=256, input_tokens=tokens, output_tokens=output)
            tpot_ms = (found.tpot_p50_s or 0) * 1e3
            print(
                f"{f'TP={tp}' if tp > 1 else f'PP={pp}':>6} {f'{tokens} / {output}':>10} "
                f"{found.output_tokens_per_s:13,.0f} {found.ttft_p50_s * 1e3:12,.0f} {tpot_ms:12.1f}"
            )


if __name__ == "__main__":
    main()
