"""What every engine kind answers: how to start it, and what its metrics are called."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prometheus_client.samples import Sample

from raylane.cluster.allreduce import AllReduceSettings
from raylane.deployments.engines.misses import missed_total
from raylane.deployments.engines.process import Launch
from raylane.deployments.engines.samples import added, mean, number, read_samples
from raylane.deployments.slo import SloLimits


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
    """One reading of an engine's counters. None: the engine does not report it, or what it reports is no number."""

    waiting: int | None = None
    running: int | None = None
    kv_use: float | None = None  # share of the KV cache in use, 0 to 1; of several engines the mean
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


READINGS = ("waiting", "running", "kv_use", "prompt_tokens_total", "output_tokens_total")


def read_load(metrics_text: str, names: Mapping[str, str], limits: SloLimits | None = None) -> EngineLoad:
    """Pick the load out of a Prometheus text page, whatever is on it.

    Counts of several engines behind one server are added up; of their shares of KV cache the mean is taken. A field
    is None when the page lacks it or a sample of it is no number: a sum over some engines is not that of all.

    `limits` are those of the model's SLO; without them misses are not counted.

    A page that is a JSON list (TensorRT-LLM's) holds iterations, of which the last one counts.
    """
    if metrics_text.lstrip().startswith("["):
        return read_iterations(metrics_text, names)
    samples = read_samples(metrics_text, [name for field in READINGS for name in _alternatives(names, field)])
    prompt_tokens = added(_first(samples, names, "prompt_tokens_total"))
    return EngineLoad(
        waiting=_whole(added(_first(samples, names, "waiting"))),
        running=_whole(added(_first(samples, names, "running"))),
        kv_use=mean(_first(samples, names, "kv_use")),
        prompt_tokens_total=prompt_tokens,
        output_tokens_total=added(_first(samples, names, "output_tokens_total")),
        missed_total=None if limits is None else missed_total(metrics_text, names, limits, prompt_tokens),
    )


def read_iterations(page: str, names: Mapping[str, str]) -> EngineLoad:
    """The load after the last iteration of a JSON list; names are dotted keys, a slash divides two of them.

    An empty list is an idle engine: TensorRT-LLM waits two seconds for an iteration before it answers with one.
    """
    try:
        iterations = json.loads(page)
    except (ValueError, RecursionError):
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
    values = [number(_at(iteration, key)) for key in name.split("/")]
    known = [value for value in values if value is not None]
    if len(known) < len(values) or (len(known) == 2 and not known[1]):
        return None
    return number(known[0] / known[1]) if len(known) == 2 else known[0]


def _at(data: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _alternatives(names: Mapping[str, str], field: str) -> list[str]:
    """A field's names, which bars divide; the first that a page has is read."""
    return [name for name in names.get(field, "").split("|") if name]


def _first(
    samples: Mapping[str, Collection[Sample] | None], names: Mapping[str, str], field: str
) -> Collection[Sample] | None:
    return next((samples[name] for name in _alternatives(names, field) if name in samples), None)
