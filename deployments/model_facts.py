"""What a config.json says about size: parameters, layers, KV heads, vocabulary. Pure.

Counts follow the published architectures layer by layer (attention, gated MLP or experts, norms, biases), so they
equal the published parameter counts exactly where those are of the language model alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raylane.cluster.errors import UsageError


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
    vocab_size: int
    max_position_embeddings: int
    experts: int
    """Routed experts per layer; 1 for a dense model."""
    experts_per_token: int
    quantization: str | None
    """What the checkpoint itself says (`awq`, `gptq`, `fp8`, `int8`, ...); None for plain weights.

    Of formats that nothing here can size it is their name, which `weight_format` refuses.
    """
    dtype: str
    notes: tuple[str, ...]
    """What the counts leave out or overstate for this model."""

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


_VARIANTS: Mapping[str, _Variant] = {
    "llama": _Variant(),
    "mistral": _Variant(),
    "phi3": _Variant(),
    "qwen2": _Variant(qkv_bias=True),
    "qwen3": _Variant(head_norms=True),
    "mixtral": _Variant(fused_experts="num_local_experts"),
    "qwen2_moe": _Variant(qkv_bias=True, fused_experts="num_experts"),
    "qwen3_moe": _Variant(head_norms=True, fused_experts="num_experts"),
    "gemma": _Variant(tied=True),
    "gemma2": _Variant(norms_per_layer=4, tied=True),
    "gemma3_text": _Variant(head_norms=True, norms_per_layer=4, tied=True),
}
_NESTED = {"gemma3": "gemma3_text", "mistral3": "mistral"}


def model_facts(config: Mapping[str, Any], origin: str = "config.json") -> ModelFacts:
    """Count one model from its config.json. `origin` begins every error message.

    Raises UsageError for an architecture that is not counted here and for a missing key.
    """
    text, model_type, notes = _language_part(config, origin)
    shape = _Shape.read(text, _VARIANTS[model_type], origin)
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", shape.variant.tied)))
    table = shape.vocab * shape.hidden
    stored_tables = table if tied else 2 * table
    outside = stored_tables + shape.layers * shape.small_per_layer + shape.hidden
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
        vocab_size=shape.vocab,
        max_position_embeddings=_positions(text),
        experts=max(1, shape.experts),
        experts_per_token=max(1, shape.experts_per_token),
        quantization=checkpoint_quantization(config),
        dtype=str(text.get("torch_dtype") or text.get("dtype") or config.get("torch_dtype") or "bfloat16"),
        notes=notes,
    )


def checkpoint_quantization(config: Mapping[str, Any]) -> str | None:
    """The weight format a quantized checkpoint declares in its config.json; None for plain weights.

    Where the bits are others than a known format's, the answer is a name that says so ("3-bit gptq").
    """
    declared = config.get("quantization_config")
    if not isinstance(declared, Mapping):
        return None
    method = str(declared.get("quant_method", ""))
    if method in {"gptq", "awq"}:
        bits = declared.get("bits", declared.get("w_bit", 4))
        return {"4": method, "8": "int8"}.get(str(bits), f"{bits}-bit {method}")
    if method == "bitsandbytes":
        return "int8" if declared.get("load_in_8bit") else method
    if method == "modelopt":
        algorithm = str(_object(declared, "quantization", declared).get("quant_algo") or "without quant_algo")
        return _MODELOPT.get(algorithm.upper(), f"modelopt {algorithm}")
    return _compressed(declared) if method == "compressed-tensors" else method or None


def _object(of: object, key: str, otherwise: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """The object at a key; `otherwise`, or an empty one, where there is none."""
    found = of.get(key) if isinstance(of, Mapping) else None
    return found if isinstance(found, Mapping) else otherwise or {}


def _compressed(declared: Mapping[str, Any]) -> str | None:
    """The one format of all groups of a compressed-tensors checkpoint; None where only the KV cache has one."""
    if not declared.get("config_groups") and _object(declared, "kv_cache_scheme"):
        return None
    groups = [_object(group, "weights") for group in _object(declared, "config_groups").values()]
    found = {(str(weights.get("num_bits")), str(weights.get("type", "int"))) for weights in groups if weights}
    if len(found) == 1 and (only := next(iter(found))) in _COMPRESSED:
        return _COMPRESSED[only]
    stored = " and ".join(sorted(f"{bits}-bit {kind}" for bits, kind in found)) or "no weights named"
    return f"compressed-tensors ({stored})"


_COMPRESSED = {("4", "int"): "int4", ("8", "int"): "int8", ("8", "float"): "fp8"}
# Names of vLLM 0.29 (quantization/modelopt.py) and of TensorRT-LLM's QuantAlgo, without the 4-bit floats.
_MODELOPT = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8",
    "FP8_BLOCK_SCALES": "fp8",
    "W4A16_AWQ": "awq",
    "W8A8_SQ_PER_CHANNEL": "int8",
}


def _language_part(config: Mapping[str, Any], origin: str) -> tuple[Mapping[str, Any], str, tuple[str, ...]]:
    declared = str(config.get("model_type", ""))
    text = config.get("text_config")
    notes: tuple[str, ...] = ()
    if declared in _NESTED and isinstance(text, Mapping):
        if config.get("vision_config"):
            notes = ("the vision tower is not counted",)
        return text, _NESTED[declared], notes
    if declared not in _VARIANTS:
        known = ", ".join(sorted({*_VARIANTS, *_NESTED}))
        raise UsageError(
            f"{origin}: model_type: {declared!r} is not an architecture that can be sized (known: {known})"
        )
    return config, declared, notes


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
    dense_layers: int
    all_biases: bool
    mlp_bias: bool

    @classmethod
    def read(cls, text: Mapping[str, Any], variant: _Variant, origin: str) -> "_Shape":
        def need(key: str) -> int:
            if key not in text:
                raise UsageError(f"{origin}: {key}: required key is missing")
            return int(text[key])

        hidden, heads, layers = need("hidden_size"), need("num_attention_heads"), need("num_hidden_layers")
        experts = need(variant.fused_experts) if variant.fused_experts else 0
        dense_width = need("intermediate_size")
        return cls(
            variant=variant,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or hidden // heads),
            vocab=need("vocab_size"),
            dense_width=dense_width,
            experts=experts,
            experts_per_token=need("num_experts_per_tok") if experts else 0,
            expert_width=int(text.get("moe_intermediate_size") or dense_width),
            shared_width=int(text.get("shared_expert_intermediate_size") or 0),
            dense_layers=_dense_layers(text, layers) if experts else layers,
            all_biases=bool(text.get("attention_bias", False)),
            mlp_bias=bool(text.get("mlp_bias", False)),
        )

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
    def small_per_layer(self) -> int:
        """Norms, biases and routers: small, and never quantized."""
        norms = self.variant.norms_per_layer * self.hidden + (2 * self.head_dim if self.variant.head_norms else 0)
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        biases = qkv if self.variant.qkv_bias else (qkv + self.hidden if self.all_biases else 0)
        biases += 2 * self.dense_width + self.hidden if self.mlp_bias else 0
        router = self.hidden * self.experts + (self.hidden if self.shared_width else 0)
        return norms + biases + router


def _dense_layers(text: Mapping[str, Any], layers: int) -> int:
    """Layers of a mixture model that have one plain MLP instead of experts."""
    plain = set(text.get("mlp_only_layers") or ())
    every = int(text.get("decoder_sparse_step") or 1)
    return sum(1 for i in range(layers) if i in plain or (i + 1) % every)


def _positions(text: Mapping[str, Any]) -> int:
    """Longest context: a scaled rotary embedding stretches what the config says, except where it is counted already."""
    positions = int(text.get("max_position_embeddings", 8192))
    scaling = text.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "yarn":
        return int(scaling.get("original_max_position_embeddings", positions) * float(scaling.get("factor", 1)))
    return int(positions * float(scaling.get("factor", 1))) if kind in {"linear", "dynamic"} else positions
