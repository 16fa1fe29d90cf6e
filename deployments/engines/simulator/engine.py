"""The simulator as an engine: the command line of one simulated replica, and configs turned into simulated ones."""

import sys
from collections.abc import Iterator

from raylane.deployments.config.deployment import DeploymentConfig, ModelConfig
from raylane.deployments.engines.base import EngineKind, Seat
from raylane.deployments.engines.guard import KEY_VARIABLE
from raylane.deployments.engines.load import EngineLoad, PageNames, read_page
from raylane.deployments.engines.process import Launch
from raylane.deployments.engines.simulator.config import SimulatorConfig
from raylane.deployments.slo import SloLimits

NAMES = PageNames(  # vLLM's
    waiting="vllm:num_requests_waiting",
    running="vllm:num_requests_running",
    kv_use=("vllm:kv_cache_usage_perc",),
    prompt_tokens_total="vllm:prompt_tokens_total",
    output_tokens_total="vllm:generation_tokens_total",
    ttft="vllm:time_to_first_token_seconds",
    tpot="vllm:request_time_per_output_token_seconds",
)


class SimulatorEngine:
    """Command builder for raylane's simulator. It shares no GPU: the leased ones are those it pretends to run on."""

    kind = "simulator"

    def __init__(self, name: str, model: ModelConfig) -> None:
        if not isinstance(model.engine, SimulatorConfig):
            raise TypeError(f"model {name}: engine.kind {model.engine.kind} is not the simulator")
        self._name = name
        self._model = model
        self._engine = model.engine

    def launch(self, seat: Seat) -> Launch:
        command = (sys.executable, "-m", "raylane.deployments.simulator.server", *self.arguments(seat))
        return Launch(command, {KEY_VARIABLE: seat.api_key, "CUDA_VISIBLE_DEVICES": ""}, seat.log_path)

    def read_load(self, page: str, limits: SloLimits | None = None) -> EngineLoad:
        return read_page(page, NAMES, limits)

    def arguments(self, seat: Seat) -> tuple[str, ...]:
        """Every flag of the simulator process; see docs/simulator.md."""
        return (
            *("--model-name", self._name, "--model", self._model.source),
            *("--host", seat.host, "--port", str(seat.port)),
            *("--tensor-parallel-size", str(self._model.tensor_parallel)),
            *("--pipeline-parallel-size", str(self._model.pipeline_parallel)),
            *_options(self._engine),
        )


def _options(engine: SimulatorConfig) -> Iterator[str]:
    given: dict[str, str | float | None] = {
        "--gpu": engine.gpu,
        "--dtype": engine.dtype,
        "--quantization": engine.quantization,
        "--max-model-len": engine.max_model_len,
        "--gpu-memory-utilization": engine.gpu_memory_utilization,
        "--max-num-seqs": engine.max_num_seqs,
        "--max-num-batched-tokens": engine.max_num_batched_tokens,
        "--kv-cache-dtype": engine.kv_cache_dtype,
        "--speedup": engine.speedup,
        "--slowdown": engine.slowdown,
        "--cold-start-s": engine.cold_start_s,
        "--fail-after-s": engine.fail_after_s,
        "--fail-mode": engine.fail_mode,
    }
    for flag, value in given.items():
        if value is not None:
            yield from (flag, str(value))
    if engine.enable_prefix_caching is False:
        yield "--no-enable-prefix-caching"


def simulated(config: DeploymentConfig, gpu: str) -> DeploymentConfig:
    """The same deployment with every real engine replaced by a simulated one on this card."""
    models = {name: _simulated_model(model, gpu) for name, model in config.models.items()}
    return config.model_copy(update={"models": models})


def _simulated_model(model: ModelConfig, gpu: str) -> ModelConfig:
    if isinstance(model.engine, SimulatorConfig):
        return model
    sizes = model.engine.sizes()
    played = SimulatorConfig.model_validate(
        {
            "kind": "simulator",
            "gpu": gpu,
            "dtype": sizes.dtype,
            "quantization": sizes.quantization,
            "max_model_len": sizes.max_model_len,
            "gpu_memory_utilization": sizes.memory_of_card * sizes.kv_of_rest,  # a little less for KV than of the rest
            "max_num_seqs": sizes.max_num_seqs,
            "max_num_batched_tokens": sizes.max_num_batched_tokens,
            "kv_cache_dtype": sizes.kv_cache_dtype,
            "enable_prefix_caching": sizes.prefix_caching,
        }
    )
    return model.model_copy(update={"engine": played})


KIND = EngineKind(SimulatorEngine, needs_real_gpus=False)
