"""Every flag, key, class and argument of TensorRT-LLM that raylane uses is in the manifest of its interface."""

import ast
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from trtllm_manifest import WrongArgumentsError, manifest, parsed

from raylane.cluster.allreduce import AllReduceSettings
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.engines.base import Seat
from raylane.deployments.engines.trtllm.build_plan import BuildRequest, WorkFolder, quantization_spec, steps
from raylane.deployments.engines.trtllm.config import (
    DEFAULT_MAX_BATCH_SIZE,
    DEFAULT_MAX_NUM_TOKENS,
    OWN_FLAGS,
    OWN_OPTIONS,
)
from raylane.deployments.engines.trtllm.engine import TensorRtLlmEngine
from raylane.deployments.engines.trtllm.load import ALL_BLOCKS, KV_CACHE, RUNNING, USED_BLOCKS, WAITING
from raylane.deployments.engines.trtllm.names import FILE

FACTS = manifest()
SCRIPT = Path(__file__).parents[2] / "fixtures" / "trtllm" / "extract.py"
NO_LINKS = AllReduceSettings((), custom_all_reduce=True, reason="test")
SEAT = Seat("10.0.0.7", 20000, range(20001, 20032), ("GPU-1", "GPU-2"), "key", Path("/tmp/engine.log"), NO_LINKS)
EVERYTHING = {
    "dtype": "bfloat16",
    "kv_cache_dtype": "fp8",
    "max_seq_len": 8192,
    "max_batch_size": 64,
    "max_num_tokens": 4096,
    "enable_chunked_prefill": True,
    "trust_remote_code": True,
    "llm_api_options": {
        "cuda_graph_config": {"enable_padding": True},
        "kv_cache_config": {"enable_block_reuse": False},
    },
    "extra_args": ("--num_postprocess_workers", "2"),
}


def engine(settings: dict[str, Any], **keys: Any) -> TensorRtLlmEngine:
    block = {"source": "org/m", "engine": {"kind": "tensorrt-llm", **settings}, **keys}
    return TensorRtLlmEngine("tiny", ModelConfig.from_data(block, "test"), "org/m")


def llm_args(name: str) -> set[str]:
    return {*FACTS["classes"]["BaseLlmArgs"]["fields"], *FACTS["classes"][name]["fields"]}


def test_the_manifest_names_its_commits_and_that_it_is_not_of_the_tag() -> None:
    assert FACTS["target"]["commit"] == "376f7e1bd8ed543f75014309e3fd4b237e9b0e73"
    assert (FACTS["target"]["tag"], FACTS["extracted_from"]["at_target"]) == ("v1.2.1", False)
    assert len(FACTS["extracted_from"]["commit"]) == 40


def test_the_names_that_raylane_ships_are_those_of_the_manifest() -> None:
    shipped = json.loads(FILE.read_text(encoding="utf-8"))
    assert shipped["version"] == FACTS["target"]["version"]
    assert set(shipped["serve_flags"]) == {flag for option in FACTS["serve"] for flag in option["flags"]}
    assert set(shipped["llm_api_options"]["pytorch"]) == llm_args("TorchLlmArgs")
    assert set(shipped["llm_api_options"]["tensorrt"]) == llm_args("TrtLlmArgs")
    assert shipped["nested"]["kv_cache_config"] == sorted(FACTS["classes"]["KvCacheConfig"]["fields"])
    assert shipped["architectures"] == FACTS["architectures"]


