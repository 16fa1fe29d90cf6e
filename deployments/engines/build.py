"""From a model's config to its engine."""

from raylane.cluster.errors import FailedError
from raylane.cluster.recording import recording_in_use
from raylane.deployments.config.builtin import ensure_model
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.engines.base import Engine
from raylane.deployments.engines.simulator.config import SimulatorConfig
from raylane.deployments.engines.simulator.engine import SimulatorEngine
from raylane.deployments.engines.trtllm.config import TensorRtLlmConfig
from raylane.deployments.engines.trtllm.engine import TensorRtLlmEngine
from raylane.deployments.engines.trtllm.programs import program
from raylane.deployments.engines.vllm.engine import VllmEngine


def build_engine(name: str, model: ModelConfig) -> Engine:
    """The engine of a model; a builtin model is built into the host's cache on the way.

    Raises FailedError for an engine that needs real GPUs on a host whose GPUs are a recording, and for TensorRT-LLM
    on a host without it: before anything is leased.
    """
    if isinstance(model.engine, SimulatorConfig):
        return SimulatorEngine(name, model, model.engine)
    recording = recording_in_use()
    if recording is not None and model.gpus:
        raise FailedError(
            f"model {name}: engine.kind {model.engine.kind} needs real GPUs, but RAYLANE_TOPOLOGY={recording} "
            "makes this host's GPUs simulated ones: use engine.kind simulator, or unset RAYLANE_TOPOLOGY"
        )
    if isinstance(model.engine, TensorRtLlmConfig):
        program(name)
        return TensorRtLlmEngine(name, model, ensure_model(model.source))
    return VllmEngine(name, model, ensure_model(model.source))
