"""Families of models: weights as transformers builds them, windows as vLLM sees them, reasons for no size."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.errors import UsageError
from raylane.deployments.simulator.build import read_model_facts
from raylane.deployments.sizing.config_json import ConfigJson
from raylane.deployments.sizing.families.matrices import matrices
from raylane.deployments.sizing.families.registry import FAMILIES
from raylane.deployments.sizing.families.shape import Shape
from raylane.deployments.sizing.model_facts import model_facts
from raylane.deployments.sizing.quantization.linears import REPLICATED, Kind

SMALL = {
    "num_hidden_layers": 7,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}
MIXTURE = {**SMALL, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
LATENT = {
    **MIXTURE,
    "n_routed_experts": 8,
    "kv_lora_rank": 64,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
}
INDEXED = {"index_topk": 4, "index_n_heads": 3, "index_head_dim": 16}
BIASED = {"attention_bias": True}
DENSE = (
    "llama mistral ministral ministral3 phi3 granite smollm3 helium seed_oss ernie4_5 arcee starcoder2 phi stablelm "
    "olmo olmo2 olmo3 cohere cohere2 exaone4 glm glm4 hunyuan_v1_dense qwen2 qwen3 gemma gemma2 gemma3_text"
)
BUILT: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, SMALL) for kind in DENSE.split()},
    "llama with biases": ("llama", {**SMALL, **BIASED, "mlp_bias": True}),
    "qwen3 with biases": ("qwen3", {**SMALL, **BIASED}),
    "cohere with norms of heads": ("cohere", {**SMALL, "use_qk_norm": True}),
    "ernie with biases": ("ernie4_5", {**SMALL, "use_bias": True}),
    "stablelm with biases": ("stablelm", {**SMALL, "use_qkv_bias": True}),
    "starcoder2 without biases": ("starcoder2", {**SMALL, "use_bias": False}),
    "mixtral": ("mixtral", {**SMALL, "num_local_experts": 4}),
    "phimoe": ("phimoe", {**SMALL, "num_local_experts": 4, **BIASED, "lm_head_bias": True}),
    "qwen2_moe": ("qwen2_moe", {**MIXTURE, "num_experts": 8, "mlp_only_layers": [2]}),
    "qwen3_moe": ("qwen3_moe", {**MIXTURE, "num_experts": 8, "decoder_sparse_step": 2}),
    "olmoe": ("olmoe", {**SMALL, "num_experts": 8}),
    "granitemoe": ("granitemoe", {**SMALL, "num_local_experts": 4}),
    "granitemoeshared": ("granitemoeshared", {**SMALL, "num_local_experts": 4, "shared_intermediate_size": 64}),
    "minimax_m2": ("minimax_m2", {**SMALL, "num_local_experts": 4}),
    "glm4_moe": ("glm4_moe", {**MIXTURE, "n_routed_experts": 8, "first_k_dense_replace": 2, "n_shared_experts": 2}),
    "glm4_moe with norms": ("glm4_moe", {**MIXTURE, "n_routed_experts": 8, "use_qk_norm": True, **BIASED}),
    "ernie4_5_moe": ("ernie4_5_moe", {**SMALL, "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 96,
                                      "moe_layer_start_index": 1, "moe_layer_end_index": 5}),
    "llama4_text": ("llama4_text", {**SMALL, "num_local_experts": 4, "interleave_moe_layer_step": 2,
                                    "intermediate_size_mlp": 640}),
    "gpt_oss": ("gpt_oss", {**SMALL, "num_local_experts": 4}),
    "deepseek_v2": ("deepseek_v2", {**LATENT, "first_k_dense_replace": 1, "n_shared_experts": 2}),
    "deepseek_v2 without a rank of queries": ("deepseek_v2", {**LATENT, "q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", {**LATENT, **BIASED, "first_k_dense_replace": 3}),
    "deepseek_v32": ("deepseek_v32", {**LATENT, **INDEXED}),
    "glm_moe_dsa": ("glm_moe_dsa", {**LATENT, **INDEXED}),
    "glm4_moe_lite": ("glm4_moe_lite", {**LATENT, "head_dim": LATENT["qk_rope_head_dim"]}),  # one key there
    "minicpm3": ("minicpm3", {key: LATENT[key] for key in LATENT if "experts" not in key}),
}  # fmt: skip
BUILD = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch
from transformers import AutoConfig, AutoModelForCausalLM
found = {}
for name, (kind, keys) in json.loads(sys.argv[1]).items():
    config = AutoConfig.for_model(kind, **keys)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found[name] = sum(each.numel() for each in model.parameters()), json.loads(config.to_json_string(use_diff=False))
print(json.dumps(found))
"""
"""Parameters of each model as transformers builds it, and its config.json as transformers writes it."""


