"""vLLM as a child process: the exact command line and environment of `vllm serve` for one replica.

Everything that differs between vLLM 0.26 and 0.33, or between its CUDA and its CPU build, sits here.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from raylane.deployments.config.builtin import ensure_model
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.engines.base import EngineKind, Seat
from raylane.deployments.engines.guard import KEY_VARIABLE, KeyGuard
from raylane.deployments.engines.load import EngineLoad, PageNames, read_page
from raylane.deployments.engines.process import Launch
from raylane.deployments.engines.vllm.config import VllmConfig
from raylane.deployments.slo import SloLimits

GUARD = f"{KeyGuard.__module__}.{KeyGuard.__qualname__}"


NAMES = PageNames(
    waiting="vllm:num_requests_waiting",
    running="vllm:num_requests_running",
    kv_use=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    prompt_tokens_total="vllm:prompt_tokens_total",
    output_tokens_total="vllm:generation_tokens_total",
    ttft="vllm:time_to_first_token_seconds",
    tpot="vllm:request_time_per_output_token_seconds",
)


class VllmEngine:
    """Command builder for vLLM's OpenAI server."""

    kind = "vllm"

    def __init__(self, name: str, model: ModelConfig, folder: str) -> None:
        if not isinstance(model.engine, VllmConfig):
            raise TypeError(f"model {name}: engine.kind {model.engine.kind} is not vLLM")
        self._name = name
        self._model = model
        self._engine = model.engine
        self._folder = folder  # a local folder or a hub id

    def launch(self, seat: Seat) -> Launch:
        # The module, not the `vllm` script: the CPU build's script looks for a package named vllm and stops.
        command = (sys.executable, "-m", server_module(installed_in()), *self.arguments(seat))
        env = {**self._env(seat), **dict(seat.links.environment), **self._engine.env}
        # The key is in the environment because every user of the host can read a command line.
        return Launch(command, {**env, KEY_VARIABLE: seat.api_key}, seat.log_path)

    def read_load(self, page: str, limits: SloLimits | None = None) -> EngineLoad:
        return read_page(page, NAMES, limits)

    def arguments(self, seat: Seat) -> tuple[str, ...]:
        """`vllm serve` arguments without the model given by position.

        The guard comes last: vLLM puts each middleware around those before it, and ours must be the outermost.
        """
        return (
            *("--model", self._folder, "--served-model-name", self._name),
            *("--host", seat.host, "--port", str(seat.port)),
            *("--uvicorn-log-level", "warning", "--disable-uvicorn-access-log"),
            *_options(self._model, self._engine, custom_all_reduce=seat.links.custom_all_reduce),
            *("--middleware", GUARD),
        )

    def _env(self, seat: Seat) -> dict[str, str]:
        env = {
            "VLLM_PORT": str(seat.inner_ports.start),
            "VLLM_HOST_IP": seat.host,
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",  # the gateway keeps connections for less
            "VLLM_NO_USAGE_STATS": "1",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }
        if Path(self._folder).is_dir():
            env |= {"HF_HUB_OFFLINE": "1"}  # a local folder needs no hub, and a closed network makes it wait
        if self._engine.device == "cpu":
            return env | _cpu_env(self._engine, self._model.tensor_parallel * self._model.pipeline_parallel)
        if seat.gpu_uuids:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(seat.gpu_uuids)
        return env


def installed_in() -> tuple[str, ...]:
    """The folders of the installed vLLM, which is not imported for it (that takes seconds); () without one."""
    spec = find_spec("vllm")
    return () if spec is None else tuple(spec.submodule_search_locations or ())


def server_module(folders: Iterable[str]) -> str:
    """The module to start as the server. From 0.29 on the second one warns that it will go."""
    launcher = Path("entrypoints", "launchers", "api_server", "entry.py")
    if any((Path(folder) / launcher).is_file() for folder in folders):
        return "vllm.entrypoints.launchers.api_server.entry"
    return "vllm.entrypoints.openai.api_server"


def _cpu_env(engine: VllmConfig, processes: int) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(engine.cpu_kv_cache_gb),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines share the cores of a demo machine
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
    }


def _options(model: ModelConfig, engine: VllmConfig, *, custom_all_reduce: bool) -> Iterator[str]:
    yield from ("--tensor-parallel-size", str(model.tensor_parallel))
    if model.pipeline_parallel > 1:
        yield from ("--pipeline-parallel-size", str(model.pipeline_parallel))
    if model.tensor_parallel * model.pipeline_parallel > 1:
        yield from ("--distributed-executor-backend", "mp")
    if engine.device == "cuda":
        yield from ("--gpu-memory-utilization", str(engine.gpu_memory_utilization))
    for flag, value in _values(engine).items():
        if value is not None:
            yield from (flag, str(value))
    if engine.enforce_eager:
        yield "--enforce-eager"
    if engine.trust_remote_code:
        yield "--trust-remote-code"
    if engine.disable_custom_all_reduce or not custom_all_reduce:
        yield "--disable-custom-all-reduce"
    if engine.enable_prefix_caching is not None:
        yield "--enable-prefix-caching" if engine.enable_prefix_caching else "--no-enable-prefix-caching"
    if engine.speculative is not None:
        yield from ("--speculative-config", json.dumps(engine.speculative))
    yield from engine.extra_args


def _values(engine: VllmConfig) -> dict[str, str | int | None]:
    return {
        "--dtype": engine.dtype,
        "--quantization": engine.quantization,
        "--max-model-len": engine.max_model_len,
        "--max-num-seqs": engine.max_num_seqs,
        "--max-num-batched-tokens": engine.max_num_batched_tokens,
        "--block-size": engine.block_size,
        "--kv-cache-dtype": engine.kv_cache_dtype,
        "--load-format": engine.load_format,
        "--seed": engine.seed,
    }


def build(name: str, model: ModelConfig) -> VllmEngine:
    return VllmEngine(name, model, ensure_model(model.source))


KIND = EngineKind(
    build,
    # vLLM 0.29 makes FP8 of 16-bit weights while loading, has no `int8` (its int8_per_channel_weight_only leaves dense
    # layers as they are), and reads AWQ and INT8 from checkpoints.
    words={
        "quantization int8": "quantization compressed-tensors (needs an INT8 checkpoint)",
        "quantization awq": "quantization awq (needs an AWQ checkpoint)",
    },
)
