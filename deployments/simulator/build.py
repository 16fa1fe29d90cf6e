"""From a model, a GPU and engine settings to the engine the simulator runs."""

from raylane.cluster.catalog import Accelerator
from raylane.cluster.errors import UsageError
from raylane.deployments.simulator.constants import constants_for
from raylane.deployments.simulator.replica import EngineModel
from raylane.deployments.simulator.request import Limits
from raylane.deployments.simulator.step_model import StepConstants, step_model
from raylane.deployments.sizing.checkpoint import read_model_facts
from raylane.deployments.sizing.fit import EngineSettings, Fits, fit
from raylane.deployments.sizing.kv_layout import BLOCK_TOKENS
from raylane.deployments.sizing.model_facts import ModelFacts
from raylane.deployments.sizing.roofline import Link, assumed_link


def engine_for(
    source: str,
    gpu: Accelerator,
    settings: EngineSettings,
    link: Link | None = None,
    *,
    prefix_caching: bool = True,
    slowdown: float = 1.0,
) -> EngineModel:
    """The simulated engine of a model that has a config.json, with the shipped constants of the card."""
    facts = read_model_facts(source)
    constants = constants_for(gpu).constants()
    return build_engine(facts, gpu, settings, constants, link, prefix_caching=prefix_caching, slowdown=slowdown)


def build_engine(
    facts: ModelFacts,
    gpu: Accelerator,
    settings: EngineSettings,
    constants: StepConstants,
    link: Link | None = None,
    *,
    prefix_caching: bool = True,
    batching_window_s: float = 0.0,
    slowdown: float = 1.0,
) -> EngineModel:
    """The simulated engine. UsageError with the reason and the nearest settings when the model does not fit."""
    found = fit(facts, gpu, settings)
    if not isinstance(found, Fits):
        nearest = "; ".join(item.change for item in found.nearest) or "none"
        raise UsageError(f"does not fit on {gpu.name}: {found.reason}. Nearest that fits: {nearest}")
    full = found.settings
    limits = Limits(
        kv_tokens=-(-found.kv_tokens // BLOCK_TOKENS) * BLOCK_TOKENS,
        max_num_seqs=full.max_num_seqs or 1,
        max_num_batched_tokens=full.max_num_batched_tokens or 1,
        max_model_len=full.max_model_len or found.kv_tokens,
        prefix_caching=prefix_caching,
    )
    steps = step_model(facts, gpu, full, constants, link or assumed_link(gpu), slowdown=slowdown)
    return EngineModel(limits, steps, batching_window_s)
