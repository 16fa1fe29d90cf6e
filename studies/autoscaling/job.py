"""One replay of the study: what is run, the key it is filed under, and its record."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raylane.cluster.errors import UsageError


@dataclass(frozen=True)
class Conditions:
    """What is different from the study's normal world; 1 everywhere is the normal one."""

    service_time: float = 1.0
    """Engines take this many times as long; policies do not know."""
    cold_start: float = 1.0
    """Cold starts take this many times as long; policies do not know."""
    profile: float = 1.0
    """Policies take replicas for this many times as fast as they are."""

    def __str__(self) -> str:
        changed = [f"{name} x{value:g}" for name, value in asdict(self).items() if value != 1.0]
        return ", ".join(changed) or "normal"


@dataclass(frozen=True)
class Job:
    """One policy with its knobs on one seed of one scenario."""

    scenario: str
    policy: str
    rule: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 1
    conditions: Conditions = Conditions()

    @property
    def key(self) -> str:
        """The same job has the same key on every machine."""
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Job":
        """The job of a record."""
        return cls(
            data["scenario"],
            data["policy"],
            data["rule"],
            data["knobs"],
            data["seed"],
            Conditions(**data["conditions"]),
        )


class Records:
    """Finished runs of one part of the study. What is there is not run again.

    A run is a JSON line in FOLDER/SCENARIO.jsonl as soon as it ends; `seal` moves all lines into FOLDER.parquet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sealed = folder.with_name(f"{folder.name}.parquet")

    def read(self) -> list[dict[str, Any]]:
        """Every record, the sealed ones first. UsageError for a line that is not one and a file that cannot be read."""
        return [*self._read_sealed(), *self._read_lines()]

    def _read_sealed(self) -> list[dict[str, Any]]:
        if not self.sealed.is_file():
            return []
        try:
            rows = pq.read_table(self.sealed, columns=["record"]).column("record").to_pylist()
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise UsageError(f"{self.sealed}: no records of a study: {error}") from error
        return [json.loads(row) for row in rows]

    def _read_lines(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.folder.glob("*.jsonl")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    found.append(json.loads(line))
                except ValueError as error:
                    raise UsageError(f"{path}: line {number}: not JSON: {error}") from error
        return found

    def missing(self, jobs: list[Job]) -> list[Job]:
        """The jobs without a record."""
        done = {record["key"] for record in self.read()}
        return [job for job in jobs if job.key not in done]

    def add(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """Append one finished run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{job.scenario}.jsonl").open("a", encoding="utf-8") as file:
            file.write(_line({**job.to_json(), "outcome": outcome}) + "\n")

    def seal(self) -> None:
        """Write all records into the one file and take the lines away. A cut in between loses nothing."""
        records = self.read()
        if not records:
            return
        columns = {name: [record[name] for record in records] for name in ("key", "scenario", "policy", "rule", "seed")}
        table = pa.table({**columns, "record": [_line(record) for record in records]})
        partial = self.sealed.with_suffix(".partial")
        pq.write_table(table, partial, compression="zstd", compression_level=19)
        partial.replace(self.sealed)
        for path in self.folder.glob("*.jsonl"):
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"))
