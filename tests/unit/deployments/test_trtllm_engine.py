"""TensorRT-LLM as an engine: its config, its files and command line, and a stand-in of its server as a real process."""

import asyncio
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from fake_trtllm import import_path, install

from raylane.cluster.allreduce import AllReduceSettings
from raylane.cluster.errors import FailedError
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.engines import seated
from raylane.deployments.engines.base import Seat
from raylane.deployments.engines.build import build_engine
from raylane.deployments.engines.client import EngineClient
from raylane.deployments.engines.load import EngineLoad
from raylane.deployments.engines.process import EngineProcess
from raylane.deployments.engines.seated import SeatedEngine
from raylane.deployments.engines.trtllm import engine as trtllm_engine
from raylane.deployments.engines.trtllm.engine import LAUNCHER, TensorRtLlmEngine
from raylane.deployments.engines.trtllm.layout import RECORD, BuildRecord
from raylane.deployments.engines.trtllm.load import read_iterations

PAIR = AllReduceSettings((("NCCL_P2P_DISABLE", "1"),), custom_all_reduce=False, reason="test")
UP_WITHIN_S = 20.0


def model(engine: dict[str, Any] | None = None, **keys: Any) -> ModelConfig:
    block = {"source": "org/m", "engine": {"kind": "tensorrt-llm", **(engine or {})}, **keys}
    return ModelConfig.from_data(block, "test")


