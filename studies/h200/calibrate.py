"""Fit the simulator's constants to half of the H200 proof's rows and say how wrong they are on the other half.

python -m studies.h200.calibrate    prints both errors and writes docs/results/h200/calibration.json

What was settled before the first fit. Rows: one for each kind of load on links as they are; of the overhead part the
bare engine (median of the repeats); not the engine behind `scaling`, the same load once more, nor the two models that
run together, nor other kinds of links. Split: sorted by model, clients, prompt and output, the first, third, fifth and
so on are fitted, the others held out. Requests: as many as were asked for; where a window of time was asked for, the
whole number of requests per client nearest to what it held. TTFT is fitted at one client only, because it is not
predictable near saturation, and judged on every row held out. No TPOT or throughput from requests of two tokens.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raylane.cluster.catalog import need_accelerator
from raylane.deployments.simulator.calibration import (
    METRICS,
    Calibration,
    Comparison,
    MeasuredRow,
    Metric,
    calibrate,
    compare_rows,
)
from raylane.deployments.simulator.constants import constants_for

RESULTS = Path("docs/results/h200")
GPU = "H200-SXM"
WINDOW_S = 20.0  # of the mixed part
RATES: tuple[Metric, ...] = ("tpot_p50_ms", "output_tokens_per_s")
TTFT: tuple[Metric, ...] = ("ttft_p50_ms",)


def rows(results: Path) -> list[MeasuredRow]:
    """Every row in the fixed order, each marked `fit` or `held out`."""
    found = [*overhead_rows(_read(results, "overhead")), *mixed_rows(_read(results, "mixed"))]
    found.sort(key=lambda r: (r["tensor_parallel"], r["concurrency"], r["input_tokens"], r["output_tokens"]))
    return [MeasuredRow.model_validate(split(row, number)) for number, row in enumerate(found)]


def split(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The row with its use; a fitted row loses its TTFT unless it has one client."""
    use = "held out" if number % 2 else "fit"
    ttft = row["ttft_p50_ms"] if use == "held out" or row["concurrency"] == 1 else None
    return {**row, "use": use, "ttft_p50_ms": ttft}


