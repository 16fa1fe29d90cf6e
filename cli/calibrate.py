"""`raylane calibrate`: fit the simulator's constants to measured runs and say how wrong it is on the others."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.text import Text

from raylane.benchmarks.plan import ConcurrencyLoad
from raylane.benchmarks.results import StreamResult
from raylane.benchmarks.run_folder import Run, load_run
from raylane.cli.tables import WholeTable, table_console
from raylane.cluster.errors import UsageError
from raylane.deployments.simulator.calibration import METRICS, Calibration, MeasuredRow, calibrate, read_rows


def calibrate_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or YAML files of measured rows.")],
    model: Annotated[str | None, typer.Option(help="For run folders: builtin:..., a folder or a config.json.")] = None,
    gpu: Annotated[str | None, typer.Option(help="For run folders: name in the accelerator catalogue.")] = None,
    tensor_parallel: Annotated[int, typer.Option(help="For run folders.")] = 1,
    quantization: Annotated[str | None, typer.Option(help="For run folders.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="For run folders, where it was set.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="For run folders, where it was set.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="For run folders, where it was set.")] = None,
    fit: Annotated[list[str] | None, typer.Option(help="Case to fit; default: every other one by load.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the constants here, for the simulator's --constants.")] = None,
    json_output: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Fit bandwidth share, compute share and two overheads; judge them on rows that were not fitted."""
    check_paths(runs, out)
    files = [path for path in runs if path.is_file()]
    rows = list(read_rows(files)) if files else []
    folders = [path for path in runs if not path.is_file()]
    if not folders:
        refuse_without_folders(
            model=model,
            gpu=gpu,
            tensor_parallel=tensor_parallel if tensor_parallel != 1 else None,
            quantization=quantization,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
            fit=fit,
        )
    else:
        if model is None or gpu is None:
            raise UsageError("run folders do not say what ran on which GPU: give --model and --gpu")
        base = {"model": model, "gpu": gpu, "tensor_parallel": tensor_parallel, "quantization": quantization}
        base |= {"max_num_batched_tokens": max_num_batched_tokens, "max_model_len": max_model_len}
        base |= {"gpu_memory_utilization": gpu_memory_utilization}
        rows += rows_of_runs([load_run(path) for path in folders], base, fit)
    found = calibrate(rows)
    constants = yaml.safe_dump({"constants": [constants_entry(found)]}, sort_keys=False)
    if json_output:
        typer.echo(json.dumps(calibration_data(found), indent=2))
    else:
        table_console().print(calibration_table(found))
        typer.echo(constants)
    if out is not None:
        write_constants(out, constants)


def write_constants(out: Path, constants: str) -> None:
    """UsageError for a file that cannot be written; what was to stand in it has been printed by then."""
    try:
        out.write_text(constants, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror}") from error


def refuse_without_folders(**options: object) -> None:
    """UsageError for options that say what run folders leave out: files of measured rows say it themselves."""
    given = ", ".join(f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None)
    if given:
        raise UsageError(f"{given}: for run folders; files of measured rows say this of each row")


def check_paths(runs: Sequence[Path], out: Path | None) -> None:
    """UsageError, before the fit takes its time, when there is nothing to read or no place for the result."""
    for path in runs:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    if out is not None and out.is_dir():
        raise UsageError(f"--out {out}: is a folder; the constants need a file")


def rows_of_runs(runs: Sequence[Run], base: dict[str, Any], fit: Sequence[str] | None) -> list[MeasuredRow]:
    """Measured rows of closed-loop cases with requests of one size; the rest of a run cannot be simulated alike.

    Unless `fit` names cases, every other load in order of concurrency is fitted and the others are held out; cases of
    the same load, as in repeated runs, are all fitted or all held out.
    """
    rows = [row for run in runs for row in _rows_of_run(run, base)]
    if not rows:
        raise UsageError("no case with one closed-loop stream and fixed token counts in these runs")
    unknown = sorted(set(fit or ()) - {row["id"] for row in rows})
    if unknown:
        raise UsageError(f"--fit {unknown}: no such case (cases: {', '.join(row['id'] for row in rows)})")
    rows.sort(key=_load)
    loads = list(dict.fromkeys(_load(row) for row in rows))
    for row in rows:
        chosen = row["id"] in fit if fit else loads.index(_load(row)) % 2 == 0
        row["use"] = "fit" if chosen else "held out"
    return [MeasuredRow.from_data(row, str(row["id"])) for row in rows]