def seat(folder: Path, port: int = 20000, uuids: tuple[str, ...] = ("GPU-1", "GPU-2")) -> Seat:
    return Seat("127.0.0.1", port, range(port + 1, port + 32), uuids, "key", folder / "tiny-r1.log", PAIR)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in of TensorRT-LLM on PATH."""
    bin_folder = install(tmp_path)
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setenv("PYTHONPATH", import_path(tmp_path))
    monkeypatch.delenv("RAYLANE_TOPOLOGY", raising=False)
    return bin_folder


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host without TensorRT-LLM."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("RAYLANE_TOPOLOGY", raising=False)


def built_folder(folder: Path, **changes: Any) -> Path:
    made: dict[str, Any] = {
        **{"source": "/models/m", "quantization": "fp8", "kv_cache_dtype": None, "tensor_parallel": 2},
        **{"pipeline_parallel": 1, "max_batch_size": 64, "max_num_tokens": 4096, "max_seq_len": 8192, "prompts": 512},
        **{"prompts_sha256": "0", "gpu": "L40S", "tensorrt_llm": "1.2.1", "commands": ()},
    }
    (folder / "engine").mkdir(parents=True)
    (folder / RECORD).write_text(BuildRecord(**{**made, **changes}).model_dump_json())
    return folder


def test_the_launch_of_a_pair(installed: Path, tmp_path: Path) -> None:
    engine = {"max_seq_len": 8192, "max_batch_size": 64, "kv_cache_dtype": "fp8", "enable_chunked_prefill": True}
    built = model({**engine, "env": {"TLLM_LOG_LEVEL": "info"}}, tensor_parallel=2)
    launch = TensorRtLlmEngine("tiny", built, "org/m").launch(seat(tmp_path))
    options = tmp_path / "tiny-r1.trtllm" / "options.yaml"
    assert launch.command[:2] == (sys.executable, str(LAUNCHER))
    assert " ".join(launch.command[2:]) == (
        f"{installed / 'trtllm-serve'} serve org/m --host 127.0.0.1 --port 20000 --backend pytorch --log_level warning "
        "--tp_size 2 --pp_size 1 --kv_cache_free_gpu_memory_fraction 0.9 --max_batch_size 64 --max_seq_len 8192 "
        f"--extra_llm_api_options {options}"
    )
    assert yaml.safe_load(options.read_text()) == {
        "kv_cache_config": {"free_gpu_memory_fraction": 0.9, "dtype": "fp8"},
        "enable_chunked_prefill": True,
        "enable_iter_perf_stats": True,
    }
    assert launch.env == {
        **{"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"},
        **{"NCCL_P2P_DISABLE": "1", "TLLM_LOG_LEVEL": "info", "VLLM_API_KEY": "key"},
    }
    assert "key" not in launch.command


def test_a_batching_window_is_an_option_of_the_file() -> None:
    engine = TensorRtLlmEngine("tiny", model({"llm_api_options": {"batch_wait_timeout_ms": 50}}), "org/m")
    assert engine.options()["batch_wait_timeout_ms"] == 50


def test_a_folder_is_served_under_the_models_name(installed: Path, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.mkdir()
    engine = TensorRtLlmEngine("tiny", model(), str(source))
    for _ in range(2):  # a second start finds the link of the first
        launch = engine.launch(seat(tmp_path))
    served = Path(launch.command[4])
    assert (served.name, served.resolve()) == ("tiny", source)
    assert launch.env["HF_HUB_OFFLINE"] == "1"


def test_a_built_engine_brings_its_tokenizer(installed: Path, tmp_path: Path) -> None:
    folder = built_folder(tmp_path / "fp8")
    built = model({"backend": "tensorrt", "max_seq_len": 4096}, tensor_parallel=2)
    command = TensorRtLlmEngine("tiny", built, str(folder)).launch(seat(tmp_path)).command
    assert Path(command[4]).resolve() == folder / "engine"
    assert command[command.index("--tokenizer") + 1] == str(folder)
    options = yaml.safe_load(Path(command[command.index("--extra_llm_api_options") + 1]).read_text())
    assert "enable_iter_perf_stats" not in options, "a key of the PyTorch backend alone"


@pytest.mark.parametrize(
    ("engine", "tensor_parallel", "part"),
    [
        pytest.param({}, 2, "backend is pytorch: say backend: tensorrt", id="the wrong backend"),
        pytest.param({"backend": "tensorrt"}, 4, "tensor_parallel is 4, and the engine.*built for 2", id="GPUs"),
        pytest.param(
            {"backend": "tensorrt", "max_seq_len": 9000}, 2, "max_seq_len is 9000.*built for 8192", id="too long"
        ),
        pytest.param(
            {"backend": "tensorrt", "kv_cache_dtype": "fp8"}, 2, "kv_cache_dtype is fp8.*built for None", id="KV type"
        ),
        pytest.param(
            {"backend": "tensorrt", "quantization": "int8"}, 2, "quantization is int8.*built for fp8", id="weights"
        ),
    ],
)
def test_an_engine_built_for_something_else_is_refused(
    tmp_path: Path, engine: dict[str, Any], tensor_parallel: int, part: str
) -> None:
    folder = built_folder(tmp_path / "fp8")
    with pytest.raises(FailedError, match=part):
        TensorRtLlmEngine("tiny", model(engine, tensor_parallel=tensor_parallel), str(folder))


@pytest.mark.parametrize("source", ["org/m", "a folder"])
def test_backend_tensorrt_needs_a_built_folder(tmp_path: Path, source: str) -> None:
    folder = str(tmp_path) if source == "a folder" else source
    with pytest.raises(FailedError, match="raylane engine build"):
        TensorRtLlmEngine("tiny", model({"backend": "tensorrt"}), folder)


def test_a_host_without_it_is_told_before_anything_is_done(bare: None, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match=r"needs TensorRT-LLM 1\.2\.1, but trtllm-serve is not on this host's PATH"):
        build_engine("tiny", model())
    engine = TensorRtLlmEngine("tiny", model(), "org/m")
    with pytest.raises(FailedError, match="trtllm-serve is not on this host's PATH"):
        engine.launch(seat(tmp_path))
    with pytest.raises(FailedError, match="needs an NVIDIA GPU"):
        engine.launch(seat(tmp_path, uuids=()))
    assert not list(tmp_path.iterdir())


def test_build_engine_makes_it_where_the_server_is(installed: Path) -> None:
    assert isinstance(build_engine("tiny", model()), TensorRtLlmEngine)


async def test_the_stand_in_server_is_ready_by_a_token_and_tells_its_load(installed: Path, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.mkdir()
    place = seat(tmp_path, free_port())
    engine = TensorRtLlmEngine("tiny", model({"max_seq_len": 2048}, tensor_parallel=2), str(source))
    process = EngineProcess(f"test-{uuid.uuid4().hex}", engine.launch(place))
    await process.start()
    client = EngineClient(f"http://127.0.0.1:{place.port}", place.api_key, "tiny")
    try:
        await until_healthy(client, process)
        await client.generate_token(10.0)
        assert await client.load(engine.read_load, 5.0) == EngineLoad(waiting=3, running=1, kv_use=0.25)
        assert await client.load(engine.read_load, 5.0) == EngineLoad(waiting=0, running=0)
        told = await knock(place.port, {"Authorization": f"Bearer {place.api_key}"})
        assert told == {"/v1/models": (200, {"data": [{"id": "tiny"}]}), "/release_memory": (404, None)}
        assert {status for status, _ in (await knock(place.port, {})).values()} == {401}
        assert not await client.open_to_strangers(5.0)
    finally:
        await client.close()
        await process.stop(5.0)


async def knock(port: int, headers: dict[str, str]) -> dict[str, tuple[int, Any]]:
    """What a path that raylane uses and one that it does not answer."""
    told: dict[str, tuple[int, Any]] = {}
    async with aiohttp.ClientSession(headers=headers) as session:
        for method, path in (("GET", "/v1/models"), ("POST", "/release_memory")):
            async with session.request(method, f"http://127.0.0.1:{port}{path}") as reply:
                told[path] = (reply.status, await reply.json() if reply.status == 200 else None)
    return told


async def test_a_server_that_the_guard_is_not_around_is_not_taken_for_ready(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trtllm_engine, "LAUNCHER", tmp_path / "plain.py")
    run = "import runpy, sys\ndel sys.argv[0]\nsys.path.pop(0)\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    (tmp_path / "plain.py").write_text(run)
    place = seat(tmp_path, free_port())
    engine = SeatedEngine(f"test-{uuid.uuid4().hex}", "tiny", TensorRtLlmEngine("tiny", model(), "org/m"), place)
    try:
        with pytest.raises(FailedError, match="answers requests that do not carry its key"):
            await engine.start((), UP_WITHIN_S)
    finally:
        await engine.stop(5.0)
    assert not engine.ready


class Told(SeatedEngine):
    """An engine whose load is always the same."""

    told = EngineLoad()

    async def _read_load(self) -> EngineLoad:
        return self.told


@pytest.mark.parametrize(
    ("told", "sick"),
    [
        pytest.param(EngineLoad(running=1), False, id="busy, and tells no totals"),
        pytest.param(EngineLoad(running=1, output_tokens_total=5.0), True, id="busy, and the total stands still"),
    ],
)
async def test_an_engine_without_token_totals_is_not_taken_for_stalled(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: EngineLoad, sick: bool
) -> None:
    monkeypatch.setattr(seated, "STALLED_FOR_S", 0.5)
    monkeypatch.setattr(seated, "HEALTH_EVERY_S", 0.05)
    place = seat(tmp_path, free_port())
    engine = Told(f"test-{uuid.uuid4().hex}", "tiny", TensorRtLlmEngine("tiny", model(), "org/m"), place)
    engine.told = told
    await engine.start((), UP_WITHIN_S)
    watch = asyncio.create_task(engine.until_sick())
    try:
        for _ in range(20):
            await engine.observe()
            await asyncio.sleep(0.1)
        assert watch.done() == sick
    finally:
        watch.cancel()
        await engine.stop(5.0)


async def until_healthy(client: EngineClient, process: EngineProcess) -> None:
    deadline_s = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < deadline_s and not process.ended.is_set():
        try:
            if await client.health(2.0):
                return
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(0.1)
    pytest.fail(str(process.failure("did not come up")))


@pytest.mark.parametrize(
    ("page", "load"),
    [
        pytest.param("[]", EngineLoad(waiting=0, running=0), id="nothing happened: idle"),
        pytest.param('[{"numActiveRequests": 1}, {"numActiveRequests": 7}]', EngineLoad(running=7), id="the last one"),
        pytest.param(
            '[{"numQueuedRequests": 2, "kvCacheStats": {"usedNumBlocks": 1, "maxNumBlocks": 4}}]',
            EngineLoad(waiting=2, kv_use=0.25),
            id="a share of blocks",
        ),
        pytest.param('[{"kvCacheStats": {"usedNumBlocks": 0, "maxNumBlocks": 0}}]', EngineLoad(), id="no blocks"),
        pytest.param('[{"kvCacheStats": null, "numActiveRequests": "x"}]', EngineLoad(), id="other types"),
        pytest.param('["odd"]', EngineLoad(), id="no iterations"),
        pytest.param("[broken", EngineLoad(), id="cut off"),
        pytest.param('{"detail": "Not Found"}', EngineLoad(), id="an error"),
    ],
)
def test_reading_iterations(page: str, load: EngineLoad) -> None:
    assert read_iterations(page) == load