def overhead_rows(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bare 8B engine, the median of its repeats."""
    found = []
    for entry in part["loads"]:
        load = entry["load"]
        figures = {key: statistics.median(run[key] for run in entry["first"]) for key in METRICS}
        requests = load["requests"] or whole_rounds(load["concurrency"], figures, load["duration_s"])
        sizes = load["input_tokens"], load["output_tokens"]
        found.append(row(f"8b-c{load['concurrency']}", 1, load["concurrency"], requests, sizes, figures, "overhead"))
    return found


def mixed_rows(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """70B TP=2 as it is at several loads, and each model of the mixed deployment alone (8B: one of two replicas)."""
    lone = part["as_is"]
    found = []
    for name, clients, requests, sizes in (
        ("ttft_512", 1, 12, (512, 2)),
        ("ttft_4096", 1, 12, (4096, 2)),
        ("tpot_c1", 1, 5, (512, 128)),
        ("tpot_c32", 32, 64, (512, 128)),
    ):
        metrics = TTFT if sizes[1] == 2 else METRICS
        figures: dict[Metric, float] = {metric: lone[name][metric] for metric in metrics}
        found.append(row(f"70b-{name}", 2, clients, requests, sizes, figures, "mixed, as_is"))
    for case, replicas, tensor_parallel in (("8b-alone", 2, 1), ("70b-alone", 1, 2)):
        stream = next(item for item in part["run"]["cases"] if item["case"] == case)["streams"][0]
        figures = {
            "ttft_p50_ms": stream["ttft_ms"]["p50"]["value"],
            "tpot_p50_ms": stream["tpot_ms"]["p50"]["value"],
            "output_tokens_per_s": stream["output_tokens_per_s"] / replicas,
        }
        requests = whole_rounds(128, figures, WINDOW_S)
        found.append(row(f"{case}-c128", tensor_parallel, 128, requests, (512, 256), figures, f"mixed, {case}"))
    return found


def whole_rounds(clients: int, figures: Mapping[Metric, float], window_s: float, output_tokens: int = 256) -> int:
    """Requests of a window, as the nearest whole number for each client, at least one."""
    each = figures["output_tokens_per_s"] * window_s / output_tokens / clients
    return clients * max(1, round(each))


def row(
    name: str,
    tensor_parallel: int,
    clients: int,
    requests: int,
    sizes: tuple[int, int],
    figures: Mapping[Metric, float],
    source: str,
) -> dict[str, Any]:
    return {
        "id": name,
        "model": f"builtin:llama-3-{8 if tensor_parallel == 1 else 70}b-shape",
        "gpu": GPU,
        "tensor_parallel": tensor_parallel,
        "concurrency": clients,
        "requests": requests,
        "input_tokens": sizes[0],
        "output_tokens": sizes[1],
        **{str(metric): value for metric, value in figures.items()},
        "source": source,
    }


def mean_error(items: Sequence[Comparison], metrics: Sequence[Metric], clients: range) -> dict[str, float | int | None]:
    """Mean and largest absolute relative error of those metrics at those numbers of clients."""
    errors = [abs(i.error) for i in items if i.metric in metrics and i.row.concurrency in clients]
    return {
        "figures": len(errors),
        "mean": statistics.fmean(errors) if errors else None,
        "largest": max(errors, default=None),
    }


ALONE, CROWD = range(1, 2), range(2, 10_000)
EVERY = range(1, 10_000)


def errors(items: Sequence[Comparison]) -> dict[str, dict[str, float | int | None]]:
    """The errors a reader asks for: time per token, throughput, and TTFT with and without a queue."""
    return {
        "tpot": mean_error(items, RATES[:1], EVERY),
        "throughput": mean_error(items, RATES[1:], EVERY),
        "ttft_one_client": mean_error(items, TTFT, ALONE),
        "ttft_many_clients": mean_error(items, TTFT, CROWD),
    }


def summary(found: Calibration, shipped: Sequence[Comparison]) -> dict[str, Any]:
    """What calibration.json holds: the constants, every comparison, and the errors of both sets of constants."""
    by_use = {use: [i for i in found.comparisons if i.row.use == use] for use in ("fit", "held out")}
    return {
        "simulated": True,
        "constants": asdict(found.constants),
        "errors_fit": errors(by_use["fit"]),
        "errors_held_out": errors(by_use["held out"]),
        "errors_of_shipped_constants_held_out": errors([i for i in shipped if i.row.use == "held out"]),
        "errors_of_shipped_constants_on_all_rows": errors(shipped),
        "rows": [r.model_dump(mode="json", exclude_none=True) for r in dict.fromkeys(i.row for i in found.comparisons)],
        "comparisons": [
            {"row": i.row.id, "use": i.row.use, "metric": i.metric, "measured": i.measured}
            | {"simulated": i.simulated, "error": i.error}
            for i in found.comparisons
        ],
    }


def _read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text())


def show(name: str, found: Mapping[str, Mapping[str, float | int | None]]) -> None:
    print(f"{name}:")
    for metric, error in found.items():
        if error["mean"] is not None and error["largest"] is not None:
            print(
                f"  {metric:18} {error['mean']:6.1%} mean, {error['largest']:6.1%} largest, {error['figures']} figures"
            )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", type=Path, default=RESULTS)
    results = arguments.parse_args().results
    measured = rows(results)
    found = calibrate(measured)
    shipped = compare_rows(measured, constants_for(need_accelerator(GPU)).constants())
    made = summary(found, shipped)
    (results / "calibration.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"SIMULATED; constants {found.constants}")
    for item in found.comparisons:
        figures = f"{item.measured:9.4g} {item.simulated:9.4g} {item.error:+6.1%}"
        print(f"  {item.row.id:16} {item.row.use:8} {item.metric:19} {figures}")
    show("fitted half", made["errors_fit"])
    show("held-out half", made["errors_held_out"])
    show("shipped constants, held-out half", made["errors_of_shipped_constants_held_out"])
    show("shipped constants, all rows", made["errors_of_shipped_constants_on_all_rows"])


if __name__ == "__main__":
    main()