def _load(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["concurrency"], row["input_tokens"], row["output_tokens"]


def _rows_of_run(run: Run, base: dict[str, Any]) -> list[dict[str, Any]]:
    if run.simulated:
        raise UsageError(f"{run.summary.run_id}: a simulated run; constants are fitted to measurements only")
    cases = {case.name: case for case in run.plan.cases}
    rows = []
    for result in run.summary.cases:
        streams = cases[result.case].streams
        if len(streams) != 1 or not result.valid:
            continue
        stream, load = streams[0], streams[0].load
        sizes = (stream.input_tokens, stream.output_tokens)
        if not isinstance(load, ConcurrencyLoad) or not all(isinstance(size, int) for size in sizes):
            continue
        rows.append(
            {
                **base,
                "id": f"{run.summary.run_id}/{result.case}",
                "concurrency": load.concurrency,
                "requests": result.streams[0].attempted + 2 * load.concurrency,
                "input_tokens": sizes[0],
                "output_tokens": sizes[1],
                **_measured(result.streams[0]),
                "source": run.summary.run_id,
            }
        )
    return rows


def _measured(stream: StreamResult) -> dict[str, float | None]:
    return {
        "ttft_p50_ms": None if stream.ttft_ms is None else stream.ttft_ms.p50.value,
        "tpot_p50_ms": None if stream.tpot_ms is None else stream.tpot_ms.p50.value,
        "output_tokens_per_s": stream.output_tokens_per_s or None,
    }


def constants_entry(found: Calibration) -> dict[str, Any]:
    """An entry for a constants file."""
    held_out = found.mean_error("held out")
    fitted = sorted({item.row.id for item in found.comparisons if item.row.use == "fit"})
    return {
        "gpu": found.gpu,
        "bandwidth_share": round(found.constants.bandwidth_share, 4),
        "compute_share": round(found.constants.compute_share, 4),
        "step_overhead_ms": round(found.constants.step_overhead_s * 1e3, 4),
        "first_token_extra_ms": round(found.constants.first_token_extra_s * 1e3, 4),
        "trust": "calibrated",
        "fitted_on": ", ".join(fitted),
        "held_out_error": "nothing was held out" if held_out is None else f"{held_out:.1%} on average",
    }


def calibration_data(found: Calibration) -> dict[str, Any]:
    """Constants and every row's errors as plain data."""
    rows = [
        {
            "row": item.row.id,
            "use": item.row.use,
            "metric": item.metric,
            "measured": item.measured,
            "simulated": item.simulated,
            "error": item.error,
        }
        for item in found.comparisons
    ]
    errors = {metric: found.mean_error("held out", [metric]) for metric in METRICS}
    return {"gpu": found.gpu, **asdict(found.constants), "rows": rows, "held_out_mean_error": errors}


def calibration_table(found: Calibration) -> WholeTable:
    """Measured beside simulated, row by row."""
    table = WholeTable(title=f"{found.gpu}: measured and SIMULATED", title_justify="left")
    for name in ("row", "use", "metric", "measured", "simulated", "error"):
        table.add_column(name, justify="left" if name in {"row", "use", "metric"} else "right")
    for item in found.comparisons:
        values = (f"{item.measured:,.1f}", f"{item.simulated:,.1f}", f"{item.error:+.1%}")
        table.add_row(Text(item.row.id), item.row.use, item.metric, *values)
    held_out = found.mean_error("held out")
    if held_out is not None:
        table.add_row("mean", "held out", "all", "", "", f"{held_out:.1%}")
    return table
