"""The part of a model's config that decides memory and speed, in the terms of the sizing."""

from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.sizing.checkpoint import read_model_facts
from raylane.deployments.sizing.drafts import with_draft
from raylane.deployments.sizing.memory import EngineSettings
from raylane.deployments.sizing.model_facts import ModelFacts


def engine_settings(model: ModelConfig, target: ModelFacts | None = None) -> EngineSettings:
    """What fit, roofline and simulator need of a model's engine and parallelism, the draft of its speculation included.

    `target` is the model's own size, which an unknown draft's is assumed from; None reads the config.json of the
    model's source where that is needed, with read_model_facts's UsageError.
    """
    sizes = model.engine.sizes()
    settings = EngineSettings(
        dtype=sizes.dtype,
        quantization=sizes.quantization,
        kv_cache_dtype=sizes.kv_cache_dtype or "auto",
        max_model_len=sizes.max_model_len,
        gpu_memory_utilization=sizes.memory_of_card,
        kv_cache_free_fraction=sizes.kv_of_rest,
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        tensor_parallel=model.tensor_parallel,
        pipeline_parallel=model.pipeline_parallel,
        kv_windows=sizes.kv_windows,
    )
    if sizes.speculative is None:
        return settings
    return with_draft(settings, sizes.speculative, target or read_model_facts(model.source))
