"""What is replayed: models on simulated engines, their traffic, the fleet, and how long a cold start takes."""

import math
import random
from dataclasses import dataclass, replace

from raylane.autoscaling.profile import capacity_profile
from raylane.autoscaling.spec import ModelSpec
from raylane.autoscaling.traces.trace import Trace
from raylane.cluster.catalog import Accelerator
from raylane.cluster.hosts import Host
from raylane.deployments.simulator.build import engine_for
from raylane.deployments.simulator.replica import EngineModel
from raylane.deployments.sizing.fit import EngineSettings
from raylane.deployments.sizing.roofline import Link, assumed_link
from raylane.deployments.slo import Slo

SECOND_BEST_SPEED = 0.4  # link speed across switches over that within one (10 against 25 GB/s, FACTS.md)


@dataclass(frozen=True)
class ColdStart:
    """Seconds from having GPUs to the first token: log-normal around a median."""

    median_s: float
    sigma: float = 0.15

    def draw(self, rng: random.Random) -> float:
        return self.median_s * math.exp(self.sigma * rng.gauss(0.0, 1.0))


@dataclass(frozen=True)
class LabModel:
    """One model in the lab. `engine` runs on a whole domain, `engine_apart` on GPUs with second-best links."""

    spec: ModelSpec
    engine: EngineModel
    engine_apart: EngineModel
    cold_start: ColdStart
    initial_replicas: int = 1


@dataclass(frozen=True)
class Setup:
    """Everything of one replay except the policy and the seed. Traces are by model name."""

    name: str
    hosts: tuple[Host, ...]
    models: tuple[LabModel, ...]
    traces: dict[str, Trace]
    hold_timeout_s: float = 300.0
    usd_per_gpu_hour: float = 1.0


@dataclass(frozen=True)
class ModelDefinition:
    """A model as a study names it."""

    name: str
    source: str
    settings: EngineSettings
    slo: Slo
    cold_start_s: float
    min_replicas: int = 1
    max_replicas: int = 12


def lab_model(
    model: ModelDefinition, gpu: Accelerator, *, slowdown: float = 1.0, cold_start_factor: float = 1.0
) -> LabModel:
    """The model on simulated engines. The policy's profile is that of engines without the `slowdown`."""

    def engine(link: Link, factor: float) -> EngineModel:
        return engine_for(model.source, gpu, model.settings, link, slowdown=factor, prefix_caching=False)

    link = assumed_link(gpu)
    apart = replace(link, bytes_per_s=link.bytes_per_s * SECOND_BEST_SPEED)
    spec = ModelSpec(
        name=model.name,
        gpus=model.settings.tensor_parallel * model.settings.pipeline_parallel,
        min_replicas=model.min_replicas,
        max_replicas=model.max_replicas,
        slo=model.slo,
        profile=capacity_profile(engine(link, 1.0), model.slo),
        cold_start_s=model.cold_start_s,
    )
    cold_start = ColdStart(model.cold_start_s * cold_start_factor)
    return LabModel(spec, engine(link, slowdown), engine(apart, slowdown), cold_start)
