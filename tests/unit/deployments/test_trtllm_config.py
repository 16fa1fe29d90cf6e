"""The config of a TensorRT-LLM engine: what is refused and how, and what sizing and simulation make of it."""

from dataclasses import replace
from typing import Any

import pytest

from raylane.cluster.catalog import need_accelerator
from raylane.cluster.errors import UsageError
from raylane.deployments.config.builtin import builtin_config
from raylane.deployments.config.deployment import DeploymentConfig, ModelConfig
from raylane.deployments.engines.simulator.config import SimulatorConfig
from raylane.deployments.engines.simulator.engine import simulated
from raylane.deployments.engines.trtllm.config import TensorRtLlmConfig
from raylane.deployments.sizing.engine_settings import engine_settings
from raylane.deployments.sizing.fit import Fits, fit
from raylane.deployments.sizing.model_facts import model_facts


def model(engine: dict[str, Any] | None = None, **keys: Any) -> ModelConfig:
    block = {"source": "org/m", "engine": {"kind": "tensorrt-llm", **(engine or {})}, **keys}
    return ModelConfig.from_data(block, "test")


@pytest.mark.parametrize(
    ("engine", "parts"),
    [
        pytest.param({"max_model_len": 5}, ("engine.max_model_len", "unknown key"), id="a key of vLLM"),
        pytest.param({"backend": "trt"}, ("engine.backend", "'trt'"), id="no such backend"),
        pytest.param(
            {"kv_cache_free_gpu_memory_fraction": 1}, ("kv_cache_free_gpu_memory_fraction", "(got 1)"), id="all memory"
        ),
        pytest.param(
            {"extra_args": ["--max_batchsize", "4"]},
            ("has no --max_batchsize", "did you mean --max_batch_size"),
            id="a flag that does not exist",
        ),
        pytest.param({"extra_args": ["--port=4"]}, ("--port is raylane's to set (leased)",), id="raylane's own flag"),
        pytest.param(
            {"llm_api_options": {"cuda_graphs": {}}},
            ("llm_api_options.cuda_graphs", "(pytorch)", "did you mean cuda_graph_config"),
            id="an option that does not exist",
        ),
        pytest.param(
            {"llm_api_options": {"kv_cache_config": {"block_reuse": True}}},
            ("llm_api_options.kv_cache_config.block_reuse",),
            id="no such key in a block",
        ),
        pytest.param(
            {"llm_api_options": {"kv_cache_config": 3}},
            ("llm_api_options.kv_cache_config: 3 is not a mapping",),
            id="a number where a block belongs",
        ),
        pytest.param(
            {"backend": "tensorrt", "llm_api_options": {"batch_wait_timeout_ms": 50}},
            ("llm_api_options.batch_wait_timeout_ms", "(tensorrt)"),
            id="a batching window on the backend without one",
        ),
        pytest.param(
            {"llm_api_options": {"kv_cache_config": {"dtype": "fp8"}}},
            ("kv_cache_config.dtype is raylane's to set (kv_cache_dtype)",),
            id="a key that has a setting of its own",
        ),
        pytest.param(
            {"backend": "tensorrt", "llm_api_options": {"enable_autotuner": True}},
            ("llm_api_options.enable_autotuner", "(tensorrt)"),
            id="an option of the other backend",
        ),
        pytest.param({"backend": "tensorrt", "dtype": "float16"}, ("dtype float16", "built"), id="dtype of an engine"),
    ],
)
def test_a_wrong_setting_is_explained(engine: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        model(engine)
    for part in parts:
        assert part in str(caught.value)


def test_numbers_below_zero_are_values_and_not_flags() -> None:
    built = model({"extra_args": ["--num_postprocess_workers", "-1"]})
    assert isinstance(built.engine, TensorRtLlmConfig)


def test_the_plan_counts_kv_as_a_share_of_what_is_left() -> None:
    facts, card = model_facts(builtin_config("builtin:llama-3-8b-shape")), need_accelerator("L40S")
    full = engine_settings(model({"kv_cache_free_gpu_memory_fraction": 0.8, "max_seq_len": 4096, "max_batch_size": 64}))
    assert (full.max_num_seqs, full.max_num_batched_tokens, full.max_model_len) == (64, 8192, 4096)
    found, all_of_it = fit(facts, card, full), fit(facts, card, replace(full, kv_cache_free_fraction=1.0))
    assert isinstance(found, Fits)
    assert isinstance(all_of_it, Fits)
    assert found.kv_bytes == pytest.approx(0.8 * all_of_it.kv_bytes)
    assert found.usable_bytes == card.memory_bytes


def test_it_can_be_simulated_like_the_others() -> None:
    config = DeploymentConfig(models={"m": model({"max_seq_len": 4096, "quantization": "int4_awq"}, tensor_parallel=2)})
    made = simulated(config, "L40S").models["m"]
    assert isinstance(made.engine, SimulatorConfig)
    assert (made.engine.max_model_len, made.engine.quantization, made.gpus) == (4096, "int4_awq", 2)
