"""What speculative decoding adds to an engine's memory: the draft model, from its config.json or else assumed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raylane.deployments.config.builtin import PREFIX
from raylane.deployments.sizing.checkpoint import read_model_facts
from raylane.deployments.sizing.memory import EngineSettings
from raylane.deployments.sizing.model_facts import ModelFacts

WITHOUT_MODEL = frozenset({"ngram", "[ngram]", "ngram_gpu", "suffix", "custom_class"})
# A draft whose config is not at hand. Llama-3.2-1B is 15 % of Llama-3-8B's weights and 25 % of its KV cache; 8B
# beside 70B: 11 % and 40 %.
ASSUMED_WEIGHTS = 0.25
ASSUMED_LAYERS = 0.5


def with_draft(settings: EngineSettings, speculative: Mapping[str, Any] | None, target: ModelFacts) -> EngineSettings:
    """Settings with the draft model of vLLM's speculative config; without one they stay as they are."""
    if speculative is None:
        return settings
    draft = None
    source = speculative.get("model") or ""
    if not {speculative.get("method"), source} & WITHOUT_MODEL:
        own = own_layers(target) if str(speculative.get("method")).endswith("mtp") and not source else None
        draft = own or known_draft(source) or assumed_draft(source, target)
    return replace(settings, draft=draft, speculative_tokens=int(speculative.get("num_speculative_tokens", 0)))


def own_layers(target: ModelFacts) -> ModelFacts | None:
    """The layers for multi-token prediction of the model itself; None where its config.json names none.

    They look tokens up in the model's tables, see all of a request, and are stored as the model is.
    """
    count, (weights, routed) = target.guessing_layers, target.guessing_layer
    if not count:
        return None
    return replace(
        target,
        parameters=count * weights,
        linear_parameters=count * weights,
        expert_parameters=count * routed,
        input_embedding_parameters=0,
        tied_embeddings=True,
        replicated_parameters=count * target.replicated_parameters // target.layers,
        layers=count,
        kv_layers=tuple(replace(each, layers=count) for each in target.kv_layers if each.window is None),
        stored=(),
        notes=(),
    )


def known_draft(source: str) -> ModelFacts | None:
    """Size of a draft in a folder; None for a hub id, which is not looked up."""
    if source.startswith(PREFIX) or (source and Path(source).exists()):
        return read_model_facts(source)
    return None


def assumed_draft(source: str, target: ModelFacts) -> ModelFacts:
    """A quarter of the target's parameters in 16 bits, and half of its layers' KV cache; its note says so."""
    note = (
        f"draft model {source or 'of the method'}: size unknown, counted as {ASSUMED_WEIGHTS:.0%} of the model's "
        f"parameters in 16 bits and {ASSUMED_LAYERS:.0%} of its KV cache"
    )
    return replace(
        target,
        parameters=int(target.parameters * ASSUMED_WEIGHTS),
        linear_parameters=int(target.linear_parameters * ASSUMED_WEIGHTS),
        expert_parameters=int(target.expert_parameters * ASSUMED_WEIGHTS),
        replicated_parameters=int(target.replicated_parameters * ASSUMED_WEIGHTS),
        layers=int(target.layers * ASSUMED_LAYERS),
        kv_layers=tuple(replace(each, layers=int(each.layers * ASSUMED_LAYERS) or 1) for each in target.kv_layers),
        quantization=None,
        notes=(note,),
    )
