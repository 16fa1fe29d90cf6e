"""Named engine settings: what they become in a config, who wins, and that vLLM's own parser takes every one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raylane.cli.profiles import arguments
from raylane.cluster.catalog import load_catalog
from raylane.cluster.errors import UsageError
from raylane.deployments.config.builtin import CONFIGS
from raylane.deployments.config.deployment import DeploymentConfig, ModelConfig, json_schema, load_config, to_yaml
from raylane.deployments.config.profiles import need_profile, profiles
from raylane.deployments.engines.simulator.engine import simulated
from raylane.deployments.engines.vllm.config import VllmConfig

# Reads command lines from standard input and lets vLLM's own parser take them.
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
print(json.dumps([vars(parser.parse_args(line)) for line in json.load(sys.stdin)], default=str))
"""


def model(engine: dict[str, Any], **keys: Any) -> ModelConfig:
    return ModelConfig.from_data({"source": "org/m", "engine": engine, **keys}, "test")


def vllm(engine: dict[str, Any]) -> VllmConfig:
    found = model(engine).engine
    assert isinstance(found, VllmConfig)
    return found


@pytest.mark.parametrize("name", profiles())
def test_every_profile_is_a_known_model_size_on_known_cards(name: str) -> None:
    profile = need_profile(name)
    assert profile.shape in CONFIGS
    assert set(profile.gpus) <= {card.name for card in load_catalog()}
    assert profile.engine.keys() <= VllmConfig.model_fields.keys() - {"profile", "kind", "device"}


@pytest.mark.parametrize("name", profiles())
def test_a_profile_becomes_plain_settings_and_its_name_is_gone(name: str) -> None:
    profile = need_profile(name)
    found = model({"profile": name})
    assert isinstance(found.engine, VllmConfig)
    assert {key: getattr(found.engine, key) for key in profile.engine} == profile.engine
    assert found.engine.profile is None
    assert found.tensor_parallel == profile.tensor_parallel


def test_the_installed_vllm_takes_every_profiles_command_line() -> None:
    """Imports vLLM in a process of its own (some seconds)."""
    lines = [list(arguments(name)) for name in profiles()]
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(lines), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for name, values in zip(profiles(), json.loads(done.stdout.splitlines()[-1]), strict=True):
        profile = need_profile(name)
        taken = {key: values[key] for key in profile.engine if key != "speculative"}
        assert taken == {key: value for key, value in profile.engine.items() if key != "speculative"}, name
        assert values["tensor_parallel_size"] == profile.tensor_parallel, name
        if "speculative" in profile.engine:
            assert values["speculative_config"] == profile.engine["speculative"], name


def test_keys_beside_the_profile_win_and_the_rest_is_vllms_own() -> None:
    found = vllm({"profile": "70b-awq-l40s", "max_num_seqs": 8, "seed": 3})
    assert (found.max_num_seqs, found.seed) == (8, 3)
    assert (found.gpu_memory_utilization, found.max_model_len) == (0.95, 4096)
    assert found.block_size is None


def test_a_mapping_is_replaced_as_a_whole() -> None:
    own = {"method": "ngram", "num_speculative_tokens": 4}
    assert vllm({"profile": "8b-speculative", "speculative": own}).speculative == own


@pytest.mark.parametrize(
    ("keys", "split"),
    [
        pytest.param({}, 2, id="the profile's"),
        pytest.param({"tensor_parallel": 4}, 4, id="the model's own"),
        pytest.param({"tensor_parallel": 1}, 1, id="the model's own, though it is the default"),
    ],
)
def test_the_split_comes_from_the_profile_unless_the_model_says_otherwise(keys: dict[str, Any], split: int) -> None:
    assert model({"profile": "70b-awq-tp2-l40s"}, **keys).tensor_parallel == split


def test_a_value_that_is_set_back_to_the_default_stays_set_back_after_writing_and_reading(tmp_path: Path) -> None:
    engine = {"profile": "70b-awq-l40s", "gpu_memory_utilization": 0.9, "dtype": "auto"}
    config = DeploymentConfig.from_data({"models": {"big": {"source": "org/m", "engine": engine}}}, "test")
    path = tmp_path / "again.yaml"
    for text in (to_yaml(config), config.to_yaml()):
        path.write_text(text)
        assert load_config(path) == config
    assert yaml.safe_load(to_yaml(config))["models"]["big"]["engine"]["max_model_len"] == 4096


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("70b-on-a-phone", id="a name that does not exist"),
        pytest.param(70, id="a number"),
        pytest.param(["8b-balanced"], id="a list"),
    ],
)
def test_an_unknown_profile_is_named_with_file_and_key_and_the_known_ones(tmp_path: Path, name: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"models": {"m": {"source": "org/m", "engine": {"profile": name}}}}))
    with pytest.raises(UsageError) as caught:
        load_config(path)
    for part in (f"{path}: models.m.engine.profile: no profile {name!r}", "8b-balanced, ", f"(got {name!r})"):
        assert part in str(caught.value)


def test_a_wrong_key_beside_a_profile_is_still_found() -> None:
    with pytest.raises(UsageError, match="max_len: unknown key"):
        model({"profile": "8b-balanced", "max_len": 5})


def test_an_engine_of_another_kind_has_no_profiles_but_its_simulation_takes_the_settings_over() -> None:
    with pytest.raises(UsageError, match="profile: unknown key"):
        model({"kind": "simulator", "profile": "8b-balanced"})
    config = DeploymentConfig.from_data(
        {"models": {"m": {"source": "org/m", "engine": {"profile": "70b-awq-tp2-l40s"}}}}, "test"
    )
    played = simulated(config, "L40S").models["m"]
    assert (played.tensor_parallel, played.engine.sizes().quantization, played.engine.sizes().max_num_seqs) == (
        2,
        "awq_marlin",
        128,
    )


def test_an_editor_knows_the_key() -> None:
    jsonschema.validate({"models": {"m": {"source": "s", "engine": {"profile": "8b-balanced"}}}}, json_schema())
    assert "raylane profiles" in json_schema()["$defs"]["VllmConfig"]["properties"]["profile"]["description"]
