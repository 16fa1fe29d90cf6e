"""`raylane engine build` with stand-ins of TensorRT-LLM's commands: what it makes, and that failures leave nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_trtllm import import_path, install
from typer.testing import CliRunner, Result

from raylane.cli.app import build_app
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.hosts import Gpu
from raylane.cluster.processes import processes_with
from raylane.deployments.config.builtin import ensure_model
from raylane.deployments.config.deployment import ModelConfig, load_config
from raylane.deployments.engines.trtllm import build as building
from raylane.deployments.engines.trtllm.build import build, find_toolchain
from raylane.deployments.engines.trtllm.build_plan import BuildRequest, check_request
from raylane.deployments.engines.trtllm.config import TensorRtLlmConfig
from raylane.deployments.engines.trtllm.failures import explain_failure
from raylane.deployments.engines.trtllm.layout import read_record
from raylane.deployments.engines.trtllm.prompts import Prompts, read_prompts

pytestmark = pytest.mark.process

app = build_app(["engine"])
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
SIZES = {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "max_position_embeddings": 8192}
L40S = (Gpu("GPU-1", 0, "NVIDIA L40S"), Gpu("GPU-2", 1, "NVIDIA L40S"))
A100 = (Gpu("GPU-1", 0, "NVIDIA A100-SXM4-80GB"),)


@pytest.fixture
def source() -> Path:
    """A small model with a tokenizer, as it would be downloaded."""
    return Path(ensure_model("builtin:tiny-llama"))


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    return read_prompts(prompts_file(tmp_path))


def prompts_file(folder: Path, count: int = 64) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(count)))
    return path


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with two L40S and the stand-ins on PATH."""
    monkeypatch.setenv("PATH", f"{install(tmp_path)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", import_path(tmp_path))
    monkeypatch.delenv("RAYLANE_TOPOLOGY", raising=False)
    monkeypatch.setattr(building, "read_gpus", lambda: L40S)
    return tmp_path


def misbehave(monkeypatch: pytest.MonkeyPatch, **parts: str) -> None:
    monkeypatch.setenv("FAKE_TRTLLM", json.dumps(parts))


def request_for(source: Path, host: Path, **changes: Any) -> BuildRequest:
    return replace(BuildRequest(source, host / "out", "fp8", max_seq_len=256), **changes)


def run(request: BuildRequest, prompts: Prompts) -> Path:
    return build(request, prompts, find_toolchain(request), lambda line: None)


def left_over(host: Path) -> list[str]:
    """What a build left in the folder beside the stand-ins, the prompts and the log."""
    return sorted({path.name for path in host.iterdir()} - {"bin", "site", "prompts.jsonl", "out.build.log"})


def test_a_build_makes_an_engine_with_its_tokenizer_and_a_record(source: Path, host: Path, prompts: Prompts) -> None:
    made = run(request_for(source, host, tensor_parallel=2, kv_cache_fp8=True), prompts)
    assert left_over(host) == ["out"]
    names = {path.name for path in made.iterdir()}
    assert {"engine", "config.json", "tokenizer.json", "raylane-engine.json"} <= names
    assert not names & {"checkpoint", "calibration", "prompts.jsonl", "quantization.json", "run_quantization.py"}
    assert {path.name for path in (made / "engine").iterdir()} == {"config.json", "rank0.engine", "rank1.engine"}
    record = read_record(made)
    assert (record.quantization, record.kv_cache_dtype, record.tensor_parallel) == ("fp8", "fp8", 2)
    assert (record.prompts, record.gpu, record.tensorrt_llm) == (64, "NVIDIA L40S", "1.2.1")
    assert made.stat().st_mode & 0o777 == 0o755


def test_the_model_is_calibrated_on_the_prompts_and_nothing_else(source: Path, host: Path, prompts: Prompts) -> None:
    made = run(request_for(source, host, quantization="int8"), prompts)
    checkpoint = json.loads((made / "engine" / "config.json").read_text())["pretrained_config"]
    assert checkpoint["texts"] == [f"question {i}" for i in range(64)]
    arguments = checkpoint["arguments"]
    assert (arguments["qformat"], arguments["calib_size"], arguments["kv_cache_dtype"]) == ("int8_sq", 64, None)


FAILURES = [
    ("quantize", "cuda", "calibrate and quantize: out of GPU memory: the unquantized model"),
    ("build", "tensorrt", "build the engine: out of GPU memory: lower --max-batch-size"),
    ("quantize", "host", "out of host memory"),
    ("build", "disk", "the disk is full"),
    ("build", "architecture", "does not support this model"),
    ("build", "crash", "ended with exit status 1"),
    ("quantize", "killed", "signal 9"),
]