@cache
def built() -> dict[str, tuple[int, dict[str, Any]]]:
    command = [sys.executable, "-c", BUILD, json.dumps(BUILT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, tuple[int, dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", BUILT)
def test_weights_are_those_that_transformers_builds(name: str) -> None:
    parameters, written = built()[name]
    assert model_facts(written).parameters == parameters, "by the config.json that transformers writes"
    kind, keys = BUILT[name]
    short = {**keys, "model_type": kind}
    short |= {key: written[key] for key in EXPERTS_ANYWHERE if key in written}  # a published file has them
    assert model_facts(short).parameters == parameters, "by what a published file says"


EXPERTS_ANYWHERE = (
    "num_experts_per_tok",
    "n_shared_experts",
    "shared_expert_intermediate_size",
    "moe_num_shared_experts",
)


@pytest.mark.parametrize("kind", sorted(kind for kind in FAMILIES if FAMILIES[kind].names is not None))
def test_the_matrices_by_name_are_all_there_are(kind: str) -> None:
    family = FAMILIES[kind]
    counted = {"n_shared_experts": 2} if family.experts and family.experts.shared_count else {}
    config = {**family.defaults, **LATENT, **INDEXED, "num_experts": 8, **counted}
    shape = Shape.read(ConfigJson(config, "config.json"), family)
    found = matrices(shape, "", tied=True)
    assert sum(each.weights for each in found if each.kind in {Kind.LINEAR, Kind.EXPERTS}) == shape.linear
    replicated = sum(each.weights for each in found if each.part == REPLICATED)
    assert replicated == shape.layers * shape.attention.replicated
    assert len({each.name for each in found}) == len(found)


QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "moe_intermediate_size": 512,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen2_moe", "mixtral"])
def test_experts_by_their_old_and_their_new_name(kind: str) -> None:
    counts = {
        model_facts({**QWEN3_MOE, "model_type": kind, key: 8}).parameters
        for key in ("num_experts", "num_local_experts")
    }
    assert len(counts) == 1
    if kind == "qwen3_moe":
        assert counts == {191_450_112}


NATIVE = {
    "dim": 1024,
    "n_layers": 8,
    "hidden_dim": 4096,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 128,
    "vocab_size": 32000,
    "norm_eps": 1e-05,
}


def of_params(tmp_path: Path, **more: Any) -> Any:
    (tmp_path / "params.json").write_text(json.dumps({**NATIVE, **more}))
    return read_model_facts(str(tmp_path))


def test_a_folder_with_mistrals_own_file_alone_is_sized(tmp_path: Path) -> None:
    facts = of_params(tmp_path)
    assert facts.parameters == 191_382_528
    assert (facts.max_position_embeddings, facts.kv_heads, facts.quantization) == (128_000, 4, None)
    assert [each.window for each in facts.kv_layers] == [None]
    (tmp_path / "config.json").write_text(json.dumps({**QWEN3_MOE, "num_experts": 8}))
    assert read_model_facts(str(tmp_path)).parameters == 191_450_112


def test_what_mistrals_own_file_says_of_experts_windows_formats_and_length(tmp_path: Path) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2}
    mixture = of_params(tmp_path, moe=experts, quantization={"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"})
    assert mixture.parameters == 191_382_528 + 8 * (3 * 3 * 1024 * 4096 + 4 * 1024)
    assert (mixture.experts, mixture.experts_per_token, mixture.quantization) == (4, 2, "fp8")
    local = of_params(
        tmp_path, sliding_window=[None, 512], yarn={"factor": 4, "original_max_position_embeddings": 8192}
    )
    assert [(each.layers, each.window) for each in local.kv_layers] == [(4, None), (4, 512)]
    assert local.max_position_embeddings == 128_000
    tied = of_params(tmp_path, tied_embeddings=True, multimodal={"vision_encoder_args": {"hidden_size": 64}})
    assert tied.parameters == 191_382_528 - 32000 * 1024
    assert tied.notes == ("the vision tower is not counted",)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"quantization": {"qformat_weight": "fp4"}}, "quantization: not a format that vLLM reads"),
        ({"n_layers": "8"}, "n_layers: not a positive whole number (got '8')"),
        ({"sliding_window": [None, "x"]}, "sliding_window: not a positive whole number (got 'x')"),
        ({"sliding_window": [512, 1024]}, "sliding_window: windows of several sizes"),
        ({"model_type": "mamba"}, "model_type: 'mamba' cannot be sized: its linear-attention or state-space layers"),
    ],
    ids=["a format", "a number", "no window", "windows", "a family"],
)
def test_what_is_wrong_in_mistrals_own_file_is_named(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        of_params(tmp_path, **more)
    assert str(caught.value).startswith(f"{tmp_path / 'params.json'}: {message}")


WINDOW = {"sliding_window": 64}


@pytest.mark.parametrize(
    ("kind", "keys", "expected"),
    [
        pytest.param("llama", {}, [(7, None)], id="no window"),
        pytest.param("mistral", {}, [(7, 4096)], id="left out: transformers' default, on every layer"),
        pytest.param("mistral", {"sliding_window": None}, [(7, None)], id="null"),
        pytest.param("mistral", {"sliding_window": 0}, [(7, None)], id="0 is none"),
        pytest.param("gemma2", WINDOW, [(3, None), (4, 64)], id="every second layer, from the first on"),
        pytest.param("gpt_oss", {**WINDOW, "num_experts": 4}, [(3, None), (4, 64)], id="the same in gpt-oss"),
        pytest.param("gemma3_text", WINDOW, [(1, None), (6, 64)], id="5 of 6"),
        pytest.param("gemma3_text", {**WINDOW, "sliding_window_pattern": 2}, [(3, None), (4, 64)], id="1 of 2"),
        pytest.param("cohere2", WINDOW, [(1, None), (6, 65)], id="3 of 4, and the token itself"),
        pytest.param("exaone4", {**WINDOW, "sliding_window_pattern": "LLG"}, [(2, None), (5, 64)], id="by letters"),
        pytest.param("exaone4", {"sliding_window": None}, [(7, None)], id="a pattern without a window"),
        pytest.param(
            "ministral",
            {**WINDOW, "layer_types": ["full_attention"] * 5 + ["sliding_attention"] * 2},
            [(5, None), (2, 64)],
            id="listed",
        ),
        pytest.param("qwen2", {**WINDOW, "max_window_layers": 0}, [(7, None)], id="not in use"),
        pytest.param(
            "qwen2",
            {**WINDOW, "use_sliding_window": True, "max_window_layers": 0},
            [(7, 64)],
            id="Qwen, on every layer",
        ),
        pytest.param(
            "llama4_text",
            {"attention_chunk_size": 64, "num_experts": 4},
            [(7, None)],
            id="chunks, which vLLM allocates in full",
        ),
    ],
)
def test_what_each_layer_sees(kind: str, keys: dict[str, Any], expected: list[tuple[int, int | None]]) -> None:
    facts = model_facts({**MIXTURE, "model_type": kind, **keys})
    assert [(each.layers, each.window) for each in facts.kv_layers] == expected
    windows = [f"{layers} of 7 layers have a sliding window of {seen} tokens" for layers, seen in expected if seen]
    said = [note for note in facts.notes if "sliding window" in note]
    assert [note.partition(":")[0] for note in said] == windows
    assert any("chunks of 64" in note for note in facts.notes) is ("attention_chunk_size" in keys)


TEXT = {**SMALL, "model_type": "qwen2"}


@pytest.mark.parametrize(
    ("config", "notes"),
    [
        pytest.param(
            {"model_type": "internvl_chat", "llm_config": TEXT, "vision_config": {"a": 1}}, 1, id="llm_config"
        ),
        pytest.param(
            {"model_type": "janus", "language_config": TEXT, "vision_config": {"a": 1}}, 1, id="language_config"
        ),
        pytest.param({"model_type": "x", "text_config": TEXT}, 0, id="text_config"),
        pytest.param(
            {
                "model_type": "qwen2_5_omni",
                "thinker_config": {"text_config": TEXT, "audio_config": {"a": 1}, "vision_config": {"a": 1}},
                "talker_config": {"a": 1},
            },
            3,
            id="thinker_config, twice nested",
        ),
        pytest.param({**TEXT, "model_type": "qwen2_5_vl", "vision_config": {"depth": 32}}, 1, id="flat, as once"),
        pytest.param(
            {"model_type": "llava", "text_config": {**SMALL, **BIASED}, "vision_config": {"a": 1}}, 1, id="no type"
        ),
    ],
)
def test_the_language_part_is_found_wherever_it_is_and_what_is_left_out_is_said(
    config: dict[str, Any], notes: int
) -> None:
    facts = model_facts(config)
    extra = 7 * 192 if config["model_type"] == "llava" else 0  # biases of the output matrices
    assert facts.parameters == model_facts(TEXT).parameters + extra
    assert len(facts.notes) == notes
    assert all("is not counted" in note for note in facts.notes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen3_next"}, "model_type: 'qwen3_next' cannot be sized: its linear-attention"),
        ({"model_type": "jamba"}, "model_type: 'jamba' cannot be sized: its linear-attention"),
        ({"model_type": "bert"}, "model_type: 'bert' cannot be sized: it is an encoder"),
        ({**TEXT, "num_experts": 8}, "num_experts: experts of 'qwen2' cannot be sized"),
        ({**TEXT, "model_type": "llama", "kv_lora_rank": 512}, "kv_lora_rank: a latent cache of 'llama'"),
        ({**TEXT, "model_type": "llama", "mamba_d_state": 16}, "mamba_d_state: layers that keep states"),
        ({**TEXT, "model_type": "llama", "block_configs": [{}]}, "block_configs: layers that differ"),
        ({**TEXT, "is_causal": False}, "is_causal: an encoder without a KV cache of 'qwen2'"),
        ({**TEXT, "layer_types": ["linear_attention"] * 7}, "layer_types: layers of type 'linear_attention'"),
        (
            {**MIXTURE, "model_type": "qwen3_moe", "num_experts": 8, "n_shared_experts": 1},
            "n_shared_experts: shared experts of this architecture",
        ),
        ({**TEXT, "num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 are more than any model has"),
        (
            {**TEXT, **WINDOW, "use_sliding_window": True, "max_window_layers": 3},
            "max_window_layers: 3 of 7 layers; vLLM serves this architecture",
        ),
    ],
    ids=lambda item: item.partition(" ")[0] if isinstance(item, str) else "",
)
def test_what_is_not_counted_has_no_size_but_a_reason(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        model_facts(config, "my.json")
    assert str(caught.value).startswith(f"my.json: {message}")


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"num_nextn_predict_layers": 1}, "multi-token prediction count only as a draft"),
        ({"architectures": ["Qwen2ForRewardModel"]}, "Qwen2ForRewardModel is counted like a model that generates text"),
    ],
    ids=["layers that guess ahead", "another head"],
)
def test_what_is_doubtful_is_said(more: dict[str, Any], part: str) -> None:
    (note,) = model_facts({**TEXT, **more}).notes
    assert part in note
