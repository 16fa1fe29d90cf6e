"""From a model's config to its engine."""

from raylane.cluster.errors import FailedError
from raylane.cluster.recording import TOPOLOGY_VARIABLE, recording_in_use
from raylane.deployments.config.deployment import ModelConfig
from raylane.deployments.engines.base import Engine, kind_of


def build_engine(name: str, model: ModelConfig) -> Engine:
    """The engine of a model; a builtin model is built into the host's cache on the way.

    Raises FailedError for an engine that needs real GPUs on a host whose GPUs are a recording, and for one that this
    host has not: before anything is leased.
    """
    kind, recording = kind_of(model.engine.kind), recording_in_use()
    if kind.needs_real_gpus and recording is not None and model.gpus:
        raise FailedError(
            f"model {name}: engine.kind {model.engine.kind} needs real GPUs, but {TOPOLOGY_VARIABLE}={recording} "
            f"makes this host's GPUs simulated ones: use engine.kind simulator, or unset {TOPOLOGY_VARIABLE}"
        )
    return kind.build(name, model)
