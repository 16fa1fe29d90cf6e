"""Does a model fit on its GPUs with these engine settings, and what would fit instead. Pure."""

from dataclasses import replace

from raylane.cluster.catalog import Accelerator
from raylane.deployments.sizing.alternatives import nearest_that_fit
from raylane.deployments.sizing.memory import (
    Alternative,
    EngineSettings,
    Fits,
    Limit,
    Refusal,
    check,
    with_defaults,
)
from raylane.deployments.sizing.model_facts import ModelFacts

__all__ = ["Alternative", "EngineSettings", "Fits", "Limit", "Refusal", "check", "fit", "with_defaults"]


def fit(
    facts: ModelFacts, gpu: Accelerator, settings: EngineSettings, *, largest_tensor_parallel: int = 8
) -> Fits | Refusal:
    """Room left for context, or why there is not enough and the three nearest settings that fit.

    `largest_tensor_parallel` bounds the alternatives to what one host can hold.
    """
    found = check(facts, gpu, settings)
    if isinstance(found, Fits):
        return found
    nearest = nearest_that_fit(facts, gpu, with_defaults(facts, gpu, settings), largest_tensor_parallel)
    return replace(found, nearest=nearest)
