"""SGLang as an engine: its config, its command line against the manifest, and a stand-in of its server as a process."""

import os
import socket
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fake_sglang import PAGE, install, manifest, parsed

from raylane.cluster.allreduce import AllReduceSettings
from raylane.cluster.errors import FailedError, UsageError
from raylane.deployments.config.deployment import DeploymentConfig, ModelConfig, json_schema
from raylane.deployments.engines.base import Seat, kind_of
from raylane.deployments.engines.build import build_engine
from raylane.deployments.engines.load import EngineLoad
from raylane.deployments.engines.seated import SeatedEngine
from raylane.deployments.engines.sglang.config import OWN_FLAGS, UNGUARDED
from raylane.deployments.engines.sglang.engine import LAUNCHER, NAMES, SglangEngine
from raylane.deployments.engines.simulator.config import SimulatorConfig
from raylane.deployments.engines.simulator.engine import simulated
from raylane.deployments.sizing.engine_settings import engine_settings
from raylane.deployments.slo import SloLimits

UP_WITHIN_S = 60.0
FULL: dict[str, Any] = {
    **{"dtype": "bfloat16", "quantization": "fp8", "context_length": 8192, "mem_fraction_static": 0.8},
    **{"max_running_requests": 64, "chunked_prefill_size": 4096, "kv_cache_dtype": "fp8_e4m3", "random_seed": 1},
    **{"disable_radix_cache": True, "trust_remote_code": True, "load_format": "dummy", "log_level": "info"},
    "extra_args": ["--attention-backend", "triton"],
}
NEEDED = {NAMES.waiting, NAMES.running, *NAMES.kv_use, NAMES.prompt_tokens_total, NAMES.output_tokens_total, NAMES.ttft}


def model(engine: dict[str, Any] | None = None, **keys: Any) -> ModelConfig:
    block = {"source": "org/m", "engine": {"kind": "sglang", **(engine or {})}, **keys}
    return ModelConfig.from_data(block, "test")


def seat(folder: Path, *, custom_all_reduce: bool = True, uuids: tuple[str, ...] = ("GPU-1", "GPU-2")) -> Seat:
    links = AllReduceSettings((("NCCL_P2P_DISABLE", "1"),), custom_all_reduce=custom_all_reduce, reason="test")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return Seat("127.0.0.1", port, range(port + 1, port + 32), uuids, "key", folder / "tiny-r1.log", links)


@pytest.fixture(params=sorted(manifest()))
def version(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stand-in of this version in raylane's own Python."""
    chosen: str = request.param
    inherited = [item for item in (os.environ.get("PYTHONPATH"),) if item]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([install(tmp_path), *inherited]))
    monkeypatch.setenv("FAKE_SGLANG", chosen)
    monkeypatch.delenv("RAYLANE_TOPOLOGY", raising=False)
    return chosen


def test_the_launch_of_a_pair(tmp_path: Path) -> None:
    place = seat(tmp_path, custom_all_reduce=False)
    launch = SglangEngine("tiny", model({**FULL, "env": {"A": "b"}}, tensor_parallel=2), "org/m").launch(place)
    assert launch.command[:4] == (sys.executable, str(LAUNCHER), "-m", "sglang.launch_server")
    assert " ".join(launch.command[4:]) == (
        f"--model-path org/m --served-model-name tiny --host 127.0.0.1 --port {place.port} "
        f"--nccl-port {place.port + 1} --tp-size 2 --mem-fraction-static 0.8 --dtype bfloat16 --quantization fp8 "
        "--context-length 8192 --max-running-requests 64 --chunked-prefill-size 4096 --kv-cache-dtype fp8_e4m3 "
        "--random-seed 1 --load-format dummy --trust-remote-code --disable-radix-cache --disable-custom-all-reduce "
        "--log-level info --log-level-http warning --enable-metrics --skip-server-warmup --attention-backend triton"
    )
    assert launch.env == {
        **{"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"},
        **{"NCCL_P2P_DISABLE": "1", "A": "b", "VLLM_API_KEY": "key"},
    }


def test_what_is_not_said_is_left_to_sglang(tmp_path: Path) -> None:
    arguments = SglangEngine("tiny", model(), "org/m").arguments(seat(tmp_path))
    given = {part for part in arguments if part.startswith("--")}
    assert not given & {"--context-length", "--max-running-requests", "--disable-radix-cache", "--random-seed"}
    assert "--disable-custom-all-reduce" not in given


@pytest.mark.parametrize("of", sorted(manifest()))
def test_every_flag_and_metric_is_in_the_manifest(of: str, tmp_path: Path) -> None:
    facts = manifest()[of]
    for engine in ({}, FULL):
        arguments = SglangEngine("tiny", model(engine), "org/m").arguments(seat(tmp_path, custom_all_reduce=False))
        parsed(list(arguments), of)
    assert set(facts["metrics"]) >= NEEDED
    assert facts["module"]
    assert facts["application_handed_to"], "the guard is put around what uvicorn is given"
    assert {"get /health", "get /v1/models", "post /v1/completions", "post /v1/chat/completions"} <= {*facts["routes"]}