@pytest.mark.parametrize(("part", "how", "message"), FAILURES, ids=[f"{how} in {part}" for part, how, _ in FAILURES])
def test_a_failed_step_says_why_and_leaves_only_its_log(
    source: Path, host: Path, prompts: Prompts, monkeypatch: pytest.MonkeyPatch, part: str, how: str, message: str
) -> None:
    misbehave(monkeypatch, **{part: how})
    with pytest.raises(FailedError) as caught:
        run(request_for(source, host), prompts)
    assert message in str(caught.value)
    assert str(host / "out.build.log") in str(caught.value)
    assert left_over(host) == []


def test_a_builder_that_writes_no_engine_is_not_believed(
    source: Path, host: Path, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host / "bin" / "trtllm-build").write_text(f"#!{sys.executable}\n")
    with pytest.raises(FailedError, match=r"did not write config\.json, rank0\.engine"):
        run(request_for(source, host), prompts)
    assert left_over(host) == []


SCRIPT = """
import signal, sys
from pathlib import Path
from raylane.deployments.engines.trtllm.build import Toolchain, build
from raylane.deployments.engines.trtllm.build_plan import BuildRequest
from raylane.deployments.engines.trtllm.prompts import read_prompts
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the raylane command does
source, out, prompts, trtllm_build = map(Path, sys.argv[1:])
tools = Toolchain(str(trtllm_build), sys.executable, "1.2.1", ("NVIDIA L40S",))
build(BuildRequest(source, out, "fp8", max_seq_len=256), read_prompts(prompts), tools, print)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -2)], ids=["term", "ctrl-c"])
def test_an_interrupted_build_leaves_no_process_and_no_folder(
    source: Path, host: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    misbehave(monkeypatch, quantize="hang")
    mark = f"test-{os.getpid()}-{number}"
    files = (source, host / "out", prompts_file(host), host / "bin" / "trtllm-build")
    command = [sys.executable, "-c", SCRIPT, *map(str, files)]
    process = subprocess.Popen(command, env={**os.environ, "RAYLANE_TEST": mark}, start_new_session=True)
    log = host / "out.build.log"
    deadline_s = time.monotonic() + 60
    while not (log.is_file() and b"hanging" in log.read_bytes()) and time.monotonic() < deadline_s:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == status
    assert processes_with("RAYLANE_TEST", mark) == []
    assert left_over(host) == []


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        pytest.param({"architectures": ["OddForCausalLM"]}, ("builds no engine of OddForCausalLM",), id="unknown"),
        pytest.param(
            {"architectures": ["DeepseekV3ForCausalLM"]},
            ("builds no engine of DeepseekV3ForCausalLM", "backend pytorch serves it"),
            id="only without a build",
        ),
        pytest.param({}, ("architectures", "None"), id="no architecture"),
        pytest.param(
            {**LLAMA, "max_position_embeddings": 4096}, ("--max-seq-len 8192", "4096 positions"), id="too short a model"
        ),
        pytest.param({**LLAMA, "quantization_config": {}}, ("quantized already",), id="quantized already"),
        pytest.param({**LLAMA, "auto_map": {}}, ("auto_map", "--trust-remote-code"), id="brings code"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(tmp_path: Path, config: Any, parts: tuple[str, ...]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError) as caught:
        check_request(BuildRequest(tmp_path, tmp_path / "out", "fp8"))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        pytest.param({"source": Path("/nowhere")}, "/nowhere: no such folder", id="no source"),
        pytest.param({"out": Path("/nowhere/out")}, "no folder /nowhere", id="no place for it"),
        pytest.param({"out": Path("/tmp")}, "exists already", id="something is there"),
        pytest.param({"out": Path("/tmp/ScienceQA-fp8")}, "'scienceqa' in the path", id="a public data set's name"),
        pytest.param({"quantization": "int8", "kv_cache_fp8": True}, "not with int8", id="FP8 KV with INT8"),
        pytest.param({"tensor_parallel": 3}, "--tensor-parallel 3: .*32 attention heads", id="heads over 3 GPUs"),
        pytest.param({"tensor_parallel": 64}, "--tensor-parallel 64: .*32 attention heads", id="more GPUs than heads"),
        pytest.param({"pipeline_parallel": 99}, "--pipeline-parallel 99: .*32 layers", id="more stages than layers"),
        pytest.param(
            {"max_num_tokens": 1, "max_batch_size": 5000}, "--max-batch-size 5000 .*--max-num-tokens 1:", id="no tokens"
        ),
        pytest.param(
            {"calibration_tokens": 999999}, "--calibration-tokens 999999: .*8192 positions", id="long prompts"
        ),
        pytest.param({"out": Path("/tmp/my engine")}, "/tmp/my engine: the folder's name", id="no name for a model"),
    ],
)
def test_a_wrong_request_is_refused(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **SIZES}))
    with pytest.raises(UsageError, match=part):
        check_request(replace(BuildRequest(tmp_path, tmp_path / "out", "fp8"), **change))


def test_kv_heads_are_split_or_repeated(tmp_path: Path) -> None:
    config = {**LLAMA, **SIZES, "num_attention_heads": 48, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for tensor_parallel in (1, 4, 16, 48 // 2):
        check_request(BuildRequest(tmp_path, tmp_path / "out", "fp8", tensor_parallel=tensor_parallel))
    with pytest.raises(UsageError, match=r"--tensor-parallel 12: .*8 KV heads"):
        check_request(BuildRequest(tmp_path, tmp_path / "out", "fp8", tensor_parallel=12))


def test_a_model_that_says_it_is_not_quantized_is_built(tmp_path: Path) -> None:
    config = {**LLAMA, **SIZES, "quantization_config": None, "auto_map": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert check_request(BuildRequest(tmp_path, tmp_path / "out", "fp8")) == config


@pytest.mark.parametrize("text", ["{", "[]"], ids=["cut off", "a list"])
def test_a_broken_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json: not"):
        check_request(BuildRequest(tmp_path, tmp_path / "out", "fp8"))


def test_a_host_without_gpus_or_tools_is_refused(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = BuildRequest(Path("/m"), Path("/o"), "fp8")
    with pytest.raises(FailedError, match="this host has none"):
        find_toolchain(request, lambda: ())
    with pytest.raises(FailedError, match="A100-SXM4-80GB has no FP8 arithmetic"):
        find_toolchain(request, lambda: A100)
    assert find_toolchain(replace(request, quantization="int8"), lambda: A100).tensorrt_llm == "1.2.1"
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(FailedError, match="has no package tensorrt_llm"):
        find_toolchain(request, lambda: L40S)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FailedError, match=r"TensorRT-LLM 1\.2\.1 is not installed: trtllm-build is not on PATH"):
        find_toolchain(request, lambda: L40S)
    monkeypatch.setenv("RAYLANE_TOPOLOGY", "/recording.json")
    with pytest.raises(FailedError, match=r"RAYLANE_TOPOLOGY=/recording\.json makes them simulated"):
        find_toolchain(request, lambda: L40S)


@pytest.mark.parametrize("first", ["#!/bin/sh", "no interpreter", "#!/nowhere/python3"])
def test_a_script_of_another_kind_names_no_python(host: Path, first: str) -> None:
    (host / "bin" / "trtllm-build").write_text(f"{first}\n")
    with pytest.raises(FailedError, match="names no Python interpreter"):
        find_toolchain(BuildRequest(Path("/m"), Path("/o"), "fp8"), lambda: L40S)


def test_an_unknown_failure_shows_its_status() -> None:
    assert explain_failure(3, "nothing known", "use less") == "ended with exit status 3"
    assert explain_failure(-15, "", "use less") == "ended by signal 15"
    assert "use less" in explain_failure(1, "RuntimeError: CUDA error: out of memory", "use less")


def raylane(source: Path, host: Path, *more: str, count: int = 64) -> Result:
    out = ("--out", str(host / "out"), "--quantization", "fp8", "--prompts", str(prompts_file(host, count)))
    arguments = ["engine", "build", str(source), *out, *more]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def test_the_command_prints_a_config_that_loads(source: Path, host: Path) -> None:
    done = raylane(source, host, "--tensor-parallel", "2")
    assert done.exit_code == 0, done.output
    assert "64 distinct prompts are few" in done.stderr
    config = host / "deployment.yaml"
    config.write_text(done.stdout)
    model: ModelConfig = load_config(config).models["out"]
    assert (model.engine.kind, model.tensor_parallel, model.source) == ("tensorrt-llm", 2, str(host / "out"))
    assert isinstance(model.engine, TensorRtLlmConfig)
    positions = json.loads((source / "config.json").read_text())["max_position_embeddings"]
    assert model.engine.max_seq_len == min(8192, positions)


def test_a_dry_run_prints_both_commands_and_does_nothing(source: Path, host: Path) -> None:
    done = raylane(source, host, "--dry-run", count=512)
    assert (done.exit_code, done.stderr) == (0, "")
    for part in (
        "prompts: 512 of 512 distinct",
        "run_quantization.py",
        f"{host / 'bin' / 'trtllm-build'} --checkpoint_dir",
    ):
        assert part in done.stdout
    assert left_over(host) == []


def test_a_dry_run_says_what_the_host_lacks(source: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "read_gpus", lambda: ())
    done = raylane(source, host, "--dry-run", "--json")
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    assert "this host has none" in data["missing"]
    assert [step["title"] for step in data["steps"]] == ["calibrate and quantize", "build the engine"]


def test_the_exit_statuses(source: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = raylane(source, host, count=10)
    assert isinstance(wrong.exception, UsageError)
    misbehave(monkeypatch, build="tensorrt")
    failed = raylane(source, host)
    assert isinstance(failed.exception, FailedError)
    assert (wrong.exception.exit_code, failed.exception.exit_code) == (2, 1)
