"""Columns of CSV and JSON-lines files as text or numbers, with the place of whatever does not fit."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from raylane.cluster.errors import UsageError

_INT32_MAX = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of one file; row i stands on line `first_line + i`."""

    path: Path
    frame: pd.DataFrame
    first_line: int

    def numbers(self, column: str) -> npt.NDArray[np.float64]:
        """Finite numbers, none below 0. Raises UsageError naming file, line, column and value."""
        values = pd.to_numeric(self.frame[column], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        self._refuse(column, ~np.isfinite(values), "is not a number")
        self._refuse(column, values < 0, "is below 0")
        return values

    def counts(self, column: str) -> npt.NDArray[np.int32]:
        """Whole numbers, none below 0."""
        values = self.numbers(column)
        self._refuse(column, values != np.floor(values), "is not a whole number")
        self._refuse(column, values > _INT32_MAX, f"is above {_INT32_MAX}")
        return values.astype(np.int32)

    def has_dates(self, column: str) -> bool:
        """Whether the first value is a date and no number."""
        first = self.frame[column].iloc[0]
        dated = pd.to_datetime(str(first), format="ISO8601", utc=True, errors="coerce")
        return bool(pd.isna(pd.to_numeric(first, errors="coerce")) and not pd.isna(dated))

    def seconds(self, column: str) -> npt.NDArray[np.float64]:
        """ISO 8601 times, with or without zone (then UTC), as seconds after the earliest of them."""
        times = pd.to_datetime(self.frame[column].astype("str"), format="ISO8601", utc=True, errors="coerce")
        self._refuse(column, times.isna().to_numpy(), "is not an ISO 8601 time")
        return np.asarray((times - times.min()).dt.total_seconds(), dtype=np.float64)

    def texts(self, column: str) -> npt.NDArray[np.object_]:
        """Values as text, empty where there is none."""
        return self.frame[column].fillna("").astype("str").to_numpy(np.object_)

    def _refuse(self, column: str, bad: npt.NDArray[np.bool_], why: str) -> None:
        if not bad.any():
            return
        line = self.first_line + int(bad.argmax())
        raise UsageError(f"{self.path}: line {line}: {column}: {_written(self.path, line, column)} {why}")


def header_of(path: Path) -> tuple[str, ...]:
    """Column names of a CSV file, or keys of the first object of a JSON-lines file."""
    with _opened(path) as file:
        first = file.readline()
    if not first.strip():
        raise UsageError(f"{path}: line 1: is empty, a header or a JSON object was expected")
    return tuple(_object(path, 1, first)) if is_jsonl(first) else tuple(_fields(first))


def is_jsonl(first_line: str) -> bool:
    """Whether a file that begins so holds one JSON object a line; otherwise it is read as CSV."""
    return first_line.lstrip().startswith("{")


def read_columns(path: Path, names: tuple[str, ...]) -> Columns:
    """These columns of a .csv, .csv.gz, .jsonl or .jsonl.gz file. Raises UsageError when one is missing or no row."""
    header = header_of(path)
    missing = [name for name in names if name not in header]
    if missing:
        raise UsageError(f"{path}: line 1: column {missing[0]} is missing (there are {', '.join(header)})")
    with _opened(path) as file:
        if is_jsonl(file.readline()):
            columns = Columns(path, _jsonl_frame(path, names), first_line=1)
        else:
            columns = Columns(path, _csv_frame(path, names), first_line=2)
    if columns.frame.empty:
        raise UsageError(f"{path}: has a header and no rows")
    return columns


def _csv_frame(path: Path, names: tuple[str, ...]) -> pd.DataFrame:
    try:
        with _opened(path) as file:
            frame = pd.read_csv(
                file, usecols=list(names), skip_blank_lines=False, skipinitialspace=True, low_memory=False
            )
    except pd.errors.ParserError as error:
        raise UsageError(f"{path}: {error}") from error
    return _without_blank_end(frame)


def _without_blank_end(frame: pd.DataFrame) -> pd.DataFrame:
    filled = frame.notna().any(axis=1).to_numpy()
    return frame.iloc[: len(filled) - int(filled[::-1].argmax())] if filled.any() else frame.iloc[:0]


def _jsonl_frame(path: Path, names: tuple[str, ...]) -> pd.DataFrame:
    rows: list[tuple[Any, ...]] = []
    blank = 0
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                blank += 1
                continue
            if blank:
                raise UsageError(f"{path}: line {number - 1}: is empty, a JSON object was expected")
            row = _object(path, number, line)
            if any(name not in row for name in names):
                raise UsageError(f"{path}: line {number}: has no {next(name for name in names if name not in row)}")
            rows.append(tuple(row[name] for name in names))
    return pd.DataFrame(rows, columns=list(names))


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: line {number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{path}: line {number}: a JSON object was expected, got {line.strip()[:80]}")
    return row


def _fields(line: str) -> list[str]:
    return next(csv.reader([line.strip()], skipinitialspace=True), [])


def _written(path: Path, number: int, column: str) -> str:
    """A value as it stands in the file."""
    with _opened(path) as file:
        first = file.readline()
        line = first if number == 1 else next((text for at, text in enumerate(file, start=2) if at == number), "")
    if is_jsonl(first):
        return repr(_object(path, number, line).get(column))
    row, place = _fields(line), _fields(first).index(column)
    return repr(row[place]) if place < len(row) else "(nothing)"


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="")
        ) as file:
            yield file
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read: not UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read: {reason}") from error
