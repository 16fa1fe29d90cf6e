"""TensorRT-LLM as a child process: the command line, options file and environment of `trtllm-serve` for one replica.

trtllm-serve knows no API keys and no served model name: it is started through guarded_serve.py, which asks for the key
in its place, and calls a model by its folder's name, so a local folder gets a link of the model's name beside the log.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from raylane.cluster.errors import FailedError
from raylane.deployments.config.builtin import ensure_model
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.engines.base import EngineKind, Seat
from raylane.deployments.engines.guard import KEY_VARIABLE
from raylane.deployments.engines.load import EngineLoad
from raylane.deployments.engines.process import Launch
from raylane.deployments.engines.trtllm.config import TensorRtLlmConfig
from raylane.deployments.engines.trtllm.layout import ENGINE, check_built, is_built
from raylane.deployments.engines.trtllm.load import read_iterations
from raylane.deployments.engines.trtllm.programs import interpreter, program
from raylane.deployments.slo import SloLimits

LAUNCHER = Path(__file__).parents[1] / "guarded_serve.py"


class TensorRtLlmEngine:
    """Command builder for TensorRT-LLM's OpenAI server."""

    kind = "tensorrt-llm"

    def __init__(self, name: str, model: ModelConfig, folder: str) -> None:
        if not isinstance(model.engine, TensorRtLlmConfig):
            raise TypeError(f"model {name}: engine.kind {model.engine.kind} is not TensorRT-LLM")
        self._name = name
        self._model = model
        self._engine = model.engine
        self._folder = folder  # a local folder or a hub id
        check_source(name, model, self._engine, folder)

    def launch(self, seat: Seat) -> Launch:
        """Writes the options file and the link beside the log. FailedError without GPUs or trtllm-serve."""
        check_host(self._name, seat.gpu_uuids)
        place = files_of(seat)
        place.mkdir(parents=True, exist_ok=True)
        options = place / "options.yaml"
        options.write_text(yaml.safe_dump(self.options(), sort_keys=False), encoding="utf-8")
        server = program(self._name)
        guarded = (interpreter(Path(server)), str(LAUNCHER), server)
        command = (*guarded, "serve", *self.arguments(seat, self._link(place), options))
        env = {**self._env(seat), **dict(seat.links.environment), **self._engine.env}
        return Launch(command, {**env, KEY_VARIABLE: seat.api_key}, seat.log_path)

    def read_load(self, page: str, limits: SloLimits | None = None) -> EngineLoad:
        return read_iterations(page)

    def arguments(self, seat: Seat, model: str, options: Path) -> tuple[str, ...]:
        """`trtllm-serve serve` arguments. Every flag is in 1.1.0 and in 1.3.0rc3, under the older of its names."""
        return (
            *(model, "--host", seat.host, "--port", str(seat.port)),
            *("--backend", self._engine.backend, "--log_level", "warning"),
            *("--tp_size", str(self._model.tensor_parallel), "--pp_size", str(self._model.pipeline_parallel)),
            *("--kv_cache_free_gpu_memory_fraction", str(self._engine.kv_cache_free_gpu_memory_fraction)),
            *_values(self._engine),
            *(("--tokenizer", self._folder) if is_built(self._folder) else ()),
            *("--extra_llm_api_options", str(options)),
            *self._engine.extra_args,
        )

    def options(self) -> dict[str, Any]:
        """The options file: what has no flag, or got one only lately."""
        kv_cache = dict(self._engine.llm_api_options.get("kv_cache_config") or {})
        # The file's block may replace the flag's, so the share stands in both.
        kv_cache["free_gpu_memory_fraction"] = self._engine.kv_cache_free_gpu_memory_fraction
        if self._engine.kv_cache_dtype is not None and self._engine.backend == "pytorch":
            kv_cache["dtype"] = self._engine.kv_cache_dtype
        made = {**self._engine.llm_api_options, "kv_cache_config": kv_cache}
        if self._engine.dtype != "auto":
            made["dtype"] = self._engine.dtype
        if self._engine.enable_chunked_prefill:
            made["enable_chunked_prefill"] = True
        if self._engine.backend == "pytorch":
            made["enable_iter_perf_stats"] = True  # without it /metrics stays empty
        return made

    def _link(self, place: Path) -> str:
        """What to give as MODEL: a link of the served name to a local folder, or the hub id."""
        source = Path(self._folder)
        if not source.is_dir():
            return self._folder
        link = place / self._name
        with suppress(FileNotFoundError):
            link.unlink()
        link.symlink_to((source / ENGINE if is_built(self._folder) else source).resolve())
        return str(link)

    def _env(self, seat: Seat) -> dict[str, str]:
        env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(seat.gpu_uuids)}
        if Path(self._folder).is_dir():
            env |= {"HF_HUB_OFFLINE": "1"}  # a local folder needs no hub, and a closed network makes it wait
        return env


