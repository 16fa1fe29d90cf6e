"""The tables of docs/results/h200/README.md, from the results beside it.

python -m studies.h200.summary    prints them
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylane.benchmarks.pairs import Spread, spread
from raylane.cluster.catalog import need_accelerator
from raylane.cluster.prices import shipped_prices
from raylane.deployments.sizing.checkpoint import read_model_config
from raylane.deployments.sizing.memory import EngineSettings
from raylane.deployments.sizing.model_facts import model_facts
from raylane.deployments.sizing.roofline import ceiling

RESULTS = Path("docs/results/h200")
GPU = "H200-SXM"
USD_PER_GPU_HOUR = shipped_prices().get("h200-nebius").usd_per_gpu_hour
MODELS = {"llama-8b": ("builtin:llama-3-8b-shape", 1), "llama-70b": ("builtin:llama-3-70b-shape", 2)}
GPUS_OF_EACH = 2  # in the mixed part: two 8B replicas of one GPU, one 70B replica of two
LOAD_OF_ONE_REPLICA = 128
INPUT_TOKENS, OUTPUT_TOKENS = 512, 256
LINKS = (
    ("as it is: custom all-reduce over NVLink", "mixed", "as_is"),
    ("NCCL over NVLink, no custom all-reduce", "links", "llama-70b-nccl"),
    ("NCCL through host memory (`NCCL_P2P_DISABLE=1`)", "links", "llama-70b-no-p2p"),
)
LINK_FIGURES = (
    ("ttft_512", "ttft_p50_ms"),
    ("ttft_4096", "ttft_p50_ms"),
    ("tpot_c1", "tpot_p50_ms"),
    ("tpot_c32", "tpot_p50_ms"),
    ("tpot_c32", "ttft_p50_ms"),
)


def read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text())


def roofline_tokens_per_s(model: str, concurrency: int) -> float:
    """The most one replica can do by memory bandwidth and arithmetic alone; links are taken as free."""
    source, tensor_parallel = MODELS[model]
    settings = EngineSettings(dtype="bfloat16", tensor_parallel=tensor_parallel)
    bound = ceiling(
        model_facts(read_model_config(source), source),
        need_accelerator(GPU),
        settings,
        batch=concurrency,
        input_tokens=INPUT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
    )
    return bound.output_tokens_per_s


def usd_per_million(gpus: int, output_tokens_per_s: float) -> float:
    """Dollars per million output tokens: dollars per hour of that many H200 over the tokens of an hour."""
    return gpus * USD_PER_GPU_HOUR * 1e6 / (output_tokens_per_s * 3600.0)


def overhead_table(part: Mapping[str, Any]) -> list[str]:
    """Bare and through raylane: median of three, range in brackets."""
    lines = table(("clients", "way", "TTFT p50 ms", "TPOT p50 ms", "output tok/s", "raylane / bare"))
    for load in part["loads"]:
        ratio = of(load["throughput_ratio"], "{:.3f}")
        for side, name in (("first", "bare"), ("second", "raylane")):
            runs = load[side]
            shown = [of_runs(runs, "ttft_p50_ms"), of_runs(runs, "tpot_p50_ms"), of_runs(runs, "output_tokens_per_s")]
            lines.append(line(load["load"]["concurrency"], name, *shown, ratio if side == "second" else ""))
    return lines


def of_runs(runs: Iterable[Mapping[str, float]], key: str) -> str:
    found = spread([run[key] for run in runs])
    digits = {"ttft_p50_ms": 1 if found.median < 100 else 0, "tpot_p50_ms": 2, "output_tokens_per_s": 0}[key]
    return of(found, f"{{:,.{digits}f}}")


def of(found: Spread | Mapping[str, float], form: str) -> str:
    median, low, high = found.values() if isinstance(found, Mapping) else (found.median, found.low, found.high)
    return f"{form.format(median)} ({form.format(low)} to {form.format(high)})"


def scaling_table(part: Mapping[str, Any]) -> list[str]:
    lines = table(("replicas", "output tok/s", "of one replica x n", "TTFT p50 ms", "TPOT p50 ms"))
    for replicas in (1, 2, 4):
        found = part[f"replicas_{replicas}"]
        share = part.get(f"efficiency_{replicas}", 1.0)
        shown = f"{found['output_tokens_per_s']:,.0f}", f"{share:.3f}"
        lines.append(line(replicas, *shown, f"{found['ttft_p50_ms']:.0f}", f"{found['tpot_p50_ms']:.1f}"))
    return lines


def mixed_table(part: Mapping[str, Any]) -> list[str]:
    """Each model alone and both together, as clients saw them."""
    lines = table(("case", "model", "requests/s", "output tok/s", "TTFT p50 ms", "TPOT p50 ms", "E2E p50 s"))
    for case, stream in streams(part):
        rates = f"{stream['requests_per_s']:.1f}", f"{stream['output_tokens_per_s']:,.0f}"
        ttft, tpot, e2e = (stream[key]["p50"]["value"] for key in ("ttft_ms", "tpot_ms", "e2e_ms"))
        lines.append(line(case["case"], stream["model"], *rates, f"{ttft:,.0f}", f"{tpot:.1f}", f"{e2e / 1e3:.2f}"))
    return lines


def streams(part: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(case, stream) for case in part["run"]["cases"] for stream in case["streams"]]


def worth_table(part: Mapping[str, Any]) -> list[str]:
    """Roofline share and dollars of each model's own two GPUs; energy of all four."""
    lines = table(
        ("case", "model", "share of roofline", "$ per million, its 2 GPUs", "J per token, all 4 GPUs", "mean W")
    )
    for case, stream in streams(part):
        model, rate = stream["model"], stream["output_tokens_per_s"]
        replicas = GPUS_OF_EACH // MODELS[model][1]
        share = rate / (replicas * roofline_tokens_per_s(model, LOAD_OF_ONE_REPLICA))
        lone = len(case["streams"]) == 1
        energy = energy_of(case) if lone else ("", "")
        lines.append(line(case["case"], model, f"{share:.0%}", f"{usd_per_million(GPUS_OF_EACH, rate):.2f}", *energy))
    both = next(case for case in part["run"]["cases"] if case["case"] == "together")
    dollars = usd_per_million(2 * GPUS_OF_EACH, both["output_tokens_per_s"])
    lines.append(line("together", "both", "", f"{dollars:.2f} (4 GPUs)", *energy_of(both)))
    return lines


