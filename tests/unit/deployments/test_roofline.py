"""Ceilings from data sheets: known figures, and what physics forbids."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.cluster.catalog import need_accelerator
from raylane.deployments.config.builtin import CONFIGS
from raylane.deployments.sizing.fit import EngineSettings
from raylane.deployments.sizing.model_facts import model_facts
from raylane.deployments.sizing.parallelism import compare_parallelism
from raylane.deployments.sizing.roofline import (
    Link,
    all_reduce_s,
    assumed_link,
    ceiling,
    decode_floor_s,
    prefill_floor_s,
)
from raylane.deployments.sizing.weights import peak_flops, weights_read_bytes

LLAMA_8B = model_facts(CONFIGS["llama-3-8b-shape"])
LLAMA_70B = model_facts(CONFIGS["llama-3-70b-shape"])
MIXTRAL = model_facts(
    {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
)
L40S = need_accelerator("L40S")
PLAIN = EngineSettings()
PCIE = Link(20e9, 25e-6, "test")


def test_8b_on_l40s_tops_out_near_4130_tokens_per_second() -> None:
    top = ceiling(LLAMA_8B, L40S, PLAIN, batch=256, input_tokens=512, output_tokens=256)
    assert top.output_tokens_per_s == pytest.approx(4130, rel=0.002)
    assert top.requests_per_s == pytest.approx(4130 / 256, rel=0.002)
    assert top.output_tokens_per_joule == pytest.approx(4130 / 350, rel=0.002)


@pytest.mark.parametrize(
    ("quantization", "tensor_parallel", "batch", "claimed"),
    [
        pytest.param(None, 1, 32, 4500, id="8B BF16 at batch 32"),
        pytest.param("int8", 1, 32, 3800, id="8B INT8 at batch 32"),
    ],
)
def test_claims_of_the_requirements_for_8b_are_above_the_ceiling(
    quantization: str | None, tensor_parallel: int, batch: int, claimed: float
) -> None:
    asked = EngineSettings(quantization=quantization, tensor_parallel=tensor_parallel)
    top = ceiling(LLAMA_8B, L40S, asked, batch=batch, input_tokens=512, output_tokens=256)
    assert top.output_tokens_per_s < claimed


@pytest.mark.parametrize(
    ("quantization", "claimed_ms"),
    [pytest.param("int8", 22, id="INT8"), pytest.param("awq", 17, id="AWQ")],
)
def test_times_per_token_of_the_requirements_for_70b_are_below_the_floor(quantization: str, claimed_ms: float) -> None:
    asked = EngineSettings(quantization=quantization, tensor_parallel=2)
    assert decode_floor_s(LLAMA_70B, L40S, asked, 32, 640, None) * 1e3 > claimed_ms


def test_a_decode_step_reads_all_but_the_input_table() -> None:
    assert weights_read_bytes(LLAMA_8B, 1) == pytest.approx(15.0e9, rel=0.002)
    assert decode_floor_s(LLAMA_8B, L40S, PLAIN, 1, 0, None) == pytest.approx(15.01e9 / 864e9, rel=0.001)


def test_few_requests_of_a_mixture_read_few_experts() -> None:
    one, many = weights_read_bytes(MIXTRAL, 1), weights_read_bytes(MIXTRAL, 1000)
    assert one == pytest.approx(2 * (MIXTRAL.active_parameters - MIXTRAL.input_embedding_parameters), rel=0.001)
    assert many == pytest.approx(2 * (MIXTRAL.parameters - MIXTRAL.input_embedding_parameters), rel=0.001)


def test_a_prompt_is_bound_by_arithmetic_and_a_short_one_by_memory() -> None:
    assert prefill_floor_s(LLAMA_8B, L40S, PLAIN, 4096, None) == pytest.approx(0.158, rel=0.01)
    assert prefill_floor_s(LLAMA_8B, L40S, PLAIN, 1, None) == decode_floor_s(LLAMA_8B, L40S, PLAIN, 1, 0, None)


@pytest.mark.parametrize(
    ("gpu", "quantization", "tflops"),
    [
        pytest.param("L40S", None, 362.05, id="16 bits"),
        pytest.param("L40S", "fp8", 733, id="FP8 where the card has it"),
        pytest.param("A100", "fp8", 312, id="FP8 weights on a card without it"),
        pytest.param("A100", "int8", 624, id="INT8 on A100"),
        pytest.param("H100", "awq", 989, id="4-bit weights compute in 16 bits"),
    ],
)
def test_arithmetic_by_format(gpu: str, quantization: str | None, tflops: float) -> None:
    assert peak_flops(need_accelerator(gpu), quantization, "auto", LLAMA_8B) == pytest.approx(tflops * 1e12)


def test_all_reduce_counts_latency_and_bytes() -> None:
    assert all_reduce_s(LLAMA_70B, 2, 1, PCIE) == pytest.approx(160 * (25e-6 + 16384 / 20e9))
    assert all_reduce_s(LLAMA_70B, 4, 1, PCIE) == pytest.approx(160 * (25e-6 + 1.5 * 16384 / 20e9))
    assert all_reduce_s(LLAMA_70B, 1, 1, PCIE) == 0
    assert all_reduce_s(LLAMA_70B, 2, 1, None) == 0


def test_an_unmeasured_link_says_that_it_is_assumed() -> None:
    assert "assumed" in assumed_link(L40S).source
    assert assumed_link(need_accelerator("H200")).bytes_per_s == pytest.approx(393e9)
    bridged = assumed_link(need_accelerator("A100-80GB-PCIe"), nvlinks=12)
    assert (bridged.bytes_per_s, bridged.source) == (12 * 21.8e9, "assumed: 12 NVLink links by label, 262 GB/s, 8 us")
    assert assumed_link(need_accelerator("H200"), nvlinks=12) == assumed_link(need_accelerator("H200"))


@settings(max_examples=200)
@given(
    batch=st.integers(1, 512),
    context=st.integers(1, 8192),
    tp=st.sampled_from([1, 2, 4]),
    quantization=st.sampled_from([None, "fp8", "awq"]),
)
def test_floors_never_fall_with_more_work(batch: int, context: int, tp: int, quantization: str | None) -> None:
    asked = EngineSettings(quantization=quantization, tensor_parallel=tp)
    here = decode_floor_s(LLAMA_8B, L40S, asked, batch, context, PCIE)
    assert decode_floor_s(LLAMA_8B, L40S, asked, batch + 1, context, PCIE) >= here
    assert decode_floor_s(LLAMA_8B, L40S, asked, batch, context + 1, PCIE) >= here
    assert decode_floor_s(LLAMA_8B, L40S, asked, batch, context, None) <= here


def test_the_ceiling_is_below_decoding_alone_and_below_prompts_alone() -> None:
    top = ceiling(LLAMA_8B, L40S, PLAIN, batch=64, input_tokens=512, output_tokens=256)
    assert top.output_tokens_per_s < 64 / top.decode_step_s
    assert top.requests_per_s < 1 / top.prefill_s


def test_no_power_no_tokens_per_joule() -> None:
    top = ceiling(LLAMA_8B, need_accelerator("Trainium2"), PLAIN, batch=1, input_tokens=8, output_tokens=8)
    assert top.output_tokens_per_joule is None


@pytest.mark.parametrize(
    ("link", "input_tokens", "output_tokens", "better"),
    [
        pytest.param(Link(393e9, 8e-6, "NVLink"), 512, 256, "TP=2", id="a fast link favours TP"),
        pytest.param(PCIE, 512, 256, "TP=2", id="over PCIe chat-like loads still favour TP"),
        pytest.param(PCIE, 2048, 64, "PP=2", id="long prompts over PCIe favour PP"),
        pytest.param(Link(5e9, 100e-6, "slow"), 512, 256, "PP=2", id="a slow link favours PP"),
    ],
)
def test_tensor_against_pipeline_parallelism(link: Link, input_tokens: int, output_tokens: int, better: str) -> None:
    asked = EngineSettings(quantization="awq")
    found = compare_parallelism(LLAMA_70B, L40S, asked, link, input_tokens=input_tokens, output_tokens=output_tokens)
    assert found.better == better
    assert found.reason.startswith(better)
    assert [split.name for split in found.splits] == ["TP=2", "PP=2"]


def test_a_split_that_does_not_fit_is_named() -> None:
    found = compare_parallelism(LLAMA_70B, L40S, PLAIN, PCIE)
    assert found.better is None
    assert found.reason == "no split fits"


@pytest.mark.parametrize(
    ("tensor_parallel", "pipeline_parallel", "names"),
    [
        pytest.param(2, 2, ["TP=4", "PP=4", "TP=2 PP=2"], id="both at once is compared too"),
        pytest.param(4, 1, ["TP=4", "PP=4"], id="a pure split stands there already"),
        pytest.param(1, 4, ["TP=4", "PP=4"], id="stages alone stand there already"),
    ],
)
def test_the_configured_split_is_among_those_compared(
    tensor_parallel: int, pipeline_parallel: int, names: list[str]
) -> None:
    asked = EngineSettings("auto", "awq", tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
    found = compare_parallelism(LLAMA_70B, L40S, asked, PCIE, gpus=4)
    assert [split.name for split in found.splits] == names
    rates = {split.name: split.ceiling.output_tokens_per_s for split in found.splits if split.ceiling}
    best, second = sorted(rates, key=lambda name: -rates[name])[:2]
    assert found.better == best
    assert f"the tokens of {second} over" in found.reason