def test_refused_flags_are_real_ones() -> None:
    newest = manifest()["0.5.23"]
    assert {*OWN_FLAGS, *UNGUARDED} - newest["flags"].keys() == set()
    assert NAMES.tpot in newest["metrics"]


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        pytest.param("--api-key", "every user of the host can read a command line", id="a key anyone can read"),
        pytest.param("--api-key=k", "every user of the host can read a command line", id="with its value"),
        pytest.param("--api", "every user of the host can read a command line", id="a beginning is the flag"),
        pytest.param("--tp-size", "tensor_parallel", id="a key of the model"),
        pytest.param("--tokenizer-worker-num", "past raylane's guard", id="processes of uvicorn's own"),
        pytest.param("--enable-http2", "past raylane's guard", id="another server"),
        pytest.param("--config", "past raylane's guard", id="a file that may say anything"),
        pytest.param("--enable-metrics-for-all-schedulers", "counted once for every GPU", id="double counts"),
    ],
)
def test_an_argument_that_raylane_sets_or_that_opens_the_engine_is_refused(flag: str, part: str) -> None:
    with pytest.raises(UsageError, match=f"extra_args: {flag.split('=')[0]} .*{part}"):
        model({"extra_args": [flag, "2"]})


def test_the_load_off_its_page() -> None:
    engine = SglangEngine("tiny", model(), "org/m")
    limits = SloLimits(ttft_s=0.5, ttft_s_per_token=0.0, tpot_s=0.05)
    assert engine.read_load(PAGE) == EngineLoad(3, 2, 0.25, 100.0, 40.0)
    assert engine.read_load(PAGE, limits).missed_total == 2, "gaps between tokens are no requests"
    slow = 'sglang:request_time_per_output_token_seconds_bucket{le="0.05"} 1\n' + (
        'sglang:request_time_per_output_token_seconds_bucket{le="+Inf"} 5\n'
    )
    assert engine.read_load(PAGE + slow, limits).missed_total == 4


def test_its_settings_in_the_words_of_sizing_and_of_the_simulator() -> None:
    settings = engine_settings(model(FULL, tensor_parallel=2))
    assert (settings.max_model_len, settings.max_num_seqs, settings.max_num_batched_tokens) == (8192, 64, 4096)
    assert (settings.gpu_memory_utilization, settings.kv_cache_dtype, settings.tensor_parallel) == (0.8, "fp8_e4m3", 2)
    config = DeploymentConfig.from_data({"models": {"m": {"source": "org/m", "engine": {"kind": "sglang"}}}}, "test")
    played = simulated(config, "L40S").models["m"].engine
    assert isinstance(played, SimulatorConfig)
    assert (played.gpu_memory_utilization, played.enable_prefix_caching) == (0.85, True)
    assert kind_of("sglang").words["max_num_seqs"] == "max_running_requests"


def test_editors_know_it() -> None:
    block = json_schema()["$defs"]["SglangConfig"]["properties"]
    assert "vLLM's" in block["mem_fraction_static"]["description"]


def test_a_host_that_cannot_run_it_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYLANE_TOPOLOGY", raising=False)
    with pytest.raises(FailedError, match=r"needs the package sglang .* has none: install it there"):
        build_engine("tiny", model())
    with pytest.raises(FailedError, match=r"engine\.python /nowhere/python: no such program"):
        build_engine("tiny", model({"python": "/nowhere/python"}))
    with pytest.raises(FailedError, match="needs a GPU, and this host has none"):
        SglangEngine("tiny", model(), "org/m").launch(seat(tmp_path, uuids=()))
    with pytest.raises(FailedError, match=r"pipeline_parallel is 2, and engine\.kind sglang takes 1"):
        SglangEngine("tiny", model(pipeline_parallel=2), "org/m")


async def test_the_stand_in_is_ready_by_a_token_tells_its_load_and_is_closed(version: str, tmp_path: Path) -> None:
    place = seat(tmp_path)
    seated = SeatedEngine(f"test-{uuid.uuid4().hex}", "tiny", build_engine("tiny", model(FULL)), place)
    try:
        await seated.start((), UP_WITHIN_S)
        await seated.observe()
        assert seated.load == EngineLoad(3, 2, 0.25, 100.0, 40.0)
        own = {"Authorization": f"Bearer {place.api_key}"}
        assert await statuses(place, own) == {"GET /v1/models": 200, "POST /flush_cache": 404}
        assert await statuses(place, {}) == {"GET /v1/models": 401, "POST /flush_cache": 401}
    finally:
        await seated.stop(5.0)


async def test_a_server_past_the_guard_is_not_taken_for_ready(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SGLANG", f"{version} open")
    seated = SeatedEngine(f"test-{uuid.uuid4().hex}", "tiny", build_engine("tiny", model()), seat(tmp_path))
    try:
        with pytest.raises(FailedError, match="answers requests that do not carry its key"):
            await seated.start((), UP_WITHIN_S)
    finally:
        await seated.stop(5.0)


async def statuses(place: Seat, headers: dict[str, str]) -> dict[str, int]:
    """What a path that raylane uses and one that it does not answer."""
    told = {}
    async with aiohttp.ClientSession(headers=headers) as session:
        for method, path in (("GET", "/v1/models"), ("POST", "/flush_cache")):
            async with session.request(method, f"http://127.0.0.1:{place.port}{path}") as reply:
                told[f"{method} {path}"] = reply.status
    return told