@pytest.mark.parametrize("backend", ["pytorch", "tensorrt"])
def test_the_class_of_the_options_file_forbids_what_is_not_in_it(backend: str) -> None:
    name = {"pytorch": "TorchLlmArgs", "tensorrt": "TrtLlmArgs"}[backend]
    assert FACTS["classes"][name]["bases"] == ["BaseLlmArgs"]
    assert FACTS["classes"]["BaseLlmArgs"]["bases"] == ["StrictBaseModel"]


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        pytest.param({}, {}, id="nothing said"),
        pytest.param(EVERYTHING, {"tensor_parallel": 2, "pipeline_parallel": 2}, id="everything said"),
    ],
)
def test_every_flag_of_the_server_is_one_of_its_own_with_a_value_it_takes(
    settings: dict[str, Any], keys: dict[str, Any]
) -> None:
    arguments = engine(settings, **keys).arguments(SEAT, "org/m", Path("/tmp/options.yaml"))
    positional, values = parsed(arguments, FACTS["serve"])
    assert positional == ["org/m"]
    assert (values["--host"], values["--port"], values["--backend"]) == ("10.0.0.7", 20000, "pytorch")
    wanted = keys.get("tensor_parallel", 1), keys.get("pipeline_parallel", 1)
    assert (values["--tp_size"], values["--pp_size"]) == wanted
    assert set(values) <= set(FACTS["also_in"]["serve_flags"]), "a flag that 1.1.0 did not have yet"


def test_every_key_of_the_options_file_is_in_its_class() -> None:
    options = engine(EVERYTHING).options()
    assert options.keys() <= llm_args("TorchLlmArgs")
    assert options["kv_cache_config"].keys() <= FACTS["classes"]["KvCacheConfig"]["fields"].keys()
    assert options["cuda_graph_config"].keys() <= FACTS["classes"]["CudaGraphConfig"]["fields"].keys()
    assert FACTS["classes"]["KvCacheConfig"]["fields"]["dtype"]["type"] == "str"


def test_what_raylane_keeps_for_itself_exists() -> None:
    assert set(OWN_FLAGS) <= {flag for option in FACTS["serve"] for flag in option["flags"]}
    assert {key.split(".")[0] for key in OWN_OPTIONS} <= llm_args("TorchLlmArgs")


def test_the_defaults_used_for_sizing_are_those_of_the_build_config() -> None:
    fields = FACTS["classes"]["BuildConfig"]["fields"]
    found = fields["max_batch_size"]["default"], fields["max_num_tokens"]["default"]
    assert found == (DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_NUM_TOKENS)


def test_the_load_is_read_from_names_that_the_iterations_have() -> None:
    statistics = FACTS["iteration_stats"]
    assert {WAITING, RUNNING, KV_CACHE} <= set(statistics["IterationStats"])
    assert {USED_BLOCKS, ALL_BLOCKS} <= set(statistics["KvCacheStats"])
    assert not [name for name in FACTS["prometheus"] if name.endswith("_tokens_total")], "token totals exist now"


@pytest.mark.parametrize(
    "route", [["GET", "/health"], ["GET", "/metrics"], ["POST", "/v1/completions"], ["POST", "/v1/chat/completions"]]
)
def test_the_routes_that_raylane_calls_exist(route: list[str]) -> None:
    assert route in FACTS["routes"]
    assert route[1] in FACTS["also_in"]["routes"]


def test_the_readiness_proof_is_a_request_it_takes() -> None:
    sent = {"model", "prompt", "max_tokens", "temperature"}
    assert sent <= FACTS["classes"]["CompletionRequest"]["fields"].keys()
    assert "completion_tokens" in FACTS["classes"]["UsageInfo"]["fields"]


def test_there_is_no_flag_for_a_key_or_a_name() -> None:
    """The day there is one, raylane should use it."""
    flags = {flag for option in FACTS["serve"] for flag in option["flags"]}
    assert not flags & {"--api_key", "--served_model_name"}


@pytest.mark.parametrize("quantization", ["fp8", "int8", "int4_awq"])
def test_the_quantizer_is_called_as_it_is_defined(quantization: Any) -> None:
    request = BuildRequest(Path("/models/m"), Path("/out/e"), quantization, tensor_parallel=2)
    arguments = quantization_spec(request, WorkFolder(Path("/out/.e")), 512)["arguments"]
    defined, script = FACTS["quantize_and_export"], {o["flags"][0]: o for o in FACTS["quantize_script"]}
    assert set(defined["required"]) <= arguments.keys() <= {*defined["required"], *defined["optional"]}
    assert not defined["positional"]
    assert arguments["qformat"] in FACTS["quantization_formats"]
    for key, value in arguments.items():
        choices = script["--" + key].get("choices")
        assert choices is None or value in choices, key


