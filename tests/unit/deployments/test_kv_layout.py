"""KV caches are shared out among layers as vLLM's own planner does it (recorded) and as its logs on a GPU say."""

import json
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.catalog import need_accelerator
from raylane.deployments.sizing.fit import EngineSettings, Fits, Refusal, check, fit
from raylane.deployments.sizing.kv_layout import CachedLayers, kv_layout
from raylane.deployments.sizing.model_facts import model_facts

H200 = need_accelerator("H200")
GIB = 2**30
RECORDED = json.loads((Path(__file__).parents[2] / "fixtures" / "kv_layouts" / "vllm.json").read_text())


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["id"])
def test_blocks_and_tokens_are_those_of_vllms_planner(case: dict[str, Any]) -> None:
    of_token = 2 if case["latent"] else 4  # bytes for each number of a head: one vector, or a key and a value
    kinds = [CachedLayers(count, heads * dim * of_token, window) for count, heads, dim, window in case["layers"]]
    layout = kv_layout(kinds, 2 * case["step"])
    blocks = int(case["gib"] * GIB // layout.block_bytes)
    found = (blocks, layout.blocks_of(case["length"]), layout.tokens(blocks, case["length"]))
    assert found == (case["blocks"], case["blocks_of_a_request"], case["tokens"])


def shape(
    kind: str, hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        "max_position_embeddings": 8192,
        **more,
    }


LLAMA_8B = shape("llama", 4096, 14336, 32, 32, 8, 128256)
LLAMA_70B = shape("llama", 8192, 28672, 80, 64, 8, 128256)
GEMMA3_12B = {
    "model_type": "gemma3_text",
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_attention_heads": 16,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "sliding_window": 1024,
}
DEEPSEEK_V2_LITE = shape(
    "deepseek_v2", 2048, 10944, 27, 16, 16, 102400, moe_intermediate_size=1408, n_routed_experts=64,
    n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1, moe_layer_freq=1, kv_lora_rank=512,
    q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
)  # fmt: skip
QWEN3_30B = shape(
    "qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, num_experts=128, num_experts_per_tok=8,
    moe_intermediate_size=768,
)  # fmt: skip
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
FP8_CHANNELS = {
    "quant_method": "compressed-tensors",
    "ignore": ["lm_head"],
    "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
}


@pytest.mark.parametrize(
    ("config", "engine", "weights_gib", "tokens"),
    [
        pytest.param(LLAMA_8B, {}, 14.96, 899_152, id="Llama 3 8B"),
        pytest.param(LLAMA_8B, {"kv_cache_dtype": "fp8"}, 14.96, 1_798_320, id="8B, FP8 KV cache"),
        pytest.param({**LLAMA_8B, "quantization_config": {"quant_method": "fp8"}}, {}, 8.46, 952_656, id="8B in FP8"),
        pytest.param({**LLAMA_70B, "quantization_config": AWQ}, {"dtype": "float16"}, 37.85, 281_984, id="70B AWQ"),
        pytest.param({**LLAMA_70B, "quantization_config": FP8_CHANNELS}, {}, 67.69, 184_192, id="70B FP8 by channel"),
        pytest.param(QWEN3_30B, {}, 56.88, 738_016, id="Qwen3 30B A3B"),
        pytest.param(GEMMA3_12B, {"max_model_len": 32_768}, 22.20, 458_402, id="Gemma 3 12B, 5 of 6 layers local"),
        pytest.param(DEEPSEEK_V2_LITE, {}, 29.28, 3_285_648, id="DeepSeek V2 Lite, a latent cache"),
        pytest.param(
            shape("mistral", 5120, 32768, 40, 32, 8, 131072, head_dim=128, sliding_window=None),
            {},
            43.91,
            523_728,
            id="Mistral Small 24B",
        ),
        pytest.param(
            {**shape("llama", 3072, 8192, 28, 24, 8, 128256), "tie_word_embeddings": True},
            {},
            5.99,
            1_114_688,
            id="Llama 3.2 3B, tied",
        ),
        pytest.param(shape("qwen2", 5120, 27648, 64, 40, 8, 152064), {}, 61.04, 257_824, id="Qwen2.5 32B"),
    ],
)
def test_an_h200_holds_what_vllm_logged(
    config: dict[str, Any], engine: dict[str, Any], weights_gib: float, tokens: int
) -> None:
    """vLLM 0.26 with gpu_memory_utilization 0.9 and max_num_seqs 256, without captured graphs."""
    found = check(model_facts(config), H200, EngineSettings(max_num_seqs=256, **engine))
    assert isinstance(found, Fits), found
    assert found.weight_bytes / GIB == pytest.approx(weights_gib, rel=0.025)
    assert found.kv_tokens == pytest.approx(tokens, rel=0.02)


def test_windows_that_are_turned_off_take_whole_requests() -> None:
    facts = model_facts(GEMMA3_12B)
    kept, whole = (check(facts, H200, EngineSettings(max_model_len=32_768, kv_windows=on)) for on in (True, False))
    assert isinstance(kept, Fits)
    assert isinstance(whole, Fits)
    assert kept.kv_tokens > 1.6 * whole.kv_tokens
    assert whole.kv_bytes // (48 * 2 * 8 * 256 * 2) == pytest.approx(whole.kv_tokens, abs=16)


def test_a_larger_step_leaves_less_to_windows_and_a_request_of_the_full_length_must_fit() -> None:
    facts, card = model_facts(GEMMA3_12B), need_accelerator("L40S")
    small, large = (
        check(facts, card, EngineSettings(max_model_len=32_768, max_num_batched_tokens=step)) for step in (2048, 8192)
    )
    assert isinstance(small, Fits)
    assert isinstance(large, Fits)
    assert small.kv_tokens > 1.3 * large.kv_tokens
    refused = fit(facts, card, EngineSettings(gpu_memory_utilization=0.65), largest_tensor_parallel=1)
    assert isinstance(refused, Refusal)
    shorter = refused.nearest[0].fits.settings.max_model_len
    assert shorter is not None
    assert f"max_model_len {shorter}" == refused.nearest[0].change
    one_more = EngineSettings(gpu_memory_utilization=0.65, max_model_len=shorter + 1024)
    assert isinstance(check(facts, card, one_more), Refusal)


def test_a_latent_cache_is_repeated_on_every_gpu_and_so_are_the_ranks_that_lead_into_it() -> None:
    facts = model_facts(DEEPSEEK_V2_LITE)
    one, two = (check(facts, H200, EngineSettings(tensor_parallel=gpus)) for gpus in (1, 2))
    assert isinstance(one, Fits)
    assert isinstance(two, Fits)
    assert one.kv_bytes_per_token == two.kv_bytes_per_token == 27 * 576 * 2
    assert two.weight_bytes - one.weight_bytes / 2 == 27 * 2048 * 576  # half of what is not split, in 16 bits


@pytest.mark.parametrize(
    ("engine", "per_token"),
    [({}, 61 * (576 * 2 + 132)), ({"kv_cache_dtype": "fp8"}, 61 * (656 + 132))],
    ids=["16 bits", "8 bits, vLLM's own layout"],
)
def test_sparse_attention_caches_its_indexers_keys_too(engine: dict[str, Any], per_token: int) -> None:
    config = shape(
        "deepseek_v32", 7168, 18432, 61, 128, 128, 129280, moe_intermediate_size=2048, n_routed_experts=256,
        n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=3, kv_lora_rank=512, q_lora_rank=1536,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, index_topk=2048, index_n_heads=64,
        index_head_dim=128, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
    )  # fmt: skip
    found = check(model_facts(config), H200, EngineSettings(tensor_parallel=8, **engine))
    assert isinstance(found, Fits), found
    assert found.kv_bytes_per_token == per_token
