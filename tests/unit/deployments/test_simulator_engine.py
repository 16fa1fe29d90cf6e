"""The simulator as an engine: its config, its command line, a real process through the supervisor, recorded GPUs."""

import asyncio
import shlex
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from raylane.cluster.allreduce import AllReduceSettings
from raylane.cluster.errors import FailedError, UsageError
from raylane.deployments.config.deployment import DeploymentConfig, ModelConfig, load_config
from raylane.deployments.engines.base import Seat
from raylane.deployments.engines.build import build_engine
from raylane.deployments.engines.client import EngineClient
from raylane.deployments.engines.process import EngineProcess
from raylane.deployments.engines.simulator.config import SimulatorConfig
from raylane.deployments.engines.simulator.engine import SimulatorEngine, simulated
from raylane.deployments.engines.vllm.config import VllmConfig
from raylane.deployments.replicas.host import GpuHost
from raylane.deployments.rollout.applications import model_application
from raylane.deployments.simulator.options import read_options

ROOT = Path(__file__).resolve().parents[3]
RECORDING = ROOT / "tests" / "fixtures" / "topology" / "l40s-x12-three-hosts.json"
NO_LINKS = AllReduceSettings((), custom_all_reduce=True, reason="one GPU")
UP_WITHIN_S = 60.0


def model(engine: dict[str, Any] | None = None, **keys: Any) -> ModelConfig:
    block = {"source": "builtin:llama-3-8b-shape", "engine": {"kind": "simulator", **(engine or {})}, **keys}
    return ModelConfig.from_data(block, "test")


def seat(folder: Path, port: int = 20000) -> Seat:
    return Seat("127.0.0.1", port, range(port + 1, port + 32), ("GPU-1",), "key", folder / "engine.log", NO_LINKS)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def arguments(built: ModelConfig) -> tuple[str, ...]:
    engine = build_engine("m", built)
    assert isinstance(engine, SimulatorEngine)
    return engine.arguments(seat(Path("/tmp")))


def test_a_block_without_a_kind_is_vllm_and_one_with_simulator_is_not() -> None:
    assert isinstance(ModelConfig.from_data({"source": "o/m", "engine": {"seed": 1}}, "test").engine, VllmConfig)
    assert isinstance(model().engine, SimulatorConfig)


