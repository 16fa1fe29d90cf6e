"""What a draft model takes of the card: counted from its config, or assumed on the safe side."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylane.cluster.catalog import need_accelerator
from raylane.cluster.errors import UsageError
from raylane.deployments.config.builtin import CONFIGS, llama_config
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.sizing.drafts import with_draft
from raylane.deployments.sizing.engine_settings import engine_settings
from raylane.deployments.sizing.fit import EngineSettings, Fits, Refusal, check
from raylane.deployments.sizing.model_facts import ModelFacts, model_facts

TARGET = model_facts(CONFIGS["llama-3-8b-shape"])
BIG = model_facts(CONFIGS["llama-3-70b-shape"])
L40S = need_accelerator("L40S")
# Llama-3.2-1B as published: 1,235,814,400 parameters.
SMALL = llama_config(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, head_dim=64, tie_word_embeddings=True,
    max_position_embeddings=131072,
)  # fmt: skip
FIVE = {"method": "draft_model", "num_speculative_tokens": 5}


def fits(facts: ModelFacts, asked: EngineSettings) -> Fits:
    found = check(facts, L40S, asked)
    assert isinstance(found, Fits), found
    return found


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return str(tmp_path)


def test_a_draft_in_a_folder_is_counted_exactly(folder: str) -> None:
    plain = EngineSettings(max_num_seqs=16)
    asked = with_draft(plain, {**FIVE, "model": folder, "num_speculative_tokens": 0}, TARGET)
    alone, both = fits(TARGET, plain), fits(TARGET, asked)
    assert both.weight_bytes - alone.weight_bytes == 2 * 1_235_814_400
    assert both.kv_bytes_per_token - alone.kv_bytes_per_token == 32_768
    assert both.workspace_bytes == alone.workspace_bytes


def test_every_guessed_token_needs_logits(folder: str) -> None:
    asked = with_draft(EngineSettings(max_num_seqs=16), {**FIVE, "model": folder}, TARGET)
    more = fits(TARGET, asked).workspace_bytes - fits(TARGET, replace(asked, speculative_tokens=0)).workspace_bytes
    assert more == 5 * 16 * 128_256 * 12


def test_a_pair_of_gpus_shares_the_draft_and_stages_do_not(folder: str) -> None:
    asked = with_draft(EngineSettings(quantization="awq", tensor_parallel=2), {**FIVE, "model": folder}, BIG)
    plain = replace(asked, draft=None)
    assert fits(BIG, asked).weight_bytes - fits(BIG, plain).weight_bytes == pytest.approx(1_235_814_400)
    with_stages, without = (replace(it, tensor_parallel=1, pipeline_parallel=2) for it in (asked, plain))
    assert fits(BIG, with_stages).weight_bytes - fits(BIG, without).weight_bytes == pytest.approx(2 * 1_235_814_400)


def test_a_draft_on_the_hub_is_assumed_no_smaller_than_a_usual_one_and_a_note_says_so(folder: str) -> None:
    known = fits(TARGET, with_draft(EngineSettings(), {**FIVE, "model": folder}, TARGET))
    assumed = fits(TARGET, with_draft(EngineSettings(), {**FIVE, "model": "org/draft"}, TARGET))
    assert assumed.weight_bytes > known.weight_bytes
    assert assumed.kv_tokens < known.kv_tokens
    assert assumed.settings.draft is not None
    assert "org/draft: size unknown" in assumed.settings.draft.notes[0]


@pytest.mark.parametrize(
    ("speculative", "has_draft"),
    [
        pytest.param(None, False, id="no speculation"),
        pytest.param({"method": "ngram", "num_speculative_tokens": 4}, False, id="words of the prompt"),
        pytest.param({"model": "ngram", "num_speculative_tokens": 4}, False, id="the same, older spelling"),
        pytest.param({"method": "suffix"}, False, id="suffixes"),
        pytest.param({"method": "eagle3", "model": "org/head", "num_speculative_tokens": 3}, True, id="a trained head"),
        pytest.param({"method": "mtp", "num_speculative_tokens": 1}, True, id="layers of the checkpoint"),
    ],
)
def test_which_methods_bring_a_model(speculative: dict[str, Any] | None, has_draft: bool) -> None:
    assert (with_draft(EngineSettings(), speculative, TARGET).draft is not None) is has_draft


@pytest.mark.parametrize("named", [{}, {"model": None}], ids=["left out", "null"])
def test_a_draft_without_a_name_is_called_the_methods(named: dict[str, Any]) -> None:
    found = with_draft(EngineSettings(), {"method": "mtp", "num_speculative_tokens": 1, **named}, TARGET).draft
    assert found is not None
    assert found.notes[0].startswith("draft model of the method: size unknown")


def test_what_is_wrong_in_a_drafts_config_is_said_by_its_file(folder: str) -> None:
    file = Path(folder) / "config.json"
    file.write_text(json.dumps({**SMALL, "vocab_size": None}))
    with pytest.raises(UsageError, match=rf"^{file}: vocab_size: not a positive whole number \(got None\)$"):
        with_draft(EngineSettings(), {**FIVE, "model": folder}, TARGET)


def test_a_draft_can_be_what_makes_a_model_too_large() -> None:
    asked = EngineSettings(quantization="awq", gpu_memory_utilization=0.95, max_model_len=4096, max_num_seqs=64)
    assert isinstance(check(BIG, L40S, asked), Fits)
    refused = check(BIG, L40S, with_draft(asked, {**FIVE, "model": "org/draft"}, BIG))
    assert isinstance(refused, Refusal)
    assert "draft model included" in refused.reason


@pytest.mark.parametrize("source", ["builtin:llama-3-8b-shape", "org/target"])
def test_settings_of_a_model_have_its_draft(source: str) -> None:
    engine = {"max_num_seqs": 16, "speculative": {**FIVE, "model": "org/draft"}}
    model = ModelConfig.from_data({"source": source, "engine": engine}, "test")
    found = engine_settings(model, TARGET)
    assert found.draft is not None
    assert (found.draft.parameters, found.speculative_tokens) == (TARGET.parameters // 4, 5)
    if source.startswith("builtin:"):
        assert engine_settings(model) == found
    else:
        with pytest.raises(UsageError, match="org/target: no readable config"):
            engine_settings(model)


@settings(max_examples=60)
@given(
    tp=st.sampled_from([1, 2, 4]),
    pp=st.sampled_from([1, 2]),
    tokens=st.integers(0, 8),
    seqs=st.integers(1, 256),
    quantization=st.sampled_from([None, "fp8", "awq"]),
)
def test_a_draft_never_makes_room(tp: int, pp: int, tokens: int, seqs: int, quantization: str | None) -> None:
    plain = EngineSettings(quantization=quantization, max_num_seqs=seqs, tensor_parallel=tp, pipeline_parallel=pp)
    asked = with_draft(plain, {"method": "draft_model", "model": "org/d", "num_speculative_tokens": tokens}, TARGET)
    assert fits(TARGET, asked).kv_tokens < fits(TARGET, plain).kv_tokens


def test_a_models_own_layers_for_guessing_are_counted_as_they_are_stored() -> None:
    """DeepSeek V3: 671.03 billion parameters without its 61st layer, whose 11.5 billion of matrices are in FP8."""
    config = {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "kv_lora_rank": 512,
        "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "vocab_size": 129280,
        "num_nextn_predict_layers": 1, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }  # fmt: skip
    target = model_facts(config)
    assert target.parameters == pytest.approx(671.03e9, rel=1e-4)
    plain = EngineSettings(tensor_parallel=8)
    asked = with_draft(plain, {"method": "mtp", "num_speculative_tokens": 1}, target)
    alone, both = (check(target, need_accelerator("H200"), each) for each in (plain, asked))
    assert isinstance(alone, Fits)
    assert isinstance(both, Fits)
    assert 8 * (both.weight_bytes - alone.weight_bytes) == pytest.approx(11.6e9, rel=0.02)
    assert both.kv_bytes_per_token == alone.kv_bytes_per_token * 62 / 61
    assert not both.settings.draft.notes if both.settings.draft else False
    assert "counted as 25%" in with_draft(plain, {"method": "mtp"}, TARGET).draft.notes[0]  # type: ignore[union-attr]
