"""The run folder: written as results come, read by reports and notebooks.

plan.yaml         the plan, defaults filled in
environment.json  versions, host, GPUs, engines
requests.parquet  one row a request, content times as a list column; rewritten whole after every case
gpu.parquet       one row a GPU and sample, when the host has GPUs
results.json      figures of the cases done so far, and whether the run is complete
*.spool           raw replies of the case that is running; left behind only by a killed process
"""

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from raylane.benchmarks import metrics
from raylane.benchmarks.gpu_sampler import GpuSample
from raylane.benchmarks.plan import BenchmarkPlan
from raylane.benchmarks.records import RequestRecord
from raylane.benchmarks.results import RunResults
from raylane.benchmarks.spool import read_spool
from raylane.benchmarks.writing import replace_file, replace_text
from raylane.cluster.errors import UsageError
from raylane.cluster.gpu_readings import GpuReading
from raylane.cluster.redact import redacted_data
from raylane.cluster.strict import explain
from raylane.deployments.slo import Slo

REQUEST_SCHEMA = pa.schema(
    [
        ("case", pa.string()),
        ("stream", pa.string()),
        ("model", pa.string()),
        ("t_sched_s", pa.float64()),
        ("t_send_s", pa.float64()),
        ("t_end_s", pa.float64()),
        ("asked_input_tokens", pa.int64()),
        ("asked_output_tokens", pa.int64()),
        ("http_status", pa.int64()),
        ("error", pa.string()),
        ("finish", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("content_times_s", pa.list_(pa.float64())),
    ]
)
GPU_SCHEMA = pa.schema(
    [
        ("t_s", pa.float64()),
        ("gpu_uuid", pa.string()),
        ("power_w", pa.float64()),
        ("sm_clock_mhz", pa.float64()),
        ("gpu_util_percent", pa.float64()),
        ("memory_used_bytes", pa.int64()),
        ("temperature_c", pa.float64()),
    ]
)

_TRIAL_BYTES = 4096


class RunFolder:
    """Writes one run. Every file is replaced whole, so a reader never meets half a file."""

    def __init__(self, out_dir: Path, plan: BenchmarkPlan, started_at: datetime) -> None:
        """Create out_dir/ID. The ID begins with the start time (UTC), so names sort by time."""
        self.run_id, self.path = _new_folder(out_dir, f"{started_at:%Y%m%d-%H%M%S}-{plan.name}")
        self._plan = plan
        self._records: list[RequestRecord] = []

    def write_start(self, environment: dict[str, Any], results: RunResults) -> None:
        """Plan, environment and results without cases."""
        replace_text(self.path / "plan.yaml", self._plan.to_yaml())
        shown = json.dumps(redacted_data(environment), indent=2, default=str)
        replace_text(self.path / "environment.json", shown + "\n")
        self.write_results(results)

    def spool_path(self, case: str) -> Path:
        """Where the replies of a running case go."""
        number = [each.name for each in self._plan.cases].index(case)
        return self.path / f"case-{number:03d}.spool"

    def write_requests(self, records: Sequence[RequestRecord]) -> None:
        """Add the records of a finished case."""
        self._records.extend(records)
        columns = {
            name: [getattr(record, name) for record in self._records]
            for name in REQUEST_SCHEMA.names
            if name != "content_times_s"
        }
        columns["content_times_s"] = [np.asarray(record.content_times_s) for record in self._records]
        table = pa.table(columns, schema=REQUEST_SCHEMA)
        replace_file(self.path / "requests.parquet", lambda partial: pq.write_table(table, partial))

    def write_gpu(self, samples: Sequence[GpuSample]) -> None:
        """All GPU samples so far; without any there is no file."""
        if samples:
            rows = [{"t_s": sample.t_s} | asdict(sample.reading) for sample in samples]
            table = pa.Table.from_pylist(rows, schema=GPU_SCHEMA)
            replace_file(self.path / "gpu.parquet", lambda partial: pq.write_table(table, partial))

    def write_results(self, results: RunResults) -> None:
        """Figures so far."""
        replace_text(self.path / "results.json", results.model_dump_json(indent=2) + "\n")

    def left(self) -> str:
        """What there is of the run, for a message."""
        names = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
        return f"what there is of the run is in {self.path}: {', '.join(names) or 'nothing'}"


def check_writable(folder: Path) -> None:
    """Raise UsageError when no run folder can be made and filled there. Leaves nothing behind."""
    made: list[Path] = []
    try:
        for each in reversed([folder, *folder.parents]):
            if not each.exists():
                each.mkdir()
                made.append(each)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".raylane-") as trial:
            trial.write(bytes(_TRIAL_BYTES))
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        raise UsageError(_no_room(folder, error)) from error
    finally:
        for each in reversed(made):
            with suppress(OSError):  # not empty: somebody else was quicker
                each.rmdir()


def _no_room(folder: Path, error: OSError) -> str:
    return f"--out {folder}: a run folder cannot be made there: {error.strerror}"


