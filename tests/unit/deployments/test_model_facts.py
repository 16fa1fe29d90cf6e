"""Parameter counts from config.json against the published ones."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.errors import UsageError
from raylane.deployments.simulator.build import read_model_config, read_model_facts
from raylane.deployments.sizing.checkpoint_format import checkpoint_quantization
from raylane.deployments.sizing.model_facts import model_facts
from raylane.deployments.sizing.weights import weight_bytes


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
        **more,
    }


def compressed(bits: object, kind: str) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": bits, "type": kind}}}}


TIED = {"tie_word_embeddings": True}
LLAMA = shape("llama", 4096, 14336, 32, 32, 8, 128256)
MIXTRAL = shape("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2)
QWEN3_MOE = shape(
    "qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, num_experts=128, num_experts_per_tok=8,
    moe_intermediate_size=768, decoder_sparse_step=1, mlp_only_layers=[],
)  # fmt: skip
QWEN15_MOE = shape(
    "qwen2_moe", 2048, 5632, 24, 16, 16, 151936, num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
    shared_expert_intermediate_size=5632, decoder_sparse_step=1,
)  # fmt: skip
GEMMA_2B = shape("gemma", 2048, 16384, 18, 8, 1, 256000, head_dim=256, tie_word_embeddings=True)
GEMMA3_1B = shape("gemma3_text", 1152, 6912, 26, 4, 1, 262144, head_dim=256, sliding_window=512, **TIED)
GEMMA3_12B = {  # as published: what equals the defaults of transformers is left out
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma3_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        pytest.param(shape("llama", 4096, 11008, 32, 32, 32, 32000), 6_738_415_616, id="Llama-2-7B"),
        pytest.param(shape("llama", 5120, 13824, 40, 40, 40, 32000), 13_015_864_320, id="Llama-2-13B"),
        pytest.param(shape("llama", 4096, 14336, 32, 32, 8, 128256), 8_030_261_248, id="Llama-3-8B"),
        pytest.param(shape("llama", 8192, 28672, 80, 64, 8, 128256), 70_553_706_496, id="Llama-3-70B"),
        pytest.param(shape("llama", 16384, 53248, 126, 128, 8, 128256), 405_853_388_800, id="Llama-3.1-405B"),
        pytest.param(shape("llama", 2048, 8192, 16, 32, 8, 128256, **TIED), 1_235_814_400, id="Llama-3.2-1B, tied"),
        pytest.param(shape("llama", 8192, 22016, 48, 64, 8, 32000), 33_743_970_304, id="CodeLlama-34B"),
        pytest.param(shape("llama", 7168, 20480, 60, 56, 8, 64000), 34_388_917_248, id="Yi-34B"),
        pytest.param(shape("mistral", 4096, 14336, 32, 32, 8, 32000), 7_241_732_096, id="Mistral-7B"),
        pytest.param(MIXTRAL, 46_702_792_704, id="Mixtral-8x7B"),
        pytest.param(shape("phi3", 3072, 8192, 32, 32, 32, 32064), 3_821_079_552, id="Phi-3-mini"),
        pytest.param(shape("qwen2", 896, 4864, 24, 14, 2, 151936, **TIED), 494_032_768, id="Qwen2.5-0.5B"),
        pytest.param(shape("qwen2", 1536, 8960, 28, 12, 2, 151936, **TIED), 1_543_714_304, id="Qwen2.5-1.5B"),
        pytest.param(shape("qwen2", 2048, 11008, 36, 16, 2, 151936, **TIED), 3_085_938_688, id="Qwen2.5-3B"),
        pytest.param(shape("qwen2", 3584, 18944, 28, 28, 4, 152064), 7_615_616_512, id="Qwen2.5-7B"),
        pytest.param(shape("qwen2", 5120, 13824, 48, 40, 8, 152064), 14_770_033_664, id="Qwen2.5-14B"),
        pytest.param(shape("qwen2", 5120, 27648, 64, 40, 8, 152064), 32_763_876_352, id="Qwen2.5-32B"),
        pytest.param(shape("qwen2", 8192, 29568, 80, 64, 8, 152064), 72_706_203_648, id="Qwen2.5-72B"),
        pytest.param(shape("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128), 8_190_735_360, id="Qwen3-8B"),
        pytest.param(shape("qwen3", 5120, 17408, 40, 40, 8, 151936, head_dim=128), 14_768_307_200, id="Qwen3-14B"),
        pytest.param(QWEN3_MOE, 30_532_122_624, id="Qwen3-30B-A3B"),
        pytest.param(QWEN15_MOE, 14_315_784_192, id="Qwen1.5-MoE-A2.7B, with a shared expert"),
        pytest.param(GEMMA_2B, 2_506_172_416, id="Gemma-2B"),
        pytest.param(
            shape("gemma", 3072, 24576, 28, 16, 16, 256000, head_dim=256, **TIED), 8_537_680_896, id="Gemma-7B"
        ),
        pytest.param(
            shape("gemma2", 3584, 14336, 42, 16, 8, 256000, head_dim=256, **TIED), 9_241_705_984, id="Gemma-2-9B"
        ),
        pytest.param(GEMMA3_1B, 999_885_952, id="Gemma-3-1B"),
    ],
)
def test_counts_equal_the_published_ones(config: dict[str, Any], parameters: int) -> None:
    assert model_facts(config).parameters == parameters


@pytest.mark.parametrize(
    ("config", "active_billion"),
    [
        pytest.param(MIXTRAL, 12.88, id="Mixtral uses 2 of 8 experts"),
        pytest.param(QWEN3_MOE, 3.35, id="Qwen3-30B-A3B uses 8 of 128"),
        pytest.param(QWEN15_MOE, 2.69, id="Qwen1.5-MoE uses 4 of 60 and the shared one"),
        pytest.param(GEMMA_2B, 2.51, id="a dense model is all active"),
    ],
)
def test_active_parameters(config: dict[str, Any], active_billion: float) -> None:
    assert model_facts(config).active_parameters == pytest.approx(active_billion * 1e9, rel=0.003)


def test_parts_of_llama_3_8b() -> None:
    facts = model_facts(shape("llama", 4096, 14336, 32, 32, 8, 128256, max_position_embeddings=8192))
    assert facts.input_embedding_parameters == facts.head_parameters == 525_336_576
    assert facts.linear_parameters == facts.active_linear_parameters == 6_979_321_856
    assert (facts.layers, facts.kv_heads, facts.head_dim, facts.vocab_size) == (32, 8, 128, 128256)
    assert (facts.experts, facts.expert_parameters, facts.notes) == (1, 0, ())


def test_a_head_dimension_of_its_own_counts() -> None:
    assert model_facts(GEMMA_2B).head_dim == 256
    assert model_facts(MIXTRAL).head_dim == 128


def test_a_multimodal_config_counts_the_language_part_and_says_so() -> None:
    nested = {"model_type": "gemma3", "text_config": GEMMA3_1B, "vision_config": {"hidden_size": 1152}}
    facts = model_facts(nested)
    assert facts.parameters == 999_885_952
    assert "vision tower" in facts.notes[0]
    assert "sliding window of 512" in facts.notes[1]


def test_a_published_gemma_3_leaves_out_what_equals_the_defaults() -> None:
    facts = model_facts(GEMMA3_12B)
    assert (facts.vocab_size, facts.head_dim, facts.max_position_embeddings) == (262_208, 256, 131_072)
    assert facts.parameters == pytest.approx(11.77e9, rel=0.001)


def test_qwen_without_its_window_in_use_has_no_note() -> None:
    config = shape("qwen2", 896, 4864, 24, 14, 2, 151936, sliding_window=32768, use_sliding_window=False)
    assert model_facts(config).notes == ()


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        pytest.param(None, None, id="plain weights"),
        pytest.param({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", id="AWQ"),
        pytest.param({"quant_method": "gptq", "bits": 8}, "int8", id="GPTQ with 8 bits"),
        pytest.param({"quant_method": "fp8"}, "fp8", id="FP8"),
        pytest.param({"quant_method": "gptq", "bits": 4}, "gptq", id="GPTQ"),
        pytest.param({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", id="bitsandbytes, 4 bits"),
        pytest.param({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", id="bitsandbytes, 8 bits"),
        pytest.param({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", id="ModelOpt FP8"),
        pytest.param(
            {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, "fp8", id="ModelOpt FP8, nested"
        ),
        pytest.param(
            {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": {"num_bits": 8}},
            None,
            id="compressed tensors, the KV cache alone",
        ),
        pytest.param(
            compressed(8, "int"),
            "int8",
            id="compressed tensors, 8-bit integers",
        ),
        pytest.param(
            compressed(8, "float"),
            "fp8",
            id="compressed tensors, FP8",
        ),
        pytest.param(
            compressed(4, "int"),
            "int4",
            id="compressed tensors, 4 bits",
        ),
    ],
)
def test_quantization_declared_by_the_checkpoint(declared: dict[str, Any] | None, expected: str | None) -> None:
    assert checkpoint_quantization({"quantization_config": declared}) == expected


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        pytest.param({"quant_method": "gptq", "bits": 3}, "3-bit gptq", id="GPTQ with 3 bits"),
        pytest.param({"quant_method": "modelopt", "quant_algo": "MXINT4"}, "modelopt MXINT4", id="another of ModelOpt"),
        pytest.param({"quant_method": "modelopt"}, "modelopt without quant_algo", id="ModelOpt that says nothing"),
        pytest.param(compressed(4, "float"), "compressed-tensors (4-bit float)", id="compressed 4-bit floats"),
        pytest.param(compressed(2, "int"), "compressed-tensors (2-bit int)", id="compressed 2-bit integers"),
        pytest.param(
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "attention": {"weights": {"num_bits": 8, "type": "float"}},
                    "mlp": {"weights": {"num_bits": 4, "type": "int"}},
                },
            },
            "compressed-tensors (4-bit int and 8-bit float): config_groups.attention has no targets",
            id="two formats",
        ),
        pytest.param({"quant_method": "compressed-tensors"}, "compressed-tensors (no weights named)", id="no groups"),
        pytest.param({"quant_method": "hqq"}, "hqq", id="a method not known here"),
        pytest.param({"quant_method": "gptq", "bits": [4]}, "[4]-bit gptq", id="GPTQ with a list of bits"),
        pytest.param(compressed([8], "int"), "compressed-tensors ([8]-bit int)", id="compressed, a list of bits"),
        *(
            pytest.param(
                {"quant_method": "compressed-tensors", "kv_cache_scheme": kv, "config_groups": groups},
                "compressed-tensors (no weights named)",
                id=f"groups {groups} and KV cache {kv}",
            )
            for groups, kv in [
                ([1], None),
                ({"g": None}, {"num_bits": 8}),
                ({"g": []}, None),
                ({"g": {"weights": None}}, None),
                ({"g": {"weights": [8]}}, None),
                ({}, None),
            ]
        ),
    ],
)
def test_bits_that_are_not_known_are_refused_and_not_taken_for_others(declared: dict[str, Any], name: str) -> None:
    facts = model_facts({**LLAMA, "quantization_config": declared})
    with pytest.raises(UsageError) as caught:
        weight_bytes(facts, facts.quantization)
    assert str(caught.value).startswith(f"quantization: '{name}' cannot be sized")


@pytest.mark.parametrize("named", [None, "bitsandbytes"])
def test_eight_bits_of_bitsandbytes_take_a_byte(named: str | None) -> None:
    declared = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    facts = model_facts({**LLAMA, "quantization_config": declared})
    assert weight_bytes(facts, named) == pytest.approx(9.08e9, rel=0.01)


@pytest.mark.parametrize("plain", [{}, {"quantization_config": None}], ids=["not named", "named as null"])
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        pytest.param({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}, "fp8", id="FP8"),
        pytest.param({"quantization": {"quant_algo": "NVFP4"}}, "nvfp4", id="4-bit floats"),
    ],
)
def test_a_format_named_beside_the_config_json_counts(
    tmp_path: Path, file: dict[str, Any], expected: str, plain: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **plain}))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(file))
    assert model_facts(read_model_config(str(tmp_path))).quantization == expected
    (tmp_path / "other.json").write_text(json.dumps(LLAMA))
    assert model_facts(read_model_config(str(tmp_path / "other.json"))).quantization is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"model_type": "of_tomorrow"}, "of_tomorrow.*known.*llama", id="an architecture not counted here"),
        pytest.param({"model_type": "llama", "hidden_size": 1}, "num_attention_heads", id="a missing key"),
        pytest.param({**GEMMA_2B, "model_type": "gemma3"}, "text_config: required key", id="a part that is missing"),
    ],
)
def test_what_cannot_be_counted_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"my\.json: .*{message}"):
        model_facts(config, "my.json")


@pytest.mark.parametrize("value", [None, "abc", 0, -3, 4096.7, 4096.0, True, [1], math.inf], ids=repr)
@pytest.mark.parametrize(
    ("base", "key"),
    [
        *((LLAMA, key) for key in LLAMA if key not in {"model_type", "tie_word_embeddings", "num_key_value_heads"}),
        (LLAMA, "max_position_embeddings"),
        (MIXTRAL, "num_local_experts"),
        (MIXTRAL, "num_experts_per_tok"),
    ],
    ids=lambda item: item if isinstance(item, str) else item["model_type"],
)
def test_a_number_that_is_none_is_refused_by_file_key_and_value(
    tmp_path: Path, base: dict[str, Any], key: str, value: object
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**base, key: value}))
    with pytest.raises(UsageError) as caught:
        read_model_facts(str(tmp_path))
    assert str(caught.value) == f"{file}: {key}: not a positive whole number (got {value!r})"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"num_key_value_heads": 0}, "num_key_value_heads: not a positive whole number (got 0)", id="heads"
        ),
        pytest.param({"head_dim": "x"}, "head_dim: not a positive whole number (got 'x')", id="head dimension"),
        pytest.param({"hidden_size": 8}, "head_dim: not a positive whole number (got 0)", id="more heads than numbers"),
        pytest.param({"rope_scaling": "dynamic"}, "rope_scaling: not an object (got 'dynamic')", id="rotary scaling"),
        pytest.param({"rope_parameters": [1]}, "rope_parameters: not an object (got [1])", id="rotary parameters"),
        pytest.param(
            {"rope_scaling": {"rope_type": "linear", "factor": -2}},
            "factor: not a positive number (got -2)",
            id="factor",
        ),
        pytest.param(
            {"quantization_config": "awq"}, "quantization_config: not an object (got 'awq')", id="a bare name"
        ),
        *(
            pytest.param(
                {"quantization_config": {"quant_method": "gptq", "group_size": size}},
                f"quantization_config.group_size: not a positive whole number (got {size!r})",
                id=f"group size {size!r}",
            )
            for size in (0, -2, "32", 32.5)
        ),
    ],
)
def test_what_else_is_not_what_it_should_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        model_facts({**LLAMA, **changes}, "my.json")
    assert str(caught.value) == f"my.json: {message}"


@pytest.mark.parametrize(
    "changes", [{"mlp_only_layers": 3}, {"decoder_sparse_step": 0}, {"moe_intermediate_size": "x"}]
)
def test_wrong_layers_of_experts_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"my\.json: {next(iter(changes))}: not a "):
        model_facts({**QWEN3_MOE, **changes}, "my.json")


def test_keys_that_may_be_null() -> None:
    nulls = {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None, "quantization_config": None}
    facts = model_facts({**LLAMA, **nulls})
    assert (facts.kv_heads, facts.head_dim, facts.group_size) == (32, 128, 128)


@pytest.mark.parametrize(
    ("declared", "size"),
    [
        pytest.param({"quant_method": "gptq", "group_size": 32}, 32, id="GPTQ"),
        pytest.param({"quant_method": "gptq", "group_size": -1}, -1, id="whole columns"),
        pytest.param({"quant_method": "gptq"}, 128, id="not said"),
        pytest.param({"quant_method": "awq", "q_group_size": 64}, 64, id="AWQ's own name for it"),
        pytest.param(
            {"quant_method": "modelopt", "quantization": {"quant_algo": "W4A16_AWQ", "group_size": 64}},
            64,
            id="ModelOpt",
        ),
        pytest.param(compressed(4, "int"), -1, id="compressed tensors by channel"),
        pytest.param(
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "a": {"weights": {"num_bits": 4, "group_size": 128}},
                    "b": {"weights": {"num_bits": 4, "group_size": 32}},
                    "c": {"weights": {"num_bits": 4, "group_size": None}},
                },
            },
            32,
            id="compressed tensors, the smallest of several",
        ),
    ],
)
def test_group_size_declared_by_the_checkpoint(declared: dict[str, Any], size: int) -> None:
    assert model_facts({**LLAMA, "quantization_config": declared}).group_size == size


@pytest.mark.parametrize(
    ("config", "format_", "size"),
    [
        pytest.param(
            {"compression_config": {"quant_method": "gptq", "group_size": 64}}, "gptq", 64, id="its older key"
        ),
        pytest.param(
            {
                "model_type": "gemma3",
                "text_config": {**GEMMA3_1B, "quantization_config": {"quant_method": "awq", "group_size": 64}},
            },
            "awq",
            64,
            id="in the language part",
        ),
        pytest.param(
            {"quantization_config": {"quant_method": "fp8", "group_size": [128, 128]}},
            "fp8",
            128,
            id="a format without",
        ),
        pytest.param(
            {
                "quantization_config": {
                    "quant_method": "modelopt",
                    "quant_algo": "W4A16_AWQ",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 64}}},
                }
            },
            "awq",
            64,
            id="ModelOpt's groups",
        ),
    ],
)
def test_where_and_how_a_checkpoint_declares_its_format(config: dict[str, Any], format_: str, size: int) -> None:
    facts = model_facts(config if "text_config" in config else {**LLAMA, **config})
    assert (facts.quantization, facts.group_size) == (format_, size)