@pytest.mark.parametrize(
    ("engine", "parts"),
    [
        pytest.param({"kind": "simulator", "seed": 1}, ("test: engine.seed: unknown key",), id="a key of vLLM alone"),
        pytest.param({"kind": "vllm", "speedup": 2}, ("test: engine.speedup: unknown key",), id="a key of the other"),
        pytest.param({"kind": "tgi"}, ("test: engine.kind", "'vllm' or 'simulator'", "'tgi'"), id="no such kind"),
        pytest.param({"kind": "simulator", "slowdown": 0}, ("test: engine.slowdown", "(got 0)"), id="no time at all"),
        pytest.param("vllm", ("test: engine", "'vllm'"), id="a word instead of a block"),
    ],
)
def test_a_wrong_engine_block_is_explained_by_its_own_kind(engine: object, parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        ModelConfig.from_data({"source": "o/m", "engine": engine}, "test")
    for part in parts:
        assert part in str(caught.value)


def test_a_simulated_model_survives_the_way_to_the_replica() -> None:
    """Serve's arguments leave defaults out; the kind must not be one of them."""
    built = model({"gpu": "H200"}, tensor_parallel=2)
    block = model_application("m", built, 1)["args"]["block"]
    assert ModelConfig.from_data(block, "again") == built
    assert built.gpus == 2


def test_on_device_cpu_it_reserves_no_gpu() -> None:
    assert model({"device": "cpu"}, tensor_parallel=2).gpus == 0


def test_the_exact_arguments() -> None:
    built = model(
        {"quantization": "awq", "max_model_len": 4096, "kv_cache_dtype": "fp8", "speedup": 2, "fail_after_s": 9}
        | {"fail_mode": "hang", "enable_prefix_caching": False, "cold_start_s": 1.5, "slowdown": 3},
        source="builtin:llama-3-70b-shape",
        tensor_parallel=2,
    )
    assert list(arguments(built)) == shlex.split(
        "--model-name m --model builtin:llama-3-70b-shape --host 127.0.0.1 --port 20000 --tensor-parallel-size 2 "
        "--pipeline-parallel-size 1 --gpu L40S --dtype auto --quantization awq --max-model-len 4096 "
        "--gpu-memory-utilization 0.9 --kv-cache-dtype fp8 --speedup 2.0 --slowdown 3.0 --cold-start-s 1.5 "
        "--fail-after-s 9.0 --fail-mode hang --no-enable-prefix-caching"
    )


def test_the_server_takes_every_argument() -> None:
    every = {"max_model_len": 2048, "max_num_seqs": 8, "max_num_batched_tokens": 512, "dtype": "float16"}
    options = read_options(list(arguments(model(every))))
    assert (options.engine.limits.max_num_seqs, options.engine.limits.max_num_batched_tokens) == (8, 512)
    assert (options.engine.limits.max_model_len, options.settings.dtype) == (2048, "float16")


async def test_a_real_process_gives_a_token_and_its_metrics(tmp_path: Path) -> None:
    place = seat(tmp_path, free_port())
    engine = build_engine("m", model({"max_model_len": 2048, "max_num_seqs": 8}))
    process = EngineProcess(f"test-{uuid.uuid4().hex}", engine.launch(place))
    await process.start()
    url = f"http://127.0.0.1:{place.port}"
    client = EngineClient(url, place.api_key, "m")
    try:
        await until_healthy(client, process)
        before = await client.load(engine.read_load, 5.0)
        await client.generate_token(10.0)
        after = await client.load(engine.read_load, 5.0)
        assert (before.output_tokens_total, after.output_tokens_total) == (0, 1)
        assert (after.waiting, after.running, after.kv_use) == (0, 0, 0)
        assert after.prompt_tokens_total is not None
        assert after.prompt_tokens_total > 0
        async with aiohttp.ClientSession() as stranger, stranger.get(f"{url}/v1/models") as reply:
            assert (reply.status, "x-raylane-simulated" in reply.headers) == (401, True)
    finally:
        await client.close()
        await process.stop(5.0)


async def until_healthy(client: EngineClient, process: EngineProcess) -> None:
    deadline_s = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < deadline_s and not process.ended.is_set():
        try:
            if await client.health(2.0):
                return
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(0.1)
    pytest.fail(str(process.failure("did not come up")))


def test_a_mixed_config_becomes_a_simulated_one_with_the_same_sizes() -> None:
    real = load_config(ROOT / "deployments" / "configs" / "l40s-x12-mixed.yaml")
    made = simulated(real, "L40S")
    assert isinstance(made, DeploymentConfig)
    for name, block in made.models.items():
        assert isinstance(block.engine, SimulatorConfig)
        for key in ("quantization", "dtype", "max_model_len", "max_num_seqs"):
            assert getattr(block.engine, key) == getattr(real.models[name].engine, key)
        assert (block.gpus, block.replicas) == (real.models[name].gpus, real.models[name].replicas)
    assert simulated(made, "H200") == made


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine plays a recorded host, with a runtime folder of its own."""
    monkeypatch.setenv("RAYLANE_RUNTIME", str(tmp_path / "runtime"))
    monkeypatch.setenv("RAYLANE_TOPOLOGY", str(RECORDING))
    monkeypatch.delenv("RAYLANE_HOST_NAME", raising=False)
    return RECORDING


def test_leases_take_recorded_gpus_each_once(recorded: Path) -> None:
    hosts = [GpuHost(f"m {i}", "127.0.0.1", 2) for i in range(3)]
    first, second = hosts[0].lease(), hosts[1].lease()
    try:
        held = [*first.choice.uuids, *second.choice.uuids]
        assert len(set(held)) == 4
        assert [first.choice.second_best, second.choice.second_best] == [False, False]
        assert hosts[0].read_gpus(first.choice.uuids) == ()
        assert hosts[0].links(first.choice.uuids).reason
        with pytest.raises(FailedError, match="no GPUs for m 2"):
            hosts[2].lease()
    finally:
        first.close()
        second.close()


def test_the_host_of_the_recording_can_be_named(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = GpuHost("m 1", "127.0.0.1", 1).lease()
    monkeypatch.setenv("RAYLANE_HOST_NAME", "l40s-3")
    third = GpuHost("m 3", "127.0.0.1", 1).lease()
    first.close()
    third.close()
    text = recorded.read_text()
    assert text.index('"l40s-1"') < text.index(first.choice.uuids[0]) < text.index('"l40s-2"')
    assert text.index('"l40s-3"') < text.index(third.choice.uuids[0])


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        pytest.param("RAYLANE_HOST_NAME", "l40s-9", "no host 'l40s-9'", id="a host that it has not"),
        pytest.param("RAYLANE_TOPOLOGY", "/absent.json", "/absent.json: cannot be read", id="no such file"),
    ],
)
def test_a_wrong_recording_is_said(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, part: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(FailedError) as caught:
        GpuHost("m 1", "127.0.0.1", 1).lease()
    assert part in str(caught.value)


def test_vllm_is_refused_on_recorded_gpus_and_allowed_without_gpus(recorded: Path) -> None:
    with pytest.raises(FailedError) as caught:
        build_engine("real", ModelConfig.from_data({"source": "o/m"}, "test"))
    for part in ("model real", "engine.kind vllm", f"RAYLANE_TOPOLOGY={recorded}", "simulator"):
        assert part in str(caught.value)
    cpu = ModelConfig.from_data({"source": "o/m", "engine": {"device": "cpu"}}, "test")
    assert build_engine("real", cpu).kind == "vllm"


def test_an_engine_config_cannot_be_changed() -> None:
    engine = SimulatorConfig(kind="simulator")
    with pytest.raises(ValidationError):
        engine.speedup = 2.0  # type: ignore[misc]
