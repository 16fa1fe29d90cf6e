"""What fits on which cards: the cases that are known, refusals, and the nearest settings that would do."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.cluster.catalog import Accelerator, need_accelerator
from raylane.deployments.config.builtin import CONFIGS
from raylane.deployments.sizing.fit import EngineSettings, Fits, Limit, Refusal, check, fit, with_defaults
from raylane.deployments.sizing.model_facts import ModelFacts, model_facts
from raylane.deployments.sizing.suggest import suggest
from raylane.deployments.sizing.weights import kv_bytes_per_token, weight_bytes

LLAMA_8B = model_facts(CONFIGS["llama-3-8b-shape"])
LLAMA_70B = model_facts(CONFIGS["llama-3-70b-shape"])
L40S = need_accelerator("L40S")
H200 = need_accelerator("H200")


def llama(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int = 32000, **more: object
) -> ModelFacts:
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        **more,
    }
    return model_facts(config)


def checkpoint(method: str, group_size: int) -> dict[str, object]:
    if method != "compressed-tensors":
        return {"quant_method": method, "bits": 4, "group_size": group_size}
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size}
    return {"quant_method": method, "config_groups": {"g": {"weights": weights}}}


def qwen15_moe(method: str, group_size: int) -> ModelFacts:
    """Qwen1.5-MoE-A2.7B: 60 experts of width 1408 and a shared one of 5632 in every layer."""
    experts = {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408}
    return llama(
        2048, 5632, 24, 16, 16, 151936, model_type="qwen2_moe", shared_expert_intermediate_size=5632, **experts,
        quantization_config=checkpoint(method, group_size),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "quantization", "gigabytes"),
    [
        pytest.param(LLAMA_8B, None, 16.06, id="8B in 16 bits"),
        pytest.param(LLAMA_70B, None, 141.1, id="70B in 16 bits"),
        pytest.param(LLAMA_70B, "fp8", 2 * 36.33, id="70B in FP8 keeps both tables in 16 bits"),
        pytest.param(LLAMA_70B, "awq", 39.8, id="70B in 4 bits with scales"),
    ],
)
def test_weight_bytes(facts: ModelFacts, quantization: str | None, gigabytes: float) -> None:
    assert weight_bytes(facts, quantization) == pytest.approx(gigabytes * 1e9, rel=0.002)


@pytest.mark.parametrize(
    ("facts", "dtype", "expected"),
    [
        pytest.param(LLAMA_8B, "auto", 131_072, id="8B"),
        pytest.param(LLAMA_70B, "auto", 327_680, id="70B"),
        pytest.param(LLAMA_70B, "fp8", 163_840, id="FP8 halves it"),
    ],
)
def test_kv_bytes_per_token(facts: ModelFacts, dtype: str, expected: int) -> None:
    assert kv_bytes_per_token(facts, dtype) == expected


@pytest.mark.parametrize(
    ("facts", "gpu", "asked", "tokens"),
    [
        pytest.param(LLAMA_8B, L40S, EngineSettings(), 197_000, id="8B BF16 on L40S: about 197 k"),
        pytest.param(
            LLAMA_70B, L40S, EngineSettings(quantization="fp8", tensor_parallel=2), 31_000, id="70B FP8 TP=2: 31 k"
        ),
        pytest.param(
            LLAMA_70B, L40S, EngineSettings(quantization="awq", tensor_parallel=2), 130_000, id="70B INT4 TP=2: 130 k"
        ),
        pytest.param(
            LLAMA_70B,
            L40S,
            EngineSettings(quantization="awq", gpu_memory_utilization=0.95, max_model_len=4096),
            13_000,
            id="70B AWQ on one card at 0.95: 12 to 14 k",
        ),
    ],
)
def test_room_for_context(facts: ModelFacts, gpu: Accelerator, asked: EngineSettings, tokens: int) -> None:
    found = fit(facts, gpu, asked)
    assert isinstance(found, Fits)
    assert found.kv_tokens == pytest.approx(tokens, rel=0.05)
    assert found.kv_tokens % 16 == 0


def refused(facts: ModelFacts, asked: EngineSettings, gpu: Accelerator = L40S) -> Refusal:
    found = fit(facts, gpu, asked)
    assert isinstance(found, Refusal)
    return found


def test_70b_in_16_bits_on_two_l40s_cannot_exist() -> None:
    found = refused(LLAMA_70B, EngineSettings(tensor_parallel=2))
    assert found.limit is Limit.WEIGHTS
    assert "70.6 GB of weights" in found.reason
    assert [item.change for item in found.nearest] == ["quantization fp8", "quantization awq", "tensor_parallel 4"]


def test_70b_awq_on_one_l40s_needs_more_than_the_requirements_085() -> None:
    found = refused(LLAMA_70B, EngineSettings(quantization="awq", gpu_memory_utilization=0.85, max_model_len=4096))
    assert "39.8 GB of weights" in found.reason
    assert "41.1 GB" in found.reason
    assert found.nearest[0].change == "gpu_memory_utilization 0.95"
    assert 12_000 <= found.nearest[0].fits.kv_tokens <= 14_000
    assert len(found.nearest) == 3


def test_a_context_too_long_is_shortened_first() -> None:
    asked = EngineSettings(quantization="awq", gpu_memory_utilization=0.95)
    long = replace(LLAMA_70B, max_position_embeddings=131_072)
    found = refused(long, asked)
    assert found.limit is Limit.CONTEXT
    assert found.nearest[0].change == "max_model_len 13312"
    assert found.nearest[0].fits.settings.max_model_len == 13312


@pytest.mark.parametrize(
    ("asked", "limit", "words"),
    [
        pytest.param(EngineSettings(tensor_parallel=3), Limit.SPLIT, "32 attention heads.*3", id="heads"),
        pytest.param(EngineSettings(max_model_len=9000), Limit.SETTINGS, "9,000.*8,192", id="beyond the positions"),
        pytest.param(
            EngineSettings(max_num_seqs=512, max_num_batched_tokens=256), Limit.SETTINGS, "512.*256", id="batch"
        ),
        pytest.param(EngineSettings(gpu_memory_utilization=1.2), Limit.SETTINGS, "1.2", id="more than the card"),
        pytest.param(EngineSettings(pipeline_parallel=33), Limit.SPLIT, "32 layers.*33", id="more stages than layers"),
    ],
)
def test_settings_that_never_start(asked: EngineSettings, limit: Limit, words: str) -> None:
    found = refused(LLAMA_8B, asked)
    assert found.limit is limit
    assert re.search(words, found.reason)


def test_quantization_groups_may_not_be_split() -> None:
    odd = llama(8192, 29568, 80, 64, 8, 152064)  # Qwen2.5-72B's width before it was padded for AWQ
    assert refused(odd, EngineSettings(quantization="awq", tensor_parallel=2)).limit is Limit.SPLIT


@pytest.mark.parametrize(
    ("group_size", "gigabytes"),
    [
        pytest.param(128, 39.7, id="128, the usual"),
        pytest.param(32, 43.8, id="32: more scales"),
        pytest.param(-1, 38.4, id="a whole column, a scale that is not counted"),
    ],
)
def test_scales_of_smaller_groups_take_more(group_size: int, gigabytes: float) -> None:
    facts = llama(8192, 28672, 80, 64, 8, 128256, quantization_config=checkpoint("gptq", group_size))
    for named in (None, "gptq_marlin"):
        assert weight_bytes(facts, named) == pytest.approx(gigabytes * 1e9, rel=0.002)
    assert weight_bytes(facts, "fp8") == weight_bytes(LLAMA_70B, "fp8")


@pytest.mark.parametrize(
    ("facts", "tensor_parallel", "words"),
    [
        pytest.param(
            llama(8192, 29568, 80, 64, 8, quantization_config=checkpoint("gptq", 64)), 2, None, id="14784 is 231 x 64"
        ),
        pytest.param(
            llama(8192, 29568, 80, 64, 8, quantization_config=checkpoint("gptq", 64)),
            4,
            "MLP of width 29568 over 4 GPUs.*groups of 64 weights .7392",
            id="7392 is no multiple of 64",
        ),
        pytest.param(
            llama(8192, 29568, 80, 64, 8, quantization_config=checkpoint("gptq", -1)), 8, None, id="no groups at all"
        ),
        pytest.param(
            llama(896, 4864, 24, 14, 2, quantization_config=checkpoint("awq", 128)),
            2,
            "attention of width 896 over 2 GPUs",
            id="half of the attention's 7 groups",
        ),
        pytest.param(qwen15_moe("gptq", 128), 4, None, id="experts of 352, whose groups vLLM makes smaller"),
        pytest.param(
            qwen15_moe("gptq", 128), 8, "shared expert of width 5632.*704", id="a shared expert is not helped"
        ),
        pytest.param(qwen15_moe("gptq", 64), 8, "an expert of width 1408.*176", id="176 is no multiple of 32 either"),
        pytest.param(
            qwen15_moe("compressed-tensors", 128),
            2,
            "an expert of width 1408 over 2 GPUs.*128 weights .704",
            id="compressed tensors stay as they are",
        ),
        pytest.param(qwen15_moe("compressed-tensors", 64), 2, None, id="704 is 11 x 64"),
    ],
)
def test_every_matrix_is_split_between_groups(facts: ModelFacts, tensor_parallel: int, words: str | None) -> None:
    found = check(facts, H200, EngineSettings(tensor_parallel=tensor_parallel))
    if words is None:
        assert isinstance(found, Fits)
    else:
        assert isinstance(found, Refusal)
        assert found.limit is Limit.SPLIT
        assert re.search(words, found.reason)


@pytest.mark.parametrize("largest", [1, 2, 4, 8])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_no_more_gpus_are_offered_than_a_host_has(largest: int, stages: int) -> None:
    found = fit(LLAMA_70B, L40S, EngineSettings(pipeline_parallel=stages), largest_tensor_parallel=largest)
    assert isinstance(found, Fits) or all(item.fits.settings.gpus <= max(largest, stages) for item in found.nearest)


def test_a_model_of_two_stages_is_offered_the_rest_of_its_host_and_not_another() -> None:
    long = llama(12288, 28672, 88, 96, 8, 32768, head_dim=128)  # Mistral-Large: 245 GB
    asked = EngineSettings(quantization="none", tensor_parallel=2, pipeline_parallel=2, gpu_memory_utilization=0.95)
    assert [item.change for item in refused(long, asked).nearest] == ["tensor_parallel 4", "pipeline_parallel 4"]
    found = fit(long, L40S, asked, largest_tensor_parallel=4)
    assert isinstance(found, Refusal)
    assert found.nearest == ()


@pytest.mark.parametrize(
    ("gpu", "tokens", "seqs"),
    [
        pytest.param(L40S, 2048, 256, id="under 70 GiB"),
        pytest.param(H200, 8192, 1024, id="H200"),
        pytest.param(need_accelerator("A100-80GB-SXM"), 2048, 256, id="A100 is left out of the larger defaults"),
        pytest.param(replace(H200, memory_bytes=180 * 2**30), 16384, 1024, id="over 160 GiB"),
    ],
)
def test_defaults_are_vllms(gpu: Accelerator, tokens: int, seqs: int) -> None:
    full = with_defaults(LLAMA_8B, gpu, EngineSettings())
    assert (full.max_num_batched_tokens, full.max_num_seqs, full.max_model_len) == (tokens, seqs, 8192)


def test_a_larger_step_leaves_less_room() -> None:
    small, large = (check(LLAMA_8B, L40S, EngineSettings(max_num_batched_tokens=tokens)) for tokens in (2048, 32768))
    assert isinstance(small, Fits)
    assert isinstance(large, Fits)
    assert 15_000 < small.kv_tokens - large.kv_tokens < 35_000


def test_largest_batch_counts_whole_blocks_and_the_engines_limit() -> None:
    found = check(LLAMA_8B, L40S, EngineSettings())
    assert isinstance(found, Fits)
    assert found.largest_batch(8192) == 24
    assert found.largest_batch(17) == 256
    assert replace(found, kv_blocks=4).largest_batch(17) == 2


def test_pipeline_stages_hold_one_table_each() -> None:
    found = check(LLAMA_70B, L40S, EngineSettings(quantization="fp8", pipeline_parallel=2))
    assert isinstance(found, Fits)
    assert found.weight_bytes == pytest.approx(36.3e9, rel=0.01)


def test_kv_heads_are_repeated_over_more_gpus_than_heads() -> None:
    one, two = (check(llama(2048, 16384, 18, 8, 1), L40S, EngineSettings(tensor_parallel=tp)) for tp in (1, 2))
    assert isinstance(one, Fits)
    assert isinstance(two, Fits)
    assert one.kv_bytes_per_token == two.kv_bytes_per_token


@pytest.mark.parametrize(
    ("card", "offered"),
    [
        pytest.param("H100-SXM", True, id="Hopper"),
        pytest.param("A100-80GB-SXM", False, id="Ampere has no FP8"),
    ],
)
def test_an_8_bit_cache_is_offered_where_the_card_has_fp8(card: str, offered: bool) -> None:
    long = replace(LLAMA_70B, max_position_embeddings=131_072)
    found = refused(long, EngineSettings(quantization="awq", gpu_memory_utilization=0.95), need_accelerator(card))
    assert any("kv_cache_dtype fp8" in item.change for item in found.nearest) is offered


@settings(max_examples=150)
@given(
    facts=st.sampled_from([LLAMA_8B, LLAMA_70B, llama(5120, 13824, 40, 40, 40)]),
    gpu=st.sampled_from([L40S, H200, need_accelerator("L4"), need_accelerator("A100-80GB-PCIe")]),
    quantization=st.sampled_from([None, "fp8", "int8", "awq"]),
    utilization=st.floats(0.3, 0.95),
    length=st.integers(64, 4096),
    tp=st.sampled_from([1, 2, 4, 8]),
)
def test_what_is_offered_instead_fits_and_uses_no_more_than_allowed(
    facts: ModelFacts, gpu: Accelerator, quantization: str | None, utilization: float, length: int, tp: int
) -> None:
    asked = EngineSettings(
        quantization=quantization, gpu_memory_utilization=utilization, max_model_len=length, tensor_parallel=tp
    )
    found = fit(facts, gpu, asked)
    every = [found] if isinstance(found, Fits) else [item.fits for item in found.nearest]
    for item in every:
        used = item.weight_bytes + item.workspace_bytes + item.kv_tokens * item.kv_bytes_per_token
        assert used <= gpu.memory_bytes * item.settings.gpu_memory_utilization
        assert item.kv_tokens >= (item.settings.max_model_len or 0)


@pytest.mark.parametrize(
    ("facts", "format", "gpus"),
    [
        pytest.param(llama(4096, 11008, 32, 32, 32), "none", 1, id="7B in 16 bits on one"),
        pytest.param(llama(5120, 13824, 40, 40, 40), "fp8", 1, id="13B of the old kind needs 8 bits for 8 contexts"),
        pytest.param(llama(7168, 20480, 60, 56, 8, 64000), "awq", 1, id="34B in 4 bits on one"),
        pytest.param(LLAMA_70B, "awq", 2, id="70B in 4 bits on two"),
        pytest.param(llama(14848, 51200, 80, 232, 8, 65024), "awq", 4, id="180B in 4 bits on four"),
    ],
)
def test_the_quantization_guide_for_l40s(facts: ModelFacts, format: str, gpus: int) -> None:
    guide = suggest(facts, L40S)
    assert guide.best is not None
    assert (guide.best.format, guide.best.gpus) == (format, gpus)
    assert guide.best.sequences >= 8
    assert f"({gpus})" in guide.reason


def test_a_quantized_checkpoint_is_not_quantized_again() -> None:
    guide = suggest(replace(LLAMA_70B, quantization="awq"), L40S)
    assert {option.format for option in guide.options} == {"awq"}


def test_nothing_is_suggested_on_a_host_without_gpus() -> None:
    guide = suggest(LLAMA_70B, need_accelerator("L4"), sequences=8, largest=0)
    assert (guide.options, guide.best) == ((), None)
    assert guide.reason == "nothing up to 0 GPUs holds 8 sequences"


def test_nothing_is_suggested_when_nothing_is_enough() -> None:
    guide = suggest(LLAMA_70B, need_accelerator("L4"), sequences=10_000)
    assert guide.best is None
    assert "10000" in guide.reason
