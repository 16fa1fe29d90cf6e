"""The matrices of a model by the names that vLLM gives them, which skip lists of checkpoints speak of. Pure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

EXPERT = "an expert"
"""The part of a routed expert's matrices."""
REPLICATED = "a low rank"
"""The part of matrices that every GPU of a tensor-parallel replica holds whole."""


class Kind(StrEnum):
    """Classes of vLLM's layers, which compressed-tensors targets by (parts of) their names."""

    LINEAR = "QKVParallelLinear MergedColumnParallelLinear RowParallelLinear"
    EXPERTS = "RoutedExperts"
    HEAD = "ParallelLMHead"
    TABLE = "VocabParallelEmbedding"


@dataclass(frozen=True)
class Linear:
    """One matrix as vLLM holds it: checkpoints store q, k and v apart, vLLM holds them as one."""

    name: str
    part: str
    """What it belongs to, in the words of refusals: "attention", "an MLP", "a shared expert", "an expert"."""
    inputs: int
    outputs: tuple[int, ...]
    """Outputs of each of the checkpoint's matrices that are held as one."""
    shards: tuple[str, ...] = ()
    """Names of those matrices in the checkpoint; () where they are not held as one."""
    by_rows: bool = False
    """Whether tensor parallelism cuts the inputs; else it cuts the outputs. Experts are cut both ways."""
    kind: Kind = Kind.LINEAR
    copies: int = 1
    """Experts of the layer."""

    @property
    def weights(self) -> int:
        """Weights of all copies; an expert's down projection, the last of its outputs, has as many as each other."""
        return self.copies * self.inputs * sum(self.outputs)

    def names(self) -> tuple[str, ...]:
        """The names in the checkpoint of the matrices that are held as this one."""
        before, _, last = self.name.rpartition(".")
        return tuple(f"{before}.{shard}" if before else shard for shard in self.shards or (last,))


def attention(
    prefix: str, hidden: int, heads: int, kv_heads: int, head_dim: int, *, fused: bool, block: str = "self_attn"
) -> Iterator[Linear]:
    """Grouped-query attention of one layer; `fused` where the checkpoint holds q, k and v as one, too."""
    shards = () if fused else ("q_proj", "k_proj", "v_proj")
    widths = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    yield Linear(f"{prefix}.{block}.qkv_proj", "attention", hidden, widths, shards)
    yield Linear(f"{prefix}.{block}.o_proj", "attention", heads * head_dim, (hidden,), by_rows=True)


def gated_mlp(prefix: str, part: str, hidden: int, width: int, *, fused: bool = False) -> Iterator[Linear]:
    """A gated MLP; `fused` where the checkpoint holds gate and up as one, too."""
    shards = () if fused else ("gate_proj", "up_proj")
    yield Linear(f"{prefix}.gate_up_proj", part, hidden, (width, width), shards)
    yield Linear(f"{prefix}.down_proj", part, width, (hidden,), by_rows=True)


def experts(prefix: str, hidden: int, width: int, count: int) -> Linear:
    """All routed experts of one layer, which vLLM quantizes together or not at all."""
    return Linear(f"{prefix}.experts", EXPERT, hidden, (width, width, width), kind=Kind.EXPERTS, copies=count)


def tables(prefix: str, hidden: int, vocab: int, *, tied: bool) -> Iterator[Linear]:
    """The input table and, where it is stored apart, the head."""
    yield Linear(f"{prefix}model.embed_tokens", "the input table", hidden, (vocab,), kind=Kind.TABLE)
    if not tied:
        yield Linear(f"{prefix}lm_head", "the head", hidden, (vocab,), kind=Kind.HEAD)


def of_layers(layers: int, prefix: str, layer: Callable[[int, str], Sequence[Linear]]) -> tuple[Linear, ...]:
    """The matrices of all layers, given those of one by its number and its name."""
    return tuple(item for i in range(layers) for item in layer(i, f"{prefix}model.layers.{i}"))


def anonymous(
    row_widths: Sequence[tuple[str, int]], hidden: int, linear_parameters: int, expert_parameters: int
) -> tuple[Linear, ...]:
    """The matrices of an architecture whose names are not known here: all weights by kind, and the widths that are cut.

    What is there for its width alone has no copies, and so no weights.
    """
    dense = [Linear("", part, width, (hidden,), by_rows=True, copies=0) for part, width in row_widths if part != EXPERT]
    routed = [
        Linear("", part, hidden, (width, width, width), kind=Kind.EXPERTS, copies=0)
        for part, width in row_widths
        if part == EXPERT
    ]
    others = Linear("", "", 1, (linear_parameters - expert_parameters,))
    all_experts = Linear("", EXPERT, 1, (expert_parameters,), kind=Kind.EXPERTS)
    return (*dense, *routed, others, *([all_experts] if expert_parameters else []))
