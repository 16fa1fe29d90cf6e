"""From a model's config to its engine."""

from raylane.deployments.builtin import ensure_model
from raylane.deployments.config import ModelConfig
from raylane.deployments.engines.base import Engine
from raylane.deployments.engines.vllm import VllmEngine


def build_engine(name: str, model: ModelConfig) -> Engine:
    """The engine of a model; a builtin model is built into the host's cache on the way."""
    return VllmEngine(name, model, ensure_model(model.source))
