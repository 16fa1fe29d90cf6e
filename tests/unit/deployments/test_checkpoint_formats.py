"""Bytes of quantized checkpoints whose parts are stored in several ways, of their KV caches, and how far they split."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.catalog import need_accelerator
from raylane.cluster.errors import UsageError
from raylane.deployments.sizing.checkpoint import read_model_facts
from raylane.deployments.sizing.fit import EngineSettings, Fits, Limit, Refusal, fit
from raylane.deployments.sizing.model_facts import ModelFacts, model_facts
from raylane.deployments.sizing.weights import kv_bytes_per_token, peak_flops, weight_bytes, weights_read_bytes

L40S = need_accelerator("L40S")
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
# 191,382,528 parameters: 2 x 32,000 x 1,024 in the tables and 17 x 1,024 in norms, 65,553,408 of 2 bytes;
# a layer's attention 3,145,728 (2 x 1024^2 + 2 x 1024 x 512), its MLP 12,582,912, 8 layers.
ATTENTION, MLP, OUTSIDE = 8 * 3_145_728, 8 * 12_582_912, 65_553_408
ALL_FP8 = 2 * OUTSIDE + ATTENTION + MLP
ATTENTION_LEFT = ALL_FP8 + ATTENTION
NAMES = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(8) for part in "qkvo"]
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
FLOAT_KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
BLOCKS = {**FLOAT8, "strategy": "block", "block_structure": [128, 128]}


def llama(declared: dict[str, Any], **changes: Any) -> ModelFacts:
    return model_facts({"model_type": "llama", **SHAPE, **changes, "quantization_config": declared})


def moe(declared: dict[str, Any], width: int = 384) -> ModelFacts:
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8}
    mixture = {"moe_intermediate_size": width, "num_experts_per_tok": 2, "num_experts": 8}
    return model_facts({"model_type": "qwen3_moe", **SHAPE, **heads, **mixture, "quantization_config": declared})


def compressed(*left: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {**FLOAT8, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": list(left),
        "config_groups": {"group_0": group},
    }


def fp8(*left: str, **more: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": list(left), **more}


def gptq(**more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, **more}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        pytest.param(
            {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": NAMES},
            282_101_760,
            id="fbgemm",
        ),
        pytest.param(fp8(*NAMES, "lm_head"), 282_101_760, id="fp8"),
        pytest.param(compressed("re:.*self_attn.*", "lm_head"), 282_101_760, id="compressed tensors"),
        pytest.param(fp8("lm_head"), 256_935_936, id="only the head, which is never quantized"),
        pytest.param(
            {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "*self_attn*"]},
            ATTENTION_LEFT,
            id="ModelOpt's wildcard",
        ),
        pytest.param(
            {"quant_method": "modelopt", "quant_algo": "FP8"}, ALL_FP8 - 32_000 * 1024, id="ModelOpt with the head"
        ),
        pytest.param(
            {"quant_method": "modelopt_fp4", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
            2 * OUTSIDE + (ATTENTION + MLP) * 9 / 16,
            id="4-bit floats with a scale of 8 bits for 16",
        ),
        pytest.param(
            {
                "quant_method": "modelopt",
                "quant_algo": "MIXED_PRECISION",
                "ignore": ["lm_head"],
                "quantized_layers": {
                    **{name: {"quant_algo": "FP8"} for name in NAMES},
                    **{f"model.layers.{layer}.mlp.down_proj": {"quant_algo": "NVFP4"} for layer in range(8)},
                },
            },
            2 * OUTSIDE + ATTENTION + MLP / 3 * 9 / 16 + 2 * MLP * 2 / 3,
            id="ModelOpt by layer, gate and up left",
        ),
        pytest.param(
            {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["self_attn", "lm_head"]},
            ATTENTION_LEFT,
            id="bitsandbytes, 8 bits",
        ),
        pytest.param(
            {
                "quant_method": "awq",
                "bits": 4,
                "group_size": 128,
                "zero_point": True,
                "modules_to_not_convert": ["mlp"],
            },
            2 * OUTSIDE + ATTENTION * (0.5 + 2.5 / 128) + 2 * MLP,
            id="AWQ",
        ),
        pytest.param(
            gptq(dynamic={r"-:.*self_attn.*": {}, r"+:.*down_proj": {"bits": 8, "group_size": 32}}),
            2 * OUTSIDE + 2 * ATTENTION + MLP / 3 * (1 + 3 / 32) + MLP * 2 / 3 * (0.5 + 2.5 / 128),
            id="GPTQ's rules",
        ),
        pytest.param(
            gptq(lm_head=True),
            2 * (OUTSIDE - 32_000 * 1024) + (ATTENTION + MLP + 32_000 * 1024) * (0.5 + 2.5 / 128),
            id="GPTQ with the head",
        ),
        pytest.param(
            {
                "quant_method": "auto-round",
                "bits": 4,
                "group_size": 128,
                "extra_config": {r".*self_attn.*": {"bits": 16}},
            },
            2 * OUTSIDE + 2 * ATTENTION + MLP * (0.5 + 2.5 / 128),
            id="auto-round",
        ),
        pytest.param(
            {
                "quant_method": "quark",
                "exclude": ["lm_head", "re:.*self_attn.*"],
                "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
            },
            ATTENTION_LEFT,
            id="Quark",
        ),
        pytest.param(
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}},
                "modules_to_not_convert": ["self_attn"],
            },
            ATTENTION_LEFT,
            id="torchao",
        ),
        pytest.param(
            {
                **compressed(),
                "config_groups": {
                    "a": {"targets": ["re:.*self_attn.*"], "weights": FLOAT8},
                    "b": {
                        "targets": ["re:.*mlp.*"],
                        "format": "pack-quantized",
                        "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64},
                    },
                },
            },
            2 * OUTSIDE + ATTENTION + MLP * (0.5 + 2 / 64),
            id="compressed tensors of two formats, the second without zero points",
        ),
    ],
)
def test_bytes_of_a_checkpoint_that_stores_its_parts_in_several_ways(declared: dict[str, Any], expected: float) -> None:
    assert weight_bytes(llama(declared)) == expected


def test_the_name_of_the_checkpoints_own_method_changes_nothing() -> None:
    facts = llama(fp8(*NAMES))
    assert weight_bytes(facts, "fp8") == weight_bytes(facts) == ATTENTION_LEFT


def test_experts_alone_are_quantized_by_some_methods() -> None:
    plain, experts = weight_bytes(moe(fp8(), 512), "none"), 8 * 8 * 3 * 1024 * 512
    for method, per_weight in (("mxfp4", 17 / 32), ("experts_int8", 1)):
        assert weight_bytes(moe({"quant_method": method}, 512)) == plain - experts * (2 - per_weight)
    fbgemm = weight_bytes(moe({"quant_method": "fbgemm_fp8", "modules_to_not_convert": []}, 512))
    assert fbgemm == plain - 8 * 2 * 1024 * (16 + 8) * 128


@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "phi3"},
        {"model_type": "gemma2"},
        {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
        {
            "model_type": "qwen2_moe",
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 1024,
            "mlp_only_layers": [0, 3],
        },
    ],
    ids=lambda more: more["model_type"],
)
def test_every_matrix_is_named_once(more: dict[str, Any]) -> None:
    facts = model_facts({**SHAPE, **more, "quantization_config": fp8()})
    in_layers = [item for item in facts.stored if item.in_layers]
    assert sum(item.weights for item in in_layers) == facts.linear_parameters
    assert sum(item.weights for item in in_layers if item.expert) == facts.expert_parameters
    assert weight_bytes(facts) == 2 * facts.parameters - facts.linear_parameters


def test_names_of_newer_checkpoints_of_text_and_images() -> None:
    text = {"model_type": "mistral", **SHAPE}
    left = [f"model.language_model.layers.{layer}.self_attn.{part}_proj" for layer in range(8) for part in "qkvo"]
    declared = fp8(*left, "model.vision_tower", "lm_head")
    both = model_facts({"model_type": "mistral3", "text_config": text, "quantization_config": declared})
    assert weight_bytes(both) == ATTENTION_LEFT


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        pytest.param(fp8(NAMES[0]), "some but not all of q_proj, k_proj, v_proj of model.layers.0", id="q alone"),
        pytest.param(compressed("re:*"), "no regular expression", id="no pattern"),
        pytest.param(fp8(weight_block_size=[128]), "block of weights", id="half a block"),
        pytest.param({**fp8(), "modules_to_not_convert": {"a": 1}}, "no list of names", id="no list"),
        pytest.param({"quant_method": "mxfp4"}, "'mxfp4' cannot be sized", id="experts alone, of which there are none"),
        pytest.param(gptq(dynamic={"+:.*down_proj": {"bits": 3}}), "3-bit gptq", id="bits of a rule"),
    ],
)
def test_what_is_not_understood_has_no_size(declared: dict[str, Any], words: str) -> None:
    for named in (None, declared["quant_method"]):
        with pytest.raises(UsageError, match=words):
            weight_bytes(llama(declared), named)


def test_a_step_reads_each_part_in_its_own_format() -> None:
    facts = llama(fp8(*NAMES))
    assert weights_read_bytes(facts, 1) == ATTENTION_LEFT - 2 * 32_000 * 1024
    mixed = peak_flops(L40S, None, "auto", facts)
    assert 1 / mixed == pytest.approx(
        (ATTENTION / 362.05e12 + MLP / 733e12) / (ATTENTION + MLP)
    )  # each weight in its own arithmetic


@pytest.mark.parametrize(
    ("declared", "asked", "expected"),
    [
        pytest.param({**compressed(), "kv_cache_scheme": FLOAT_KV}, "auto", 8192, id="compressed tensors"),
        pytest.param({**compressed(), "kv_cache_scheme": FLOAT_KV}, "bfloat16", 16_384, id="the user's word counts"),
        pytest.param(fp8(), "auto", 16_384, id="FP8 weights alone"),
        pytest.param(fp8(), "fp8", 8192, id="asked for"),
        pytest.param(
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "auto", 8192, id="ModelOpt"
        ),
        pytest.param(
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"},
            "auto",
            4608,
            id="ModelOpt, 4 bits and a scale of 8 bits for 16",
        ),
        pytest.param(fp8(), "int8_per_token_head", 8192 + 2 * 8 * 4 * 4, id="a 32-bit scale by head"),
    ],
)
def test_bytes_of_the_kv_cache_a_checkpoint_asks_for(declared: dict[str, Any], asked: str, expected: int) -> None:
    facts = llama(declared)
    assert kv_bytes_per_token(facts, asked) == expected
    found = fit(facts, L40S, EngineSettings(kv_cache_dtype=asked))
    assert isinstance(found, Fits)
    assert found.kv_bytes_per_token == expected


def test_latent_attention_does_not_ask_compressed_tensors_for_its_cache() -> None:
    declared = {**compressed(), "kv_cache_scheme": FLOAT_KV}
    ranks = {"kv_lora_rank": 512, "q_lora_rank": 64, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2}
    assert llama(declared, model_type="deepseek_v2", **ranks, **experts).kv_cache_dtype == "auto"


def test_the_kv_cache_named_beside_the_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SHAPE}))
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    file = {"producer": {"name": "modelopt"}, "quantization": quantization}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(file))
    facts = read_model_facts(str(tmp_path))
    assert (kv_bytes_per_token(facts), weight_bytes(facts)) == (8192, ALL_FP8)


def test_layers_of_mixed_precision_named_beside_the_config_json(tmp_path: Path) -> None:
    declared = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "ignore": ["lm_head"]}
    config = {"model_type": "llama", **SHAPE, "quantization_config": declared}
    (tmp_path / "config.json").write_text(json.dumps(config))
    layers = {name: {"quant_algo": "FP8"} for name in NAMES}
    file = {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(file))
    assert weight_bytes(read_model_facts(str(tmp_path))) == 2 * OUTSIDE + ATTENTION + 2 * MLP


GROUPS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
NARROW = {"intermediate_size": 4224}  # 33 x 128


@pytest.mark.parametrize(
    ("facts", "gpus", "words", "nearest"),
    [
        pytest.param(
            moe(compressed("lm_head", **BLOCKS)),
            2,
            r"an expert of width 384 over 2 GPUs splits the FP8 blocks .*192 per GPU",
            ["tensor_parallel 1"],
            id="compressed tensors of experts",
        ),
        pytest.param(moe(compressed(**BLOCKS), 512), 4, None, None, id="128 for each GPU"),
        pytest.param(moe(fp8(weight_block_size=[128, 128])), 2, None, None, id="fp8 makes blocks of 64"),
        pytest.param(
            moe(fp8(weight_block_size=[128, 128]), 352), 2, "an expert of width 352", None, id="176 is 5.5 x 32"
        ),
        pytest.param(
            llama(fp8(weight_block_size=[128, 128]), **NARROW),
            2,
            r"an MLP of width 4224 over 2 GPUs splits the FP8 blocks .*2112 per GPU",
            ["tensor_parallel 1"],
            id="inputs of a dense matrix",
        ),
        pytest.param(
            llama(fp8("model.layers", **{"weight_block_size": [128, 128]}), **NARROW, num_hidden_layers=1),
            2,
            "an MLP of width 4224",
            None,
            id="a list that matches nothing",
        ),
        pytest.param(llama(compressed("re:.*mlp.*", **BLOCKS), **NARROW), 2, None, None, id="the MLP is not quantized"),
        pytest.param(llama(compressed(**BLOCKS), head_dim=64), 4, "attention of width 256", None, id="keys of 64"),
        pytest.param(llama(fp8(weight_block_size=[128, 128]), head_dim=64), 4, None, None, id="which fp8 lets pass"),
        pytest.param(llama(compressed(**GROUPS), **NARROW), 2, "quantization groups of 128", None, id="groups"),
        pytest.param(
            llama({"quant_method": "modelopt_fp4", "quant_algo": "NVFP4"}, intermediate_size=4104),
            2,
            "groups of 16 weights",
            None,
            id="4-bit floats",
        ),
        pytest.param(moe({"quant_method": "mxfp4"}, 336), 4, None, None, id="kernels of MXFP4 pad"),
    ],
)
def test_blocks_and_groups_that_a_split_cuts(
    facts: ModelFacts, gpus: int, words: str | None, nearest: list[str] | None
) -> None:
    found = fit(facts, L40S, EngineSettings(tensor_parallel=gpus, max_model_len=4096), largest_tensor_parallel=4)
    if words is None:
        assert isinstance(found, Fits)
        return
    assert isinstance(found, Refusal)
    assert found.limit is Limit.SPLIT
    assert re.search(words, found.reason)
    if nearest is not None:
        assert [item.change for item in found.nearest] == nearest
