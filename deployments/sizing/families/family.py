"""What distinguishes one family's layer from Llama's. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from raylane.deployments.sizing.config_json import ConfigJson

Flag = bool | str
"""True, False, or the key of the config.json that says so."""


class HeadNorms(StrEnum):
    """Norms of queries and keys, in weights of each."""

    NONE = "none"
    ONE_HEAD = "one head"
    ALL_HEADS = "all heads"


class Locals(StrEnum):
    """Which layers see a window only, where the config does not list the types of its layers."""

    EVERY = "every layer, where the config has a window"
    NEVER = "no layer, whatever the config says"
    EVEN = "every second layer, from the first on"
    ALL_BUT_LAST_OF_PATTERN = "all but the last of each pattern of layers"
    ALL_BUT_FIRST_OF_PATTERN = "all but the first of each pattern of layers"
    ABOVE_MAX_WINDOW_LAYERS = "those above max_window_layers, which vLLM serves only when that is all or none"


class DenseLayers(StrEnum):
    """Which layers of a mixture have one plain MLP instead of experts."""

    NONE = "none"
    QWEN = "mlp_only_layers, decoder_sparse_step"
    FIRST = "first_k_dense_replace, moe_layer_freq or mlp_layer_types"
    INTERLEAVED = "moe_layers or interleave_moe_layer_step"
    BETWEEN = "moe_layer_start_index, _end_index and _interval"


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture's layers."""

    shared_width: str = ""
    """Key of the width of the shared expert, ..."""
    shared_count: bool = False
    """... or: n_shared_experts of the width of a routed one (one of them where `one_shared`)."""
    one_shared: bool = False
    shared_gate: bool = False
    router_bias: bool = False
    biases: bool = False
    """Each expert's matrices have biases."""
    dense: DenseLayers = DenseLayers.NONE
    dense_width: str = "intermediate_size"


@dataclass(frozen=True)
class Names:
    """What vLLM calls the parts of a layer, and which of its fused matrices checkpoints hold fused as well."""

    attention: str = "self_attn"
    mlp: str = "mlp"
    mixture: str = "mlp"
    """The block of routed and shared experts."""
    shared: str = "shared_expert"
    fused_qkv: bool = False
    fused_mlp: bool = False


@dataclass(frozen=True)
class Family:
    """One architecture, as it differs from Llama's."""

    qkv_bias: Flag = "attention_bias"
    out_bias: Flag = "attention_bias"
    mlp_bias: Flag = "mlp_bias"
    head_norms: HeadNorms = HeadNorms.NONE
    head_norms_if: Flag = True
    norms_per_layer: int = 2
    norm_vectors: int = 1
    """1: a scale; 2: a scale and a bias; 0: norms without weights."""
    gated: bool = True
    """The MLP has a gate beside its up projection: three matrices instead of two."""
    tied: bool = False
    sinks: bool = False
    head_bias: Flag = False
    latent: bool = False
    """Attention over a compressed (latent) cache: DeepSeek's MLA."""
    latent_cache: bool = True
    """vLLM caches the latent vector; False where it caches whole heads all the same (MiniCPM3)."""
    experts: Experts | None = None
    names: Names | None = Names()
    """None: not known here."""
    local: Locals = Locals.EVERY
    pattern: int = 0
    pattern_key: str = "sliding_window_pattern"
    window_extra: int = 0
    """Tokens by which vLLM's window is longer than the config's."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers 5 takes for keys that published files leave out (the architecture's configuration class)."""


def flag(text: ConfigJson, said: Flag) -> bool:
    """A property of the family that is fixed or stands in the config."""
    return said if isinstance(said, bool) else bool(text.values.get(said, False))
