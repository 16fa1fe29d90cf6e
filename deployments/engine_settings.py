"""The part of a model's config that decides memory and speed, in the terms of the sizing."""

from raylane.deployments.config import ModelConfig
from raylane.deployments.memory import EngineSettings


def engine_settings(model: ModelConfig) -> EngineSettings:
    """What fit, roofline and simulator need of a model's engine and parallelism."""
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
    )
