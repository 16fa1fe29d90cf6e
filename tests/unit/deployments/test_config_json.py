"""What is read from a config.json is what vLLM and transformers take: the longest context, and keys left out."""

import json
import subprocess
import sys
import tempfile
from functools import cache
from typing import Any

import pytest

from raylane.deployments.config.builtin import llama_config
from raylane.deployments.sizing.families.registry import FAMILIES
from raylane.deployments.sizing.model_facts import model_facts

QWEN3 = {"model_type": "qwen3", "layer_types": ["full_attention"] * 32}
GEMMA3 = {
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "model_type": "gemma3_text",
    "num_attention_heads": 16,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
}
EIGHTFOLD = {"rope_type": "linear", "factor": 8.0}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 4096,
}


def llama(**changes: Any) -> dict[str, Any]:
    return {**llama_config(), **changes}


def yarn(**changes: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 4.0, **changes}


CONTEXTS = [
    pytest.param(llama(), 8192, id="not scaled"),
    pytest.param(llama(rope_scaling={"type": "linear", "factor": 2.0}), 16384, id="linear, by its old key"),
    pytest.param(llama(rope_scaling={"rope_type": "linear", "factor": 3.3}), 27033, id="a broken factor"),
    pytest.param(llama(rope_scaling={"rope_type": "dynamic", "factor": 2}), 16384, id="dynamic"),
    pytest.param(llama(rope_scaling={"rope_type": "dynamic", "factor": None}), 8192, id="no factor"),
    pytest.param(llama(rope_scaling={"factor": 2.0}), 16384, id="a factor of no type"),
    pytest.param(llama(rope_scaling=LLAMA_3), 8192, id="Llama 3.1's, counted already"),
    pytest.param(llama(rope_scaling=yarn(original_max_position_embeddings=4096)), 8192, id="YaRN, counted already"),
    pytest.param(llama(rope_parameters=yarn(original_max_position_embeddings=4096)), 8192, id="YaRN, the new key"),
    pytest.param(llama(rope_parameters=yarn()), 8192, id="YaRN without an original length"),
    pytest.param(
        llama(original_max_position_embeddings=2048, rope_parameters=yarn(original_max_position_embeddings=4096)),
        8192,
        id="YaRN with the original beside it",
    ),
    pytest.param(
        llama(rope_parameters=EIGHTFOLD, rope_scaling={"rope_type": "linear", "factor": 2.0}),
        16384,
        id="both keys: the older one counts",
    ),
    pytest.param(llama(rope_parameters=EIGHTFOLD, rope_scaling={}), 65536, id="both keys, the older one empty"),
    pytest.param(llama(**QWEN3, rope_parameters={"full_attention": EIGHTFOLD}), 65536, id="by type of layer"),
    pytest.param({"model_type": "gemma3", "text_config": {**GEMMA3, "rope_scaling": EIGHTFOLD}}, 131072, id="Gemma 3"),
    pytest.param(
        {**GEMMA3, "max_position_embeddings": 32768, "rope_parameters": {"full_attention": EIGHTFOLD}},
        32768,
        id="Gemma 3, text alone, the new key",
    ),
    *(
        pytest.param(
            {key: value for key, value in llama(model_type=kind).items() if key != "max_position_embeddings"},
            tokens,
            id=f"{kind} that says nothing",
        )
        for kind, tokens in {"llama": 2048, "mistral": 131072, "phi3": 4096, "qwen2": 32768, "gemma2": 8192}.items()
    ),
]
NOT_IN_TRANSFORMERS = {"kimi_k2"}
NESTED_THERE = {"qwen2_vl", "qwen2_5_vl"}  # older files have the language part flat, transformers has it nested
DEFAULTS = {
    kind: family.defaults for kind, family in FAMILIES.items() if kind not in NOT_IN_TRANSFORMERS | NESTED_THERE
}
THEIRS = """
import json, pathlib, sys
from transformers import AutoConfig
from vllm.config.model import _get_and_verify_max_len
from vllm.transformers_utils.config import get_config
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase
lengths = []
for number, config in enumerate(json.loads(sys.argv[1])):
    folder = pathlib.Path(sys.argv[3]) / str(number)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    found = get_config(str(folder), trust_remote_code=False)
    text = found.get_text_config()
    facts = ModelArchConfigConvertorBase(found, text).convert()
    lengths.append(_get_and_verify_max_len(text, facts, None, None, False, None))
defaults = {kind: {key: getattr(AutoConfig.for_model(kind), key) for key in keys}
            for kind, keys in json.loads(sys.argv[2]).items()}
print(json.dumps([lengths, defaults]))
"""
"""vLLM's longest contexts and transformers' defaults, read in a process of its own: both change what they run in."""


@cache
def theirs() -> tuple[list[int], dict[str, dict[str, Any]]]:
    configs = json.dumps([each.values[0] for each in CONTEXTS])
    keys = json.dumps({kind: list(defaults) for kind, defaults in DEFAULTS.items()})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", THEIRS, configs, keys, folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lengths, defaults = json.loads(done.stdout.splitlines()[-1])
    return lengths, defaults


@pytest.mark.parametrize(("config", "tokens"), CONTEXTS)
def test_the_longest_context(config: dict[str, Any], tokens: int) -> None:
    assert model_facts(config).max_position_embeddings == tokens


def test_the_longest_contexts_are_vllms() -> None:
    assert theirs()[0] == [each.values[1] for each in CONTEXTS]


@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_a_config_leaves_out_is_what_transformers_takes(kind: str) -> None:
    assert theirs()[1][kind] == DEFAULTS[kind]
