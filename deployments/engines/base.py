"""What every engine kind answers: how to start it, and what its metrics are called."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from raylane.cluster.allreduce import AllReduceSettings
from raylane.deployments.engines.process import Launch


@dataclass(frozen=True)
class Seat:
    """What a replica was given on its host: an address, ports of its own, GPUs, a key, a place for files."""

    host: str
    port: int
    inner_ports: range  # for the engine's own processes; no other replica of the host uses them
    gpu_uuids: tuple[str, ...]
    api_key: str
    log_path: Path
    links: AllReduceSettings  # what the links among the GPUs ask for


@dataclass(frozen=True)
class EngineLoad:
    """One reading of an engine's counters. None: the engine does not report it."""

    waiting: int | None = None
    running: int | None = None
    kv_use: float | None = None  # share of the KV cache in use, 0 to 1
    prompt_tokens_total: float | None = None
    output_tokens_total: float | None = None


class Engine(Protocol):
    """A kind of inference server with an OpenAI port."""

    kind: str
    gauges: Mapping[str, str]  # EngineLoad field -> name in the engine's /metrics

    def launch(self, seat: Seat) -> Launch:
        """The command line and environment for one replica at this seat."""
        ...


SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})? +(\S+)", re.MULTILINE)


def read_load(metrics_text: str, names: Mapping[str, str]) -> EngineLoad:
    """Pick the load out of a Prometheus text page; samples that differ in labels only are added up."""
    sums: dict[str, float] = {}
    for name, value in SAMPLE.findall(metrics_text):
        with suppress(ValueError):  # an error page has words where a sample has its number
            sums[name] = sums.get(name, 0.0) + float(value)
    return EngineLoad(
        waiting=_whole(sums.get(names["waiting"])),
        running=_whole(sums.get(names["running"])),
        kv_use=_first(sums, names["kv_use"].split("|")),
        prompt_tokens_total=sums.get(names["prompt_tokens_total"]),
        output_tokens_total=sums.get(names["output_tokens_total"]),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _first(sums: Mapping[str, float], names: Iterable[str]) -> float | None:
    return next((sums[name] for name in names if name in sums), None)
