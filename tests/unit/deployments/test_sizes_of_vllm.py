"""Sizes beside what vLLM itself loaded and planned on a GPU, for every kind of model that has a size."""

import json
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.catalog import need_accelerator
from raylane.cluster.errors import UsageError
from raylane.deployments.sizing.memory import EngineSettings, stage_kv_layout, stage_weight_bytes, with_defaults
from raylane.deployments.sizing.model_facts import ModelFacts, model_facts

GIB = 2**30
RECORDED = json.loads((Path(__file__).parents[2] / "fixtures/vllm_sizes/h200-vllm-0.26.0.json").read_text())
KEEPS_STATES = ("falcon-h1-7b", "granite-moe-hybrid", "jamba-l8", "mamba2", "nemotron-h-8b", "qwen3-next-l8")
SIZED = [row for row in RECORDED["models"] if row["name"] not in KEEPS_STATES]
# Beside its weights an engine keeps tables of sines and cosines, one for each position; the recorded models have few
# layers, so these weigh more here than in a whole model.
TABLES_GIB = 0.2


def sizes(row: dict[str, Any]) -> tuple[ModelFacts, EngineSettings]:
    facts = model_facts(row["config"], row["name"])
    limits = {name: RECORDED[name] for name in ("max_num_seqs", "max_num_batched_tokens")}
    return facts, with_defaults(facts, need_accelerator("H200"), EngineSettings(**row["settings"], **limits))


@pytest.mark.parametrize("row", SIZED, ids=lambda row: row["name"])
def test_tokens_of_a_kv_cache_are_those_that_vllm_says(row: dict[str, Any]) -> None:
    facts, settings = sizes(row)
    layout = stage_kv_layout(facts, settings)
    blocks = int(RECORDED["kv_cache_gib"] * GIB // layout.block_bytes)
    assert settings.max_model_len is not None
    assert layout.tokens(blocks, settings.max_model_len) == pytest.approx(row["kv_tokens"], rel=1e-3)


@pytest.mark.parametrize("row", SIZED, ids=lambda row: row["name"])
def test_weights_are_those_that_vllm_loads(row: dict[str, Any]) -> None:
    found_gib = stage_weight_bytes(*sizes(row)) / GIB
    assert min(row["weights_gib"] - TABLES_GIB, 0.98 * row["weights_gib"]) < found_gib < row["weights_gib"] * 1.002


@pytest.mark.parametrize("name", KEEPS_STATES)
def test_models_that_keep_states_have_no_size(name: str) -> None:
    row = next(row for row in RECORDED["models"] if row["name"] == name)
    with pytest.raises(UsageError, match="cannot be sized"):
        sizes(row)
