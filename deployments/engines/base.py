"""What every engine kind answers: how to build and start it, how its load is read, its words for settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol

from raylane.cluster.allreduce import AllReduceSettings
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.config.kinds import KINDS
from raylane.deployments.engines.load import EngineLoad
from raylane.deployments.engines.process import Launch
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


class Engine(Protocol):
    """A kind of inference server with an OpenAI port."""

    kind: str

    def read_load(self, page: str, limits: SloLimits | None = None) -> EngineLoad:
        """The load off the engine's /metrics; None where the page does not tell. Misses are counted with `limits`."""
        ...

    def launch(self, seat: Seat) -> Launch:
        """The command line and environment for one replica at this seat."""
        ...


@dataclass(frozen=True)
class EngineKind:
    """What the folder of a kind has beside its config block, found as `KIND` in its engine.py."""

    build: Callable[[str, ModelConfig], Engine]
    """The engine of a model by its name. FailedError where this host cannot run it."""
    needs_real_gpus: bool = True
    """False: it plays, and takes the GPUs of a recording, too."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Sizing's names of settings -> this kind's, for a refusal and what would fit."""


def kind_of(name: str) -> EngineKind:
    """The kind of this name in KINDS."""
    found = import_module(f"{KINDS[name]}.engine").KIND
    if not isinstance(found, EngineKind):
        raise TypeError(f"{KINDS[name]}.engine.KIND is no EngineKind")
    return found