def _new_folder(out_dir: Path, wanted: str) -> tuple[str, Path]:
    """Two runs of one second get different folders."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            run_id = wanted if number == 1 else f"{wanted}-{number}"
            with suppress(FileExistsError):
                (out_dir / run_id).mkdir()
                return run_id, out_dir / run_id
    except OSError as error:
        raise UsageError(_no_room(out_dir, error)) from error
    raise UsageError(f"{out_dir}: has a thousand runs named {wanted}")


@dataclass(frozen=True)
class Run:
    """A run folder as tidy frames.

    requests: one row a request, with ttft_ms, tpot_ms, e2e_ms, dispatch_lag_ms, in_window (due in the window), good.
    tokens: one row a content chunk: request (index of `requests`), case, stream, chunk, t_s, gap_ms (NaN at first) and
    tokens, the answer's tokens spread evenly over its chunks (NaN when the endpoint sent no usage).
    gpu: one row a GPU and sample; empty without GPUs. results: results.json as a dict; `summary` is the same, typed.
    """

    path: Path
    plan: BenchmarkPlan
    environment: dict[str, Any]
    results: dict[str, Any]
    summary: RunResults
    requests: pd.DataFrame
    tokens: pd.DataFrame
    gpu: pd.DataFrame

    @property
    def simulated(self) -> bool:
        """Whether a simulator served the models."""
        return self.summary.simulated

    @property
    def complete(self) -> bool:
        """Whether the run reached its end."""
        return self.summary.complete


def load_run(path: Path | str) -> Run:
    """Read a run folder, also one of a run that is still going or was killed. Raises UsageError if it is none."""
    folder = Path(path)
    if not (folder / "results.json").is_file():
        raise UsageError(f"{folder}: is not a run folder: it has no results.json")
    plan = BenchmarkPlan.from_yaml(folder / "plan.yaml")
    results = _read_json(folder / "results.json")
    try:
        summary = RunResults.model_validate(results)
    except ValidationError as error:
        raise UsageError("\n".join(explain(error, str(folder / "results.json")))) from error
    records = [*_read_requests(folder / "requests.parquet")]
    for spool in sorted(folder.glob("*.spool")):
        records.extend(read_spool(spool))
    return Run(
        path=folder,
        plan=plan,
        environment=_read_json(folder / "environment.json"),
        results=results,
        summary=summary,
        requests=requests_frame(records, plan, summary),
        tokens=tokens_frame(records),
        gpu=_read_gpu(folder / "gpu.parquet"),
    )


def read_gpu_samples(frame: pd.DataFrame) -> list[GpuSample]:
    """The rows of a Run's gpu frame as samples; a missing figure is None again."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [GpuSample(row["t_s"], GpuReading(*(row[name] for name in GPU_SCHEMA.names[1:]))) for row in rows]


def requests_frame(records: Sequence[RequestRecord], plan: BenchmarkPlan, summary: RunResults) -> pd.DataFrame:
    """One row a request with its derived figures."""
    slos = {(case.name, stream.label): stream.slo for case in plan.cases for stream in case.streams}
    windows = {
        case.case: metrics.Window(case.window_start_s, case.window_start_s + case.window_s) for case in summary.cases
    }
    rows = [
        _request_row(record, slos.get((record.case, record.stream)), windows.get(record.case)) for record in records
    ]
    frame = pd.DataFrame(rows, columns=[*REQUEST_SCHEMA.names[:-1], *_DERIVED])
    counts = {"http_status": "Int64", "prompt_tokens": "Int64", "completion_tokens": "Int64", "good": "boolean"}
    seconds = dict.fromkeys((name for name in frame.columns if name.endswith(("_s", "_ms"))), "float64")
    return frame.astype(counts | seconds | {"completed": "bool", "in_window": "bool"})


_DERIVED = (
    *("t_first_s", "t_last_s", "completed", "in_window", "good"),
    *("ttft_ms", "ttft_from_schedule_ms", "tpot_ms", "e2e_ms", "dispatch_lag_ms"),
)


def _request_row(record: RequestRecord, slo: Slo | None, window: metrics.Window | None) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(record, name) for name in REQUEST_SCHEMA.names[:-1]}
    return row | {
        "t_first_s": record.t_first_s,
        "t_last_s": record.t_last_s,
        "completed": record.completed,
        "in_window": window is not None and window.holds(record.t_sched_s),
        "good": None if slo is None else metrics.is_good(record, slo),
        "ttft_ms": metrics.ttft_ms(record),
        "ttft_from_schedule_ms": metrics.ttft_from_schedule_ms(record),
        "tpot_ms": metrics.tpot_ms(record),
        "e2e_ms": metrics.e2e_ms(record),
        "dispatch_lag_ms": metrics.dispatch_lag_ms(record),
    }


def tokens_frame(records: Sequence[RequestRecord]) -> pd.DataFrame:
    """One row a content chunk."""
    times = [np.asarray(record.content_times_s, dtype=np.float64) for record in records]
    counts = [len(each) for each in times]
    return pd.DataFrame(
        {
            "request": np.repeat(np.arange(len(records)), counts),
            "case": np.repeat(np.array([record.case for record in records], dtype=object), counts),
            "stream": np.repeat(np.array([record.stream for record in records], dtype=object), counts),
            "chunk": np.concatenate([np.arange(count) for count in counts] or [np.empty(0, np.int64)]),
            "t_s": np.concatenate(times or [np.empty(0)]),
            "tokens": np.repeat([_tokens_per_chunk(record) for record in records] or np.empty(0), counts),
            "gap_ms": np.concatenate([np.diff(each, prepend=np.nan) * 1e3 for each in times] or [np.empty(0)]),
        }
    )


def _tokens_per_chunk(record: RequestRecord) -> float:
    chunks = len(record.content_times_s)
    return record.completion_tokens / chunks if chunks and record.completion_tokens is not None else np.nan


def _read_requests(path: Path) -> list[RequestRecord]:
    return [RequestRecord(**row) for row in _read_table(path, REQUEST_SCHEMA).to_pylist()]


def _read_gpu(path: Path) -> pd.DataFrame:
    frame: pd.DataFrame = _read_table(path, GPU_SCHEMA).to_pandas()
    return frame


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Without the file, a table without rows."""
    if not path.is_file():
        return schema.empty_table()
    try:
        return pq.read_table(path, schema=schema)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    return data
