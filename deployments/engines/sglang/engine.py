"""SGLang as a child process: the command line and environment of `python -m sglang.launch_server` for one replica.

SGLang's own key would stand on its command line, where every user of the host can read it, and leaves some paths open:
it is started through guarded_serve.py, which asks for raylane's key on every path.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from raylane.cluster.errors import FailedError
from raylane.deployments.config.builtin import ensure_model
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.engines.base import EngineKind, Seat
from raylane.deployments.engines.guard import KEY_VARIABLE
from raylane.deployments.engines.load import EngineLoad, PageNames, read_page
from raylane.deployments.engines.process import Launch
from raylane.deployments.engines.sglang.config import SglangConfig
from raylane.deployments.slo import SloLimits

LAUNCHER = Path(__file__).parents[1] / "guarded_serve.py"
MODULE = "sglang.launch_server"
LOOK_UP = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sglang') is None)"
LOOK_UP_WITHIN_S = 60.0
NAMES = PageNames(
    waiting="sglang:num_queue_reqs",
    running="sglang:num_running_reqs",
    kv_use=("sglang:token_usage",),
    prompt_tokens_total="sglang:prompt_tokens_total",
    output_tokens_total="sglang:generation_tokens_total",
    ttft="sglang:time_to_first_token_seconds",
    # Not in 0.5.5, where slow requests go uncounted: its inter_token_latency_seconds counts tokens, not requests.
    tpot="sglang:request_time_per_output_token_seconds",
)


class SglangEngine:
    """Command builder for SGLang's OpenAI server."""

    kind = "sglang"

    def __init__(self, name: str, model: ModelConfig, folder: str) -> None:
        if not isinstance(model.engine, SglangConfig):
            raise TypeError(f"model {name}: engine.kind {model.engine.kind} is not SGLang")
        if model.pipeline_parallel > 1:
            raise FailedError(
                f"model {name}: pipeline_parallel is {model.pipeline_parallel}, and engine.kind sglang takes 1: every "
                "stage reports the same requests, which would be counted once for each"
            )
        self._name = name
        self._model = model
        self._engine = model.engine
        self._folder = folder  # a local folder or a hub id

    def launch(self, seat: Seat) -> Launch:
        """FailedError without GPUs."""
        if not seat.gpu_uuids:
            raise FailedError(f"model {self._name}: engine.kind sglang needs a GPU, and this host has none for it")
        command = (interpreter(self._name, self._engine), str(LAUNCHER), "-m", MODULE, *self.arguments(seat))
        env = {**self._env(seat), **dict(seat.links.environment), **self._engine.env}
        return Launch(command, {**env, KEY_VARIABLE: seat.api_key}, seat.log_path)

    def read_load(self, page: str, limits: SloLimits | None = None) -> EngineLoad:
        return read_page(page, NAMES, limits)

    def arguments(self, seat: Seat) -> tuple[str, ...]:
        """`sglang.launch_server` arguments. Every flag is in 0.5.5 and in 0.5.23."""
        engine = self._engine
        all_reduce = seat.links.custom_all_reduce and not engine.disable_custom_all_reduce
        return (
            *("--model-path", self._folder, "--served-model-name", self._name),
            *("--host", seat.host, "--port", str(seat.port), "--nccl-port", str(seat.inner_ports.start)),
            *("--tp-size", str(self._model.tensor_parallel)),
            *("--mem-fraction-static", str(engine.mem_fraction_static), "--dtype", engine.dtype),
            *_values(engine),
            *(("--trust-remote-code",) if engine.trust_remote_code else ()),
            *(("--disable-radix-cache",) if engine.disable_radix_cache else ()),
            *(() if all_reduce else ("--disable-custom-all-reduce",)),
            *("--log-level", engine.log_level, "--log-level-http", "warning"),
            # Its warm-up asks paths that the guard closes, and ends the server; a first token proves as much.
            *("--enable-metrics", "--skip-server-warmup"),
            *engine.extra_args,
        )

    def _env(self, seat: Seat) -> dict[str, str]:
        env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(seat.gpu_uuids)}
        if Path(self._folder).is_dir():
            env |= {"HF_HUB_OFFLINE": "1"}  # a local folder needs no hub, and a closed network makes it wait
        return env


def _values(engine: SglangConfig) -> Iterator[str]:
    given = {
        "--quantization": engine.quantization,
        "--context-length": engine.context_length,
        "--max-running-requests": engine.max_running_requests,
        "--chunked-prefill-size": engine.chunked_prefill_size,
        "--kv-cache-dtype": engine.kv_cache_dtype,
        "--random-seed": engine.random_seed,
        "--load-format": engine.load_format,
    }
    for flag, value in given.items():
        if value is not None:
            yield from (flag, str(value))


def interpreter(name: str, engine: SglangConfig) -> str:
    """Path of the Python to run SGLang in. FailedError when this host has none of that name."""
    found = shutil.which(engine.python or sys.executable)
    if found is None:
        raise FailedError(f"model {name}: engine.python {engine.python}: no such program on this host")
    return found


def build(name: str, model: ModelConfig) -> SglangEngine:
    """FailedError on a host whose Python has no SGLang, before anything is built or leased."""
    if not isinstance(model.engine, SglangConfig):
        raise TypeError(f"model {name}: engine.kind {model.engine.kind} is not SGLang")
    python = interpreter(name, model.engine)
    try:
        missing = subprocess.run([python, "-c", LOOK_UP], check=False, timeout=LOOK_UP_WITHIN_S).returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedError(f"model {name}: {python} does not run: {error}") from error
    if missing:
        raise FailedError(
            f"model {name}: engine.kind sglang needs the package sglang (0.5), and {python} has none: install it there "
            "or name the Python that has it as engine.python (docs/engines.md)"
        )
    return SglangEngine(name, model, ensure_model(model.source))


KIND = EngineKind(
    build,
    words={
        "max_model_len": "context_length",
        "max_num_seqs": "max_running_requests",
        "max_num_batched_tokens": "chunked_prefill_size",
        "gpu_memory_utilization": "mem_fraction_static",
        "kv_cache_dtype fp8": "kv_cache_dtype fp8_e4m3",
        "quantization int8": "quantization w8a8_int8 (needs an INT8 checkpoint)",
        "quantization awq": "quantization awq (needs an AWQ checkpoint)",
    },
)
