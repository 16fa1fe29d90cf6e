"""The weights of a model's layers, counted from its config.json. Pure."""

from dataclasses import dataclass

from raylane.cluster.errors import UsageError
from raylane.deployments.sizing.config_json import ConfigJson
from raylane.deployments.sizing.families.family import DenseLayers, Experts, Family, HeadNorms, flag
from raylane.deployments.sizing.quantization.linears import EXPERT

MOST_LAYERS = 10_000
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
SHARED_COUNTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
SHARED_WIDTHS = ("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size")


@dataclass(frozen=True)
class LowRanks:
    """Attention through low ranks (DeepSeek's MLA), with the indexer of its sparse form (V3.2)."""

    cached: int
    """Rank of what is cached of keys and values, without their rotary part."""
    queries: int | None
    """Rank of queries; None: they have none."""
    nope: int
    rope: int
    value: int
    index_heads: int
    index_dim: int

    @classmethod
    def read(cls, text: ConfigJson) -> "LowRanks":
        queries = text.whole_or_none("q_lora_rank")
        sparse = queries is not None and text.whole_or_none("index_topk") is not None
        return cls(
            cached=text.whole("kv_lora_rank"),
            queries=queries,
            nope=text.whole("qk_nope_head_dim"),
            rope=text.whole("qk_rope_head_dim"),
            value=text.whole("v_head_dim"),
            index_heads=text.whole("index_n_heads") if sparse else 0,
            index_dim=text.whole("index_head_dim") if sparse else 0,
        )


@dataclass(frozen=True)
class Attention:
    """The weights of one layer's attention, in parameters."""

    matrices: int
    replicated: int
    """Those of the matrices that every GPU of a tensor-parallel replica holds whole."""
    small: int
    """Norms, biases and sinks: never quantized."""
    row_width: int
    """Inputs of the output matrix."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a config.json that decide sizes, read once."""

    family: Family
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
    attention: Attention
    low_ranks: LowRanks | None
    mlp_bias: bool
    head_bias: bool

    @classmethod
    def read(cls, text: ConfigJson, family: Family) -> "Shape":
        hidden, heads = text.whole("hidden_size"), text.whole("num_attention_heads")
        layers = text.whole("num_hidden_layers")
        if layers > MOST_LAYERS:
            raise UsageError(f"{text.origin}: num_hidden_layers: {layers} are more than any model has")
        width = text.whole("intermediate_size")
        mixture = family.experts
        kv_heads = text.whole_or_none("num_key_value_heads") or heads
        ranks = LowRanks.read(text) if family.latent else None
        head_dim = _head_dim(text, ranks, hidden, heads)
        expert_width = (text.whole_or_none("moe_intermediate_size") or width) if mixture else width
        return cls(
            family=family,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=text.whole("vocab_size"),
            dense_width=text.whole(mixture.dense_width, width) if mixture else width,
            experts=text.whole(text.key_of(EXPERT_COUNTS)) if mixture else 0,
            experts_per_token=text.whole(text.key_of(EXPERTS_PER_TOKEN)) if mixture else 0,
            expert_width=expert_width,
            shared_width=_shared_width(text, mixture, expert_width) if mixture else 0,
            plain_layers=plain_layers(text, mixture.dense, layers) if mixture else frozenset(range(layers)),
            attention=grouped(text, family, hidden, (heads, kv_heads, head_dim))
            if ranks is None
            else latent(text, ranks, hidden, heads),
            low_ranks=ranks,
            mlp_bias=flag(text, family.mlp_bias),
            head_bias=flag(text, family.head_bias),
        )

    @property
    def dense_layers(self) -> int:
        return len(self.plain_layers)

    @property
    def matrices_per_mlp(self) -> int:
        return 3 if self.family.gated else 2

    @property
    def expert_weights(self) -> int:
        each = self.matrices_per_mlp * self.hidden * self.expert_width
        return (self.layers - self.dense_layers) * self.experts * each

    @property
    def linear(self) -> int:
        moe_layers = self.layers - self.dense_layers
        shared = self.matrices_per_mlp * self.hidden * self.shared_width
        dense = self.dense_layers * self.matrices_per_mlp * self.hidden * self.dense_width
        return self.layers * self.attention.matrices + dense + moe_layers * shared + self.expert_weights

    @property
    def guessing_layer(self) -> tuple[int, int]:
        """Weights of a layer for multi-token prediction, which joins two rows, and those of its experts."""
        mlp = self.matrices_per_mlp * self.hidden
        routed = self.experts * mlp * self.expert_width
        rest = mlp * (self.shared_width if self.experts else self.dense_width)
        return self.attention.matrices + rest + routed + 2 * self.hidden * self.hidden, routed

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
        """Inputs of the matrices that tensor parallelism cuts across their rows, by part."""
        widths = {
            "attention": self.attention.row_width,
            "an MLP": self.dense_width if self.dense_layers else 0,
            "a shared expert": self.shared_width,
            EXPERT: self.expert_width if self.experts else 0,
        }
        return tuple((part, width) for part, width in widths.items() if width)

    @property
    def small(self) -> int:
        """Norms, biases and routers of all layers, the last norm and the head's bias: small, and never quantized."""
        norms = self.family.norm_vectors * self.hidden
        per_layer = self.family.norms_per_layer * norms + self.attention.small
        return self.layers * per_layer + self._mlp_small + norms + (self.vocab if self.head_bias else 0)

    @property
    def _mlp_small(self) -> int:
        moe_layers, mixture = self.layers - self.dense_layers, self.family.experts
        ups = self.matrices_per_mlp - 1
        dense = self.dense_layers * (ups * self.dense_width + self.hidden) if self.mlp_bias else 0
        if mixture is None:
            return dense
        router = self.hidden * self.experts + (self.experts if mixture.router_bias else 0)
        router += self.hidden if mixture.shared_gate and self.shared_width else 0
        biases = self.experts * (ups * self.expert_width + self.hidden) if mixture.biases or self.mlp_bias else 0
        biases += ups * self.shared_width + self.hidden if self.mlp_bias and self.shared_width else 0
        return dense + moe_layers * (router + biases)


