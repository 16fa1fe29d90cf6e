"""The exact command lines and environments of `vllm serve`, and that the installed vLLM takes every flag of them."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.allreduce import AllReduceSettings
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.engines.base import Seat
from raylane.deployments.engines.guard import ALLOWED
from raylane.deployments.engines.load import EngineLoad, read_page
from raylane.deployments.engines.vllm.engine import NAMES, VllmEngine, server_module

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
NO_LINKS = AllReduceSettings((), custom_all_reduce=True, reason="test")
HOST_MEMORY = AllReduceSettings((("NCCL_P2P_DISABLE", "1"),), custom_all_reduce=False, reason="test")
ALWAYS = (
    "--model org/m --served-model-name tiny --host 10.0.0.7 --port 20000 "
    "--uvicorn-log-level warning --disable-uvicorn-access-log"
)
KEY = "key-that-nobody-may-see"

CASES: dict[str, tuple[dict[str, Any], AllReduceSettings, str]] = {
    "CPU, one process": (
        {"engine": {"device": "cpu", "dtype": "bfloat16", "max_model_len": 512, "max_num_seqs": 8}},
        NO_LINKS,
        "--tensor-parallel-size 1 --dtype bfloat16 --max-model-len 512 --max-num-seqs 8",
    ),
    "a pair of GPUs": (
        {"tensor_parallel": 2, "engine": {"quantization": "awq", "dtype": "float16"}},
        NO_LINKS,
        "--tensor-parallel-size 2 --distributed-executor-backend mp --gpu-memory-utilization 0.9 "
        "--dtype float16 --quantization awq",
    ),
    "a pair that goes through host memory": (
        {"tensor_parallel": 2},
        HOST_MEMORY,
        "--tensor-parallel-size 2 --distributed-executor-backend mp --gpu-memory-utilization 0.9 "
        "--dtype auto --disable-custom-all-reduce",
    ),
    "stages": (
        {"pipeline_parallel": 2},
        NO_LINKS,
        "--tensor-parallel-size 1 --pipeline-parallel-size 2 --distributed-executor-backend mp "
        "--gpu-memory-utilization 0.9 --dtype auto",
    ),
    "speculative decoding": (
        {"engine": {"speculative": {"method": "ngram", "num_speculative_tokens": 4}}},
        NO_LINKS,
        "--tensor-parallel-size 1 --gpu-memory-utilization 0.9 --dtype auto "
        """--speculative-config '{"method": "ngram", "num_speculative_tokens": 4}'""",
    ),
    "custom all-reduce turned off by hand": (
        {"tensor_parallel": 2, "engine": {"disable_custom_all_reduce": True}},
        NO_LINKS,
        "--tensor-parallel-size 2 --distributed-executor-backend mp --gpu-memory-utilization 0.9 "
        "--dtype auto --disable-custom-all-reduce",
    ),
    "everything that can be said": (
        {
            "engine": {
                "gpu_memory_utilization": 0.8,
                "max_num_batched_tokens": 2048,
                "block_size": 32,
                "kv_cache_dtype": "fp8",
                "load_format": "dummy",
                "seed": 7,
                "enforce_eager": True,
                "trust_remote_code": True,
                "enable_prefix_caching": True,
                "extra_args": ["--max-logprobs", "5"],
            }
        },
        NO_LINKS,
        "--tensor-parallel-size 1 --gpu-memory-utilization 0.8 --dtype auto --max-num-batched-tokens 2048 "
        "--block-size 32 --kv-cache-dtype fp8 --load-format dummy --seed 7 --enforce-eager --trust-remote-code "
        "--enable-prefix-caching --max-logprobs 5",
    ),
    "no prefix caching": (
        {"engine": {"enable_prefix_caching": False}},
        NO_LINKS,
        "--tensor-parallel-size 1 --gpu-memory-utilization 0.9 --dtype auto --no-enable-prefix-caching",
    ),
}
GUARD = "raylane.deployments.engines.guard.KeyGuard"


def model(block: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_data({"source": "org/m", **block}, "test")


def seat(links: AllReduceSettings = NO_LINKS, gpus: tuple[str, ...] = ()) -> Seat:
    return Seat("10.0.0.7", 20000, range(20001, 20032), gpus, KEY, Path("/tmp/x.log"), links)


def engine(block: dict[str, Any], folder: str = "org/m") -> VllmEngine:
    return VllmEngine("tiny", model(block), folder)


@pytest.mark.parametrize("case", CASES)
def test_the_exact_arguments(case: str) -> None:
    block, links, expected = CASES[case]
    assert list(engine(block).arguments(seat(links))) == shlex.split(f"{ALWAYS} {expected} --middleware {GUARD}")


@pytest.fixture(scope="module")
def installed() -> dict[str, Any]:
    """What the installed vLLM makes of every command line, and of requests to the server that the first one starts."""
    lines = [list(engine(block).arguments(seat(links))) for block, links, _ in CASES.values()]
    env = {**os.environ, "VLLM_API_KEY": KEY, "VLLM_SERVER_DEV_MODE": "1"}  # with it the server has control paths too
    command = [sys.executable, str(FIXTURES / "installed_vllm.py")]
    done = subprocess.run(command, input=json.dumps(lines), env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_the_installed_vllm_takes_every_command_line(installed: dict[str, Any]) -> None:
    parsed = dict(zip(CASES, installed["parsed"], strict=True))
    for case, values in parsed.items():
        assert (values["model"], values["served_model_name"], values["port"]) == ("org/m", ["tiny"], 20000), case
        assert values["disable_uvicorn_access_log"] is True
        assert (values["api_key"], values["middleware"]) == (None, [GUARD])
    assert parsed["a pair of GPUs"]["tensor_parallel_size"] == 2
    assert parsed["stages"]["pipeline_parallel_size"] == 2
    assert parsed["a pair that goes through host memory"]["disable_custom_all_reduce"] is True
    assert parsed["a pair of GPUs"]["disable_custom_all_reduce"] is False
    assert "num_speculative_tokens" in str(parsed["speculative decoding"]["speculative_config"])
    assert parsed["no prefix caching"]["enable_prefix_caching"] is False
    full = parsed["everything that can be said"]
    assert (full["enable_prefix_caching"], full["seed"], full["max_logprobs"]) == (True, 7, 5)


def test_every_route_of_the_server_asks_for_the_key(installed: dict[str, Any]) -> None:
    heard = installed["heard"]
    paths = {(one["scope"], one["path"]) for one in heard}
    assert paths >= {("http", "/invocations"), ("http", "/metrics"), ("http", "/sleep"), ("websocket", "/v1/realtime")}
    without = [one for one in heard if one["key"] != KEY]
    assert [one for one in without if one["status"] != (401 if one["scope"] == "http" else 403)] == []


def test_with_the_key_only_what_raylane_uses_is_answered(installed: dict[str, Any]) -> None:
    answered = {(o["method"], o["path"]) for o in installed["heard"] if o["key"] == KEY and o["status"] is None}
    assert answered >= {("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models")}
    assert answered >= {("POST", "/v1/completions"), ("POST", "/v1/chat/completions")}
    assert answered <= ALLOWED


def test_the_guard_is_around_the_middleware_that_a_config_adds() -> None:
    arguments = engine({"engine": {"extra_args": ["--middleware", "theirs.Own"]}}).arguments(seat())
    assert arguments[-4:] == ("--middleware", "theirs.Own", "--middleware", GUARD)


@pytest.mark.parametrize(
    ("files", "module"),
    [
        pytest.param(
            ("launchers/api_server/entry.py", "openai/api_server.py"),
            "vllm.entrypoints.launchers.api_server.entry",
            id="since 0.29, which has both",
        ),
        pytest.param(("openai/api_server.py",), "vllm.entrypoints.openai.api_server", id="up to 0.28"),
    ],
)
def test_the_server_module_of_a_version(tmp_path: Path, files: tuple[str, ...], module: str) -> None:
    for name in files:
        (tmp_path / "entrypoints" / name).parent.mkdir(parents=True)
        (tmp_path / "entrypoints" / name).touch()
    assert server_module([str(tmp_path)]) == module


def test_the_server_is_started_by_this_interpreter_without_a_warning_and_without_importing_vllm() -> None:
    launch = engine({}).launch(seat())
    assert launch.command[:3] == (sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry")
    assert launch.log_path == Path("/tmp/x.log")
    code = (
        "import sys; from raylane.deployments.engines.vllm.engine import installed_in; installed_in(); "
        "print('vllm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("case", CASES)
def test_the_key_is_in_the_environment_and_never_on_the_command_line(case: str) -> None:
    block, links, _ = CASES[case]
    launch = engine(block).launch(seat(links))
    assert [argument for argument in launch.command if KEY in argument] == []
    assert launch.env["VLLM_API_KEY"] == KEY


def test_a_config_cannot_replace_the_key() -> None:
    assert engine({"engine": {"env": {"VLLM_API_KEY": ""}}}).launch(seat()).env["VLLM_API_KEY"] == KEY


def test_gpus_are_named_by_uuid_in_the_order_of_the_lease() -> None:
    env = engine({"tensor_parallel": 2}).launch(seat(gpus=("GPU-b", "GPU-a"))).env
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "VLLM_CPU_KVCACHE_SPACE" not in env


def test_a_cpu_engine_sees_no_gpu_and_shares_the_cores_among_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)))
    block = {"engine": {"device": "cpu", "cpu_kv_cache_gb": 3}, "tensor_parallel": 2, "pipeline_parallel": 2}
    env = engine(block).launch(seat()).env
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert (env["VLLM_CPU_KVCACHE_SPACE"], env["OMP_NUM_THREADS"]) == ("3", "3")


def test_every_replica_has_inner_ports_and_an_address_of_its_own() -> None:
    env = engine({}).launch(seat()).env
    assert (env["VLLM_PORT"], env["VLLM_HOST_IP"]) == ("20001", "10.0.0.7")


def test_the_links_ask_through_the_environment_and_the_config_has_the_last_word() -> None:
    assert engine({}).launch(seat(HOST_MEMORY)).env["NCCL_P2P_DISABLE"] == "1"
    block = {"engine": {"env": {"NCCL_P2P_DISABLE": "0", "MINE": "x"}}}
    env = engine(block).launch(seat(HOST_MEMORY)).env
    assert (env["NCCL_P2P_DISABLE"], env["MINE"]) == ("0", "x")


def test_a_local_folder_asks_no_hub(tmp_path: Path) -> None:
    assert engine({}, str(tmp_path)).launch(seat()).env["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in engine({}, "org/m").launch(seat()).env


def test_no_usage_is_sent_home() -> None:
    assert engine({}).launch(seat()).env["VLLM_NO_USAGE_STATS"] == "1"


def test_the_load_on_a_page_of_vllms_metrics() -> None:
    load = read_page((FIXTURES / "vllm_metrics.txt").read_text(), NAMES)
    assert load == EngineLoad(7, 5, 0.125, 1024.0, 4096.0)


@pytest.mark.parametrize(
    ("page", "load"),
    [
        pytest.param("", EngineLoad(), id="an empty page knows nothing"),
        pytest.param("Internal Server Error", EngineLoad(), id="an error page knows nothing"),
        pytest.param(
            'vllm:gpu_cache_usage_perc{engine="0"} 0.5', EngineLoad(kv_use=0.5), id="the older name of KV use"
        ),
        pytest.param("vllm:num_requests_running 0", EngineLoad(running=0), id="none running is not unknown"),
        pytest.param("# vllm:num_requests_running 9", EngineLoad(), id="a comment is no sample"),
        pytest.param("vllm:num_requests_running 2.0 1769000000000", EngineLoad(running=2), id="a sample with a time"),
    ],
)
def test_pages_that_say_less(page: str, load: EngineLoad) -> None:
    assert read_page(page, NAMES) == load
