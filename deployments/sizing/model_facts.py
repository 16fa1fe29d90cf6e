"""What a config.json says about size: parameters, layers, KV heads, vocabulary. Pure.

Counts follow the published architectures layer by layer (attention, MLP or experts, norms, biases; see `families`), so
they equal the published parameter counts exactly where those are of the language model alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raylane.deployments.sizing.checkpoint_format import read_checkpoint
from raylane.deployments.sizing.config_json import ConfigJson
from raylane.deployments.sizing.context_length import longest_context
from raylane.deployments.sizing.families.caches import KvLayers, chunk_note, kv_layers, window_notes
from raylane.deployments.sizing.families.language import language_part
from raylane.deployments.sizing.families.matrices import matrices
from raylane.deployments.sizing.families.shape import Shape
from raylane.deployments.sizing.quantization.kv_cache import AUTO
from raylane.deployments.sizing.quantization.stored import Stored


@dataclass(frozen=True)
class ModelFacts:
    """The size of one language model, in parameters (not bytes)."""

    model_type: str
    parameters: int
    active_parameters: int
    """Parameters one token passes through; fewer than `parameters` only for mixtures of experts."""
    linear_parameters: int
    """Weights of the layers' matrices, all experts: what quantization makes smaller."""
    active_linear_parameters: int
    """Weights of the layers' matrices one token is multiplied with."""
    expert_parameters: int
    """The part of `linear_parameters` that sits in routed experts; 0 for a dense model."""
    input_embedding_parameters: int
    """The table tokens are looked up in; a decode step reads only a few of its rows."""
    tied_embeddings: bool
    """True when the output head is the input table, which is then stored once and read in every step."""
    replicated_parameters: int
    """The part of `linear_parameters` that every GPU of a tensor-parallel replica holds whole."""
    layers: int
    attention_heads: int
    kv_heads: int
    """1 where a latent vector is cached instead."""
    head_dim: int
    kv_layers: tuple[KvLayers, ...]
    """What the layers cache, by how much of a request they see."""
    hidden_size: int
    intermediate_size: int
    """Width of the MLP one token sees: of all its experts together in a mixture."""
    row_widths: tuple[tuple[str, int], ...]
    """Inputs of the matrices that tensor parallelism cuts across their rows, where groups of weights lie; by part."""
    vocab_size: int
    max_position_embeddings: int
    experts: int
    """Routed experts per layer; 1 for a dense model."""
    experts_per_token: int
    quantization: str | None
    """What the checkpoint itself says (`awq`, `gptq`, `fp8`, `int8`, ...); None for plain weights.

    Of formats that nothing here can size it is their name, which `weight_format` refuses.
    """
    group_size: int
    """Weights that share one scale where the format has groups; -1: a whole column shares one."""
    dtype: str
    notes: tuple[str, ...]
    """What the counts leave out or overstate for this model."""
    guessing_layers: int = 0
    """Layers for multi-token prediction, which are not among the others: an engine loads them only as a draft."""
    guessing_layer: tuple[int, int] = (0, 0)
    """Weights of one of them, and those of its experts."""
    stored: tuple[Stored, ...] = ()
    """The matrices in the formats of a quantized checkpoint; () for plain weights and where they have no size."""
    kv_cache_dtype: str = AUTO
    """The type of KV cache the checkpoint asks for; `auto` for that of the model."""

    @property
    def head_parameters(self) -> int:
        """Weights of the output head: as many as the input table, stored or tied."""
        return self.vocab_size * self.hidden_size


def model_facts(config: Mapping[str, Any], origin: str = "config.json") -> ModelFacts:
    """Count one model from its config.json. `origin` begins every error message.

    Raises UsageError for an architecture that is not counted here, a missing key and a number that is none.
    """
    part = language_part(config, origin)
    text = part.values
    numbers = ConfigJson({**part.family.defaults, **text}, origin)
    shape = Shape.read(numbers, part.family)
    caches = kv_layers(numbers, part.family, shape.layers, shape.kv_heads, shape.head_dim)
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", part.family.tied)))
    table = shape.vocab * shape.hidden
    outside = (table if tied else 2 * table) + shape.small
    prefix = "" if text is config and not config.get("vision_config") else "language_model."
    checkpoint = read_checkpoint(ConfigJson(config, origin), matrices(shape, prefix, tied=tied))
    return ModelFacts(
        model_type=part.model_type,
        parameters=outside + shape.linear,
        active_parameters=outside + shape.active_linear,
        linear_parameters=shape.linear,
        active_linear_parameters=shape.active_linear,
        expert_parameters=shape.expert_weights,
        input_embedding_parameters=table,
        tied_embeddings=tied,
        replicated_parameters=shape.layers * shape.attention.replicated,
        layers=shape.layers,
        attention_heads=shape.heads,
        kv_heads=caches[0].heads,
        head_dim=shape.head_dim,
        kv_layers=caches,
        hidden_size=shape.hidden,
        intermediate_size=shape.active_width,
        row_widths=shape.row_widths,
        vocab_size=shape.vocab,
        max_position_embeddings=longest_context(numbers, part.model_type),
        experts=max(1, shape.experts),
        experts_per_token=max(1, shape.experts_per_token),
        quantization=checkpoint.quantization,
        group_size=checkpoint.group_size,
        dtype=str(
            next((of[key] for of in (text, config) for key in ("torch_dtype", "dtype") if of.get(key)), "bfloat16")
        ),
        notes=(*part.notes, *window_notes(caches), *chunk_note(numbers)),
        guessing_layers=part.guessing_layers,
        guessing_layer=shape.guessing_layer,
        stored=checkpoint.stored,
        kv_cache_dtype=checkpoint.kv_cache_dtype,
    )