def test_fp8_is_a_kv_format_of_the_quantizer() -> None:
    request = BuildRequest(Path("/models/m"), Path("/out/e"), "fp8", kv_cache_fp8=True)
    arguments = quantization_spec(request, WorkFolder(Path("/out/.e")), 512)["arguments"]
    assert arguments["kv_cache_dtype"] in FACTS["kv_quantization_formats"]


def test_every_flag_of_the_builder_is_one_of_its_own() -> None:
    request = BuildRequest(Path("/models/m"), Path("/out/e"), "fp8", tensor_parallel=2, pipeline_parallel=2)
    _, build = steps(request, WorkFolder(Path("/out/.e")), "python", "trtllm-build", gpus=3)
    assert "trtllm-build" in FACTS["entry_points"]
    assert "trtllm-serve" in FACTS["entry_points"]
    positional, values = parsed(build.command[1:], FACTS["build"])
    assert positional == []
    assert (values["--workers"], values["--max_seq_len"], values["--max_input_len"]) == (3, 8192, 8191)


SOURCE = """
import click
SHARED = Literal["auto", None]
class Stats(Base):
    _hidden: int = 0
    rate: Optional[float] = Field(default=0.9, description="x")
    made: Other = Field(default_factory=Other)
    needed: str = Field(description="x")
@click.command("serve")
@click.argument("model")
@click.option("--tp_size", "--tp", "tensor_parallel", type=int, default=1)
@click.option("--backend", type=Alias(["a", "b"], {"c": "b"}), default="a")
@click.option("--parser", type=click.Choice(Parsers.keys()), default=None)
@click.option("--trust", is_flag=True, default=False)
def serve(model):
    add_api_route("/health", health, methods=["GET"])
def quantize(*, model_dir, device="cuda"):
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--kind", choices=["x", None])
    parser.add_argument("--" + name)
"""


def test_the_extraction_script_reads_sources_without_running_them() -> None:
    script = runpy.run_path(str(SCRIPT))
    tree = ast.parse(SOURCE)
    assert script["click_options"](SOURCE.replace("Alias", "ChoiceWithAlias"), "serve") == [
        {"flags": ["--tp_size", "--tp"], "type": "int", "default": 1},
        {"flags": ["--backend"], "type": "choice", "default": "a", "choices": ["a", "b", "c"]},
        {"flags": ["--parser"], "type": "choice", "default": None, "choices": "<Parsers.keys()>"},
        {"flags": ["--trust"], "type": "flag", "default": False},
    ]
    assert script["argparse_options"](SOURCE) == [
        {"flags": ["--seed"], "default": 7, "type": "int"},
        {"flags": ["--fast"], "default": None, "type": "flag"},
        {"flags": ["--kind"], "default": None, "type": "choice", "choices": ["x", None]},
    ]
    fields = script["class_fields"](tree, "Stats")["fields"]
    assert {name: field["default"] for name, field in fields.items()} == {
        "rate": 0.9,
        "made": "<Other()>",
        "needed": None,
    }
    assert script["signature"](SOURCE, "quantize")["required"] == ["model_dir"]
    assert script["routes"](SOURCE) == [["GET", "/health"]]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--no_such_flag", "1"], id="an unknown flag"),
        pytest.param(["--port", "many"], id="a word for a number"),
        pytest.param(["--backend", "vllm"], id="no such choice"),
        pytest.param(["--port"], id="no value"),
    ],
)
def test_the_check_itself_refuses_what_the_server_would(arguments: list[str]) -> None:
    with pytest.raises(WrongArgumentsError):
        parsed(arguments, FACTS["serve"])
