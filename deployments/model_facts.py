"""What a config.json says about size: parameters, layers, KV heads, vocabulary. Pure.

Counts follow the published architectures layer by layer (attention, gated MLP or experts, norms, biases), so they
equal the published parameter counts exactly where those are of the language model alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raylane.cluster.errors import UsageError
from raylane.deployments.checkpoint_format import read_checkpoint
from raylane.deployments.config_json import ConfigJson
from raylane.deployments.context_length import longest_context
from raylane.deployments.quantization.kv_cache import AUTO
from raylane.deployments.quantization.linears import EXPERT, Linear, attention, experts, gated_mlp, of_layers, tables
from raylane.deployments.quantization.stored import Stored


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
    layers: int
    attention_heads: int
    kv_heads: int
    head_dim: int
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
    stored: tuple[Stored, ...] = ()
    """The matrices in the formats of a quantized checkpoint; () for plain weights and where they have no size."""
    kv_cache_dtype: str = AUTO
    """The type of KV cache the checkpoint asks for; `auto` for that of the model."""

    @property
    def head_parameters(self) -> int:
        """Weights of the output head: as many as the input table, stored or tied."""
        return self.vocab_size * self.hidden_size


@dataclass(frozen=True)
class _Variant:
    """What distinguishes one architecture's layer from Llama's."""

    qkv_bias: bool = False
    head_norms: bool = False
    norms_per_layer: int = 2
    tied: bool = False
    fused_experts: str = ""
    fused_matrices: bool = False
    """Whether checkpoints hold q, k and v as one matrix, and gate and up as well."""
    mlp_name: str = "mlp"
    defaults: Mapping[str, int] = field(default_factory=dict)
    """What transformers 5 takes for keys that published files leave out (the architecture's configuration class)."""


def _long(positions: int, **more: int) -> Mapping[str, int]:
    return {"max_position_embeddings": positions, **more}


_GEMMA3 = _long(
    131_072,
    vocab_size=262_208,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
)
_VARIANTS: Mapping[str, _Variant] = {
    "llama": _Variant(defaults=_long(2048)),
    "mistral": _Variant(defaults=_long(131_072, num_key_value_heads=8)),
    "phi3": _Variant(fused_matrices=True, defaults=_long(4096)),
    "qwen2": _Variant(qkv_bias=True, defaults=_long(32_768)),
    "qwen3": _Variant(head_norms=True, defaults=_long(32_768, head_dim=128)),
    "mixtral": _Variant(
        fused_experts="num_local_experts",
        mlp_name="block_sparse_moe",
        defaults=_long(131_072, num_key_value_heads=8),
    ),
    "qwen2_moe": _Variant(qkv_bias=True, fused_experts="num_experts", defaults=_long(32_768)),
    "qwen3_moe": _Variant(head_norms=True, fused_experts="num_experts", defaults=_long(32_768)),
    "gemma": _Variant(tied=True, defaults=_long(8192, head_dim=256)),
    "gemma2": _Variant(norms_per_layer=4, tied=True, defaults=_long(8192, head_dim=256, num_key_value_heads=4)),
    "gemma3_text": _Variant(head_norms=True, norms_per_layer=4, tied=True, defaults=_GEMMA3),
}
_NESTED = {"gemma3": "gemma3_text", "mistral3": "mistral"}


def model_facts(config: Mapping[str, Any], origin: str = "config.json") -> ModelFacts:
    """Count one model from its config.json. `origin` begins every error message.

    Raises UsageError for an architecture that is not counted here, a missing key and a number that is none.
    """
    text, model_type, notes = _language_part(config, origin)
    variant = _VARIANTS[model_type]
    numbers = ConfigJson({**variant.defaults, **text}, origin)
    shape = _Shape.read(numbers, variant)
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", variant.tied)))
    table = shape.vocab * shape.hidden
    stored_tables = table if tied else 2 * table
    outside = stored_tables + shape.layers * shape.small_per_layer + shape.hidden
    prefix = "" if text is config else "language_model."
    linears = (*shape.linears(prefix), *tables(prefix, shape.hidden, shape.vocab, tied=tied))
    checkpoint = read_checkpoint(ConfigJson(config, origin), linears)
    if text.get("sliding_window") and text.get("use_sliding_window", True):
        notes = (*notes, f"layers with a sliding window of {text['sliding_window']} tokens are counted as full ones")
    return ModelFacts(
        model_type=model_type,
        parameters=outside + shape.linear,
        active_parameters=outside + shape.active_linear,
        linear_parameters=shape.linear,
        active_linear_parameters=shape.active_linear,
        expert_parameters=shape.expert_weights,
        input_embedding_parameters=table,
        tied_embeddings=tied,
        layers=shape.layers,
        attention_heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden_size=shape.hidden,
        intermediate_size=shape.active_width,
        row_widths=shape.row_widths,
        vocab_size=shape.vocab,
        max_position_embeddings=longest_context(numbers, model_type),
        experts=max(1, shape.experts),
        experts_per_token=max(1, shape.experts_per_token),
        quantization=checkpoint.quantization,
        group_size=checkpoint.group_size,
        dtype=str(text.get("torch_dtype") or text.get("dtype") or config.get("torch_dtype") or "bfloat16"),
        notes=notes,
        stored=checkpoint.stored,
        kv_cache_dtype=checkpoint.kv_cache_dtype,
    )


def _language_part(config: Mapping[str, Any], origin: str) -> tuple[Mapping[str, Any], str, tuple[str, ...]]:
    declared = str(config.get("model_type", ""))
    if declared in _NESTED:
        text = ConfigJson(config, origin).inner("text_config")
        if text is None:
            raise UsageError(f"{origin}: text_config: required key is missing")
        notes = ("the vision tower is not counted",) if config.get("vision_config") else ()
        return text.values, _NESTED[declared], notes
    if declared not in _VARIANTS:
        known = ", ".join(sorted({*_VARIANTS, *_NESTED}))
        raise UsageError(
            f"{origin}: model_type: {declared!r} is not an architecture that can be sized (known: {known})"
        )
    return config, declared, ()


@dataclass(frozen=True)
class _Shape:
    """The numbers of a config.json that decide sizes, read once."""

    variant: _Variant
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    dense_width: int
    experts: int
    experts_per_token: int
    expert_width: int
    shared_width: int
    plain_layers: frozenset[int]
    """Layers that have one plain MLP; of a mixture the others have experts."""
    all_biases: bool
    mlp_bias: bool

    @classmethod
    def read(cls, text: ConfigJson, variant: _Variant) -> "_Shape":
        hidden, heads = text.whole("hidden_size"), text.whole("num_attention_heads")
        layers = text.whole("num_hidden_layers")
        experts = text.whole(variant.fused_experts) if variant.fused_experts else 0
        dense_width = text.whole("intermediate_size")
        shared = "shared_expert_intermediate_size"
        return cls(
            variant=variant,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=text.whole_or_none("num_key_value_heads") or heads,
            head_dim=text.whole_or_none("head_dim") or text.positive_whole("head_dim", hidden // heads),
            vocab=text.whole("vocab_size"),
            dense_width=dense_width,
            experts=experts,
            experts_per_token=text.whole("num_experts_per_tok") if experts else 0,
            expert_width=text.whole_or_none("moe_intermediate_size") or dense_width,
            shared_width=text.whole(shared) if text.values.get(shared) else 0,
            plain_layers=_plain_layers(text, layers) if experts else frozenset(range(layers)),
            all_biases=bool(text.values.get("attention_bias", False)),
            mlp_bias=bool(text.values.get("mlp_bias", False)),
        )

    @property
    def dense_layers(self) -> int:
        return len(self.plain_layers)

    def linears(self, prefix: str) -> tuple[Linear, ...]:
        """The matrices of all layers, by vLLM's names."""
        return of_layers(self.layers, prefix, self._layer)

    def _layer(self, number: int, name: str) -> list[Linear]:
        fused, mlp = self.variant.fused_matrices, self.variant.mlp_name
        found = list(attention(name, self.hidden, self.heads, self.kv_heads, self.head_dim, fused=fused))
        if number in self.plain_layers:
            return [*found, *gated_mlp(f"{name}.mlp", "an MLP", self.hidden, self.dense_width, fused=fused)]
        if self.shared_width:
            shared = f"{name}.{mlp}.shared_expert"
            found.extend(gated_mlp(shared, "a shared expert", self.hidden, self.shared_width))
        return [*found, experts(f"{name}.{mlp}", self.hidden, self.expert_width, self.experts)]

    @property
    def attention(self) -> int:
        return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim

    @property
    def expert_weights(self) -> int:
        return (self.layers - self.dense_layers) * self.experts * 3 * self.hidden * self.expert_width

    @property
    def linear(self) -> int:
        moe_layers = self.layers - self.dense_layers
        shared = 3 * self.hidden * self.shared_width
        dense = self.dense_layers * 3 * self.hidden * self.dense_width
        return self.layers * self.attention + dense + moe_layers * shared + self.expert_weights

    @property
    def active_linear(self) -> int:
        unused = self.experts - self.experts_per_token
        return self.linear - (self.expert_weights // self.experts * unused if self.experts else 0)

    @property
    def active_width(self) -> int:
        if self.experts:
            return self.experts_per_token * self.expert_width + self.shared_width
        return self.dense_width

    @property
    def row_widths(self) -> tuple[tuple[str, int], ...]:
        widths = {
            "attention": self.heads * self.head_dim,
            "an MLP": self.dense_width if self.dense_layers else 0,
            "a shared expert": self.shared_width,
            EXPERT: self.expert_width if self.experts else 0,
        }
        return tuple((part, width) for part, width in widths.items() if width)

    @property
    def small_per_layer(self) -> int:
        """Norms, biases and routers: small, and never quantized."""
        norms = self.variant.norms_per_layer * self.hidden + (2 * self.head_dim if self.variant.head_norms else 0)
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        biases = qkv if self.variant.qkv_bias else (qkv + self.hidden if self.all_biases else 0)
        biases += 2 * self.dense_width + self.hidden if self.mlp_bias else 0
        router = self.hidden * self.experts + (self.hidden if self.shared_width else 0)
        return norms + biases + router


def _plain_layers(text: ConfigJson, layers: int) -> frozenset[int]:
    """Layers of a mixture model that have one plain MLP instead of experts."""
    plain, every = text.values.get("mlp_only_layers") or [], text.whole_or_none("decoder_sparse_step") or 1
    if not isinstance(plain, list):
        raise UsageError(f"{text.origin}: mlp_only_layers: not a list (got {plain!r})")
    return frozenset(i for i in range(layers) if i in plain or (i + 1) % every)