def grouped(text: ConfigJson, family: Family, hidden: int, heads: tuple[int, int, int]) -> Attention:
    """Attention with query heads, KV heads and a head dimension (Llama's)."""
    queries, keys, dim = heads
    qkv, out = (queries + 2 * keys) * dim, queries * dim
    small = qkv if flag(text, family.qkv_bias) else 0
    small += hidden if flag(text, family.out_bias) else 0
    small += queries if family.sinks else 0
    if flag(text, family.head_norms_if):
        small += {HeadNorms.NONE: 0, HeadNorms.ONE_HEAD: 2 * dim, HeadNorms.ALL_HEADS: (queries + keys) * dim}[
            family.head_norms
        ]
    return Attention(hidden * (qkv + out), 0, small, out)


def latent(text: ConfigJson, ranks: LowRanks, hidden: int, heads: int) -> Attention:
    """Attention through low ranks: what leads into them is on every GPU, what leads out of them is split by heads."""
    query_rank = ranks.queries or 0
    down = hidden * (ranks.cached + ranks.rope + query_rank)
    up = (ranks.queries or hidden) * heads * (ranks.nope + ranks.rope)
    up += ranks.cached * heads * (ranks.nope + ranks.value)
    small = ranks.cached + query_rank + 2 * ranks.index_dim
    if text.values.get("attention_bias"):
        small += ranks.cached + ranks.rope + query_rank + hidden
    indexer = query_rank * ranks.index_heads * ranks.index_dim + hidden * (ranks.index_dim + ranks.index_heads)
    return Attention(down + indexer + up + heads * ranks.value * hidden, down + indexer, small, heads * ranks.value)


def _head_dim(text: ConfigJson, ranks: LowRanks | None, hidden: int, heads: int) -> int:
    if ranks is not None:
        return ranks.nope + ranks.rope
    return text.whole_or_none("head_dim") or text.positive_whole("head_dim", hidden // heads)


def _shared_width(text: ConfigJson, mixture: Experts, expert_width: int) -> int:
    """Width of what all tokens pass beside their experts. UsageError where the family is not known to have it."""
    if mixture.one_shared:
        return expert_width
    counted = {mixture.shared_width, *(SHARED_COUNTS if mixture.shared_count else ())}
    for key in (*SHARED_COUNTS, *SHARED_WIDTHS):
        if key not in counted and text.values.get(key):
            raise UsageError(f"{text.origin}: {key}: shared experts of this architecture cannot be sized")
    if mixture.shared_count:
        key = text.key_of(SHARED_COUNTS)
        return text.whole(key) * expert_width if text.values.get(key) else 0
    return text.whole(mixture.shared_width) if text.values.get(mixture.shared_width) else 0


def plain_layers(text: ConfigJson, rule: DenseLayers, layers: int) -> frozenset[int]:
    """Layers of a mixture model that have one plain MLP instead of experts."""
    match rule:
        case DenseLayers.QWEN:
            plain, every = _numbers(text, "mlp_only_layers"), text.whole_or_none("decoder_sparse_step") or 1
            found = {i for i in range(layers) if i in plain or (i + 1) % every}
        case DenseLayers.FIRST:
            found = _first_layers(text, layers)
        case DenseLayers.INTERLEAVED:
            every = text.whole("interleave_moe_layer_step")
            mixed = _numbers(text, "moe_layers") or range(every - 1, layers, every)
            found = set(range(layers)) - set(mixed)
        case DenseLayers.BETWEEN:
            first, every = _index(text, "moe_layer_start_index", 0), text.whole("moe_layer_interval", 1)
            last = _index(text, "moe_layer_end_index", -1)
            last = layers - 1 if last < 0 else last
            found = {i for i in range(layers) if not first <= i <= last or (i + 1) % every}
        case DenseLayers.NONE:
            found = set()
    return frozenset(found)


def _first_layers(text: ConfigJson, layers: int) -> set[int]:
    types = text.values.get("mlp_layer_types")
    if isinstance(types, list) and len(types) >= layers:
        return {i for i in range(layers) if types[i] == "dense"}
    first, every = _index(text, "first_k_dense_replace", 1), text.whole_or_none("moe_layer_freq") or 1
    return {i for i in range(layers) if i < first or i % every}


def _numbers(text: ConfigJson, key: str) -> list[int]:
    found = text.values.get(key) or []
    if not isinstance(found, list):
        raise UsageError(f"{text.origin}: {key}: not a list (got {found!r})")
    if any(isinstance(each, list | dict) for each in found):
        raise UsageError(f"{text.origin}: {key}: not a list of numbers (got {found!r})")
    return found


def _index(text: ConfigJson, key: str, default: int) -> int:
    """A whole number that may be 0 (or -1, for the last)."""
    found = text.values.get(key, default)
    if not isinstance(found, int) or isinstance(found, bool) or found < -1:
        raise UsageError(f"{text.origin}: {key}: not a whole number (got {found!r})")
    return found