def files_of(seat: Seat) -> Path:
    """The folder of one replica's options file and link."""
    return seat.log_path.with_suffix(".trtllm")


def check_host(name: str, gpu_uuids: tuple[str, ...]) -> None:
    """FailedError where TensorRT-LLM cannot run: without a GPU, or without its server."""
    if not gpu_uuids:
        raise FailedError(f"model {name}: engine.kind tensorrt-llm needs an NVIDIA GPU, and this host has none for it")
    program(name)


def check_source(name: str, model: ModelConfig, engine: TensorRtLlmConfig, folder: str) -> None:
    """FailedError when the source is not what the backend runs; hub ids are not looked up."""
    if not Path(folder).is_dir():
        if engine.backend == "tensorrt":
            raise FailedError(
                f"model {name}: backend tensorrt runs a folder of `raylane engine build`; source {folder} is no folder"
            )
        return
    if engine.backend == "pytorch" and is_built(folder):
        raise FailedError(f"model {name}: {folder} holds a built engine, and backend is pytorch: say backend: tensorrt")
    if engine.backend == "tensorrt":
        check_built(name, Path(folder), asked_of(model, engine))


def asked_of(model: ModelConfig, engine: TensorRtLlmConfig) -> dict[str, Any]:
    """What a config asks of a built engine, by the names of its record; None asks nothing."""
    return {
        "tensor_parallel": model.tensor_parallel,
        "pipeline_parallel": model.pipeline_parallel,
        "quantization": engine.quantization,
        "kv_cache_dtype": engine.kv_cache_dtype,
        "max_batch_size": engine.max_batch_size,
        "max_num_tokens": engine.max_num_tokens,
        "max_seq_len": engine.max_seq_len,
    }


def _values(engine: TensorRtLlmConfig) -> Iterator[str]:
    given = {
        "--max_batch_size": engine.max_batch_size,
        "--max_num_tokens": engine.max_num_tokens,
        "--max_seq_len": engine.max_seq_len,
    }
    for flag, value in given.items():
        if value is not None:
            yield from (flag, str(value))
    if engine.trust_remote_code:
        yield "--trust_remote_code"


def build(name: str, model: ModelConfig) -> TensorRtLlmEngine:
    """FailedError on a host without TensorRT-LLM, before anything is built or leased."""
    program(name)
    return TensorRtLlmEngine(name, model, ensure_model(model.source))


KIND = EngineKind(
    build,
    # TensorRT-LLM 1.2 quantizes nothing while loading, and its PyTorch backend has no INT8
    # (nvidia.github.io/TensorRT-LLM/features/quantization.html).
    words={
        "max_model_len": "max_seq_len",
        "max_num_seqs": "max_batch_size",
        "max_num_batched_tokens": "max_num_tokens",
        "quantization fp8": "quantization fp8 (needs an FP8 checkpoint)",
        "quantization int8": "quantization int8 (needs backend tensorrt and an INT8 engine)",
        "quantization awq": "quantization int4_awq (needs an AWQ checkpoint)",
    },
)
