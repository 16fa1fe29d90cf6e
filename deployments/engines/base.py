"""What every engine kind answers: how to start it, and what its metrics are called."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raylane.cluster.allreduce import AllReduceSettings
from raylane.deployments.engines.misses import Limits, missed_total
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
    missed_total: float | None = None  # requests that missed the model's SLO, as far as the histograms tell


class Engine(Protocol):
    """A kind of inference server with an OpenAI port."""

    kind: str
    gauges: Mapping[str, str]  # EngineLoad field -> name in the engine's /metrics; without one it stays None

    def launch(self, seat: Seat) -> Launch:
        """The command line and environment for one replica at this seat."""
        ...


SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})? +(\S+)", re.MULTILINE)


def read_load(metrics_text: str, names: Mapping[str, str], limits: Limits | None = None) -> EngineLoad:
    """Pick the load out of a Prometheus text page; samples that differ in labels only are added up.

    `limits` are those of the model's SLO; without them misses are not counted.

    A page that is a JSON list (TensorRT-LLM's) holds iterations, of which the last one counts.
    """
    if metrics_text.lstrip().startswith("["):
        return read_iterations(metrics_text, names)
    sums: dict[str, float] = {}
    for name, value in SAMPLE.findall(metrics_text):
        with suppress(ValueError):  # an error page has words where a sample has its number
            sums[name] = sums.get(name, 0.0) + float(value)
    prompt_tokens = _first(sums, names, "prompt_tokens_total")
    return EngineLoad(
        waiting=_whole(_first(sums, names, "waiting")),
        running=_whole(_first(sums, names, "running")),
        kv_use=_first(sums, names, "kv_use"),
        prompt_tokens_total=prompt_tokens,
        output_tokens_total=_first(sums, names, "output_tokens_total"),
        missed_total=None if limits is None else missed_total(metrics_text, names, limits, prompt_tokens),
    )


def read_iterations(page: str, names: Mapping[str, str]) -> EngineLoad:
    """The load after the last iteration of a JSON list; names are dotted keys, a slash divides two of them.

    An empty list is an idle engine: TensorRT-LLM waits two seconds for an iteration before it answers with one.
    """
    try:
        iterations = json.loads(page)
    except ValueError:
        return EngineLoad()
    if not iterations:
        return EngineLoad(waiting=0, running=0)
    last = iterations[-1]
    return EngineLoad(
        waiting=_whole(_share(last, names.get("waiting"))),
        running=_whole(_share(last, names.get("running"))),
        kv_use=_share(last, names.get("kv_use")),
        prompt_tokens_total=_share(last, names.get("prompt_tokens_total")),
        output_tokens_total=_share(last, names.get("output_tokens_total")),
    )


def _share(iteration: Any, name: str | None) -> float | None:
    if name is None:
        return None
    values = [_at(iteration, key) for key in name.split("/")]
    if None in values or (len(values) == 2 and not values[1]):
        return None
    top, *bottom = (float(value) for value in values if value is not None)
    return top / bottom[0] if bottom else top


def _at(data: Any, dotted: str) -> float | None:
    for key in dotted.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, int | float) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _first(sums: Mapping[str, float], names: Mapping[str, str], field: str) -> float | None:
    """The sample of the first of a field's names, which bars divide, that the page has."""
    return next((sums[name] for name in names.get(field, "").split("|") if name in sums), None)
