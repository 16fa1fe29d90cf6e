"""The part of a model's config that decides memory and speed, in the terms of the sizing."""

from raylane.deployments.config.deployment import ModelConfig, VllmConfig
from raylane.deployments.sizing.checkpoint import read_model_facts
from raylane.deployments.sizing.drafts import with_draft
from raylane.deployments.sizing.memory import EngineSettings
from raylane.deployments.sizing.model_facts import ModelFacts

HYBRID_OFF = "--disable-hybrid-kv-cache-manager"


def engine_settings(model: ModelConfig, target: ModelFacts | None = None) -> EngineSettings:
    """What fit, roofline and simulator need of a model's engine and parallelism, the draft of its speculation included.

    `target` is the model's own size, which an unknown draft's is assumed from; None reads the config.json of the
    model's source where that is needed, with read_model_facts's UsageError.
    """
    settings = _plain_settings(model)
    if not isinstance(model.engine, VllmConfig) or model.engine.speculative is None:
        return settings
    facts = target or read_model_facts(model.source)
    return with_draft(settings, model.engine.speculative, facts)


def _plain_settings(model: ModelConfig) -> EngineSettings:
    engine = model.engine
    return EngineSettings(
        dtype=engine.dtype,
        quantization=engine.quantization,
        kv_cache_dtype=engine.kv_cache_dtype or "auto",
        max_model_len=engine.max_model_len,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_free_fraction=getattr(engine, "kv_cache_free_gpu_memory_fraction", 1.0),
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        tensor_parallel=model.tensor_parallel,
        pipeline_parallel=model.pipeline_parallel,
        kv_windows=_keeps_windows(model),
    )


def _keeps_windows(model: ModelConfig) -> bool:
    """Whether layers with a window keep only that: not where it is turned off, and not known of TensorRT-LLM."""
    return model.engine.kind != "tensorrt-llm" and HYBRID_OFF not in getattr(model.engine, "extra_args", ())