def energy_of(case: Mapping[str, Any]) -> tuple[str, str]:
    return f"{case['energy']['j_per_output_token']:.3f}", f"{case['energy']['mean_power_w']:,.0f}"


def links_table(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """70B TP=2 over three kinds of links; in brackets the ratio to the first."""
    lines = table(("links", "TTFT 512", "TTFT 4,096", "TPOT c=1", "TPOT c=32", "TTFT c=32 (queue included)"))
    base = parts["mixed"]["as_is"]
    for name, part, key in LINKS:
        found = parts[part][key]
        cells = [f"{found[load][metric]:,.{digits(metric)}f}" for load, metric in LINK_FIGURES]
        ratios = [found[load][metric] / base[load][metric] for load, metric in LINK_FIGURES]
        first = found is base
        lines.append(line(name, *(c if first else f"{c} ({r:.2f}x)" for c, r in zip(cells, ratios, strict=True))))
    return lines


def digits(metric: str) -> int:
    return 0 if metric == "ttft_p50_ms" else 1


def calibration_table(part: Mapping[str, Any]) -> list[str]:
    lines = table(("row", "use", "metric", "measured", "SIMULATED", "error"))
    for item in part["comparisons"]:
        form = "{:,.0f}" if item["measured"] >= 100 else "{:.1f}"
        shown = form.format(item["measured"]), form.format(item["simulated"])
        lines.append(line(item["row"], item["use"], f"`{item['metric']}`", *shown, f"{item['error']:+.0%}"))
    return lines


def error_table(part: Mapping[str, Any]) -> list[str]:
    lines = table(
        ("mean absolute error (largest; figures)", "time per token", "throughput", "TTFT, 1 client", "TTFT, more")
    )
    for name, key in (
        ("fitted half", "errors_fit"),
        ("held-out half", "errors_held_out"),
        ("shipped constants, held-out half", "errors_of_shipped_constants_held_out"),
        ("shipped constants, all rows", "errors_of_shipped_constants_on_all_rows"),
    ):
        lines.append(line(name, *(error_cell(found) for found in part[key].values())))
    return lines


def error_cell(found: Mapping[str, float | None]) -> str:
    if found["mean"] is None:
        return "-"
    return f"{found['mean']:.0%} ({found['largest']:.0%}; {found['figures']})"


def minutes_table(part: Mapping[str, float]) -> list[str]:
    names = {"scaling": "scaling and fault"}
    lines = table(("part", "minutes", "GPUs", "GPU minutes"))
    for name, minutes in part.items():
        gpus = 1 if name == "overhead" else 4
        lines.append(line(names.get(name, name), f"{minutes:.1f}", gpus, f"{minutes * gpus:.0f}"))
    return lines


def table(heads: Sequence[str]) -> list[str]:
    return [line(*heads), "|" + "---|" * len(heads)]


def line(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


TABLES: dict[str, Callable[[Path], list[str]]] = {
    "overhead": lambda at: overhead_table(read(at, "overhead")),
    "mixed": lambda at: mixed_table(read(at, "mixed")),
    "worth": lambda at: worth_table(read(at, "mixed")),
    "scaling": lambda at: scaling_table(read(at, "scaling")),
    "links": lambda at: links_table({"mixed": read(at, "mixed"), "links": read(at, "links")}),
    "errors": lambda at: error_table(read(at, "calibration")),
    "calibration": lambda at: calibration_table(read(at, "calibration")),
    "minutes": lambda at: minutes_table(read(at, "minutes")),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", type=Path, default=RESULTS)
    results = arguments.parse_args().results
    for name, make in TABLES.items():
        print(f"## {name}", *make(results), "", sep="\n")


if __name__ == "__main__":
    main()
