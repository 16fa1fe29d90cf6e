"""A model's matrices by the names that vLLM gives them, which checkpoints' lists of skipped parts speak of. Pure."""

from collections.abc import Iterator

from raylane.deployments.sizing.families.shape import LowRanks, Shape
from raylane.deployments.sizing.quantization.linears import (
    REPLICATED,
    Linear,
    anonymous,
    attention,
    experts,
    gated_mlp,
    of_layers,
    tables,
)


def matrices(shape: Shape, prefix: str, *, tied: bool) -> tuple[Linear, ...]:
    """All matrices of a model; without names where those of its family are not known here."""
    outside = tables(prefix, shape.hidden, shape.vocab, tied=tied)
    if shape.family.names is None:
        return (*anonymous(shape.row_widths, shape.hidden, shape.linear, shape.expert_weights), *outside)
    return (*of_layers(shape.layers, prefix, lambda number, name: list(_layer(shape, number, name))), *outside)


def _layer(shape: Shape, number: int, name: str) -> Iterator[Linear]:
    names = shape.family.names
    if names is None:
        raise AssertionError("a family without names has no matrices by name")
    if shape.low_ranks is not None:
        yield from _low_ranks(shape.low_ranks, f"{name}.{names.attention}", shape.hidden, shape.heads)
    else:
        yield from attention(
            name,
            shape.hidden,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            fused=names.fused_qkv,
            block=names.attention,
        )
    if number in shape.plain_layers:
        yield from _mlp(shape, f"{name}.{names.mlp}", "an MLP", shape.dense_width)
        return
    if shape.shared_width:
        yield from _mlp(shape, f"{name}.{names.mixture}.{names.shared}", "a shared expert", shape.shared_width)
    yield experts(f"{name}.{names.mixture}", shape.hidden, shape.expert_width, shape.experts)


def _mlp(shape: Shape, name: str, part: str, width: int) -> Iterator[Linear]:
    if shape.family.gated:
        fused = shape.family.names is not None and shape.family.names.fused_mlp
        yield from gated_mlp(name, part, shape.hidden, width, fused=fused)
        return
    yield Linear(f"{name}.up_proj", part, shape.hidden, (width,))
    yield Linear(f"{name}.down_proj", part, width, (shape.hidden,), by_rows=True)


def _low_ranks(ranks: LowRanks, name: str, hidden: int, heads: int) -> Iterator[Linear]:
    """DeepSeek's attention: what leads into the ranks is on every GPU, what leads out of them is split by heads."""
    down = ranks.cached + ranks.rope
    queries = heads * (ranks.nope + ranks.rope)
    if ranks.queries is None:
        yield Linear(f"{name}.kv_a_proj_with_mqa", REPLICATED, hidden, (down,))
        yield Linear(f"{name}.q_proj", "attention", hidden, (queries,))
    else:
        shards = ("q_a_proj", "kv_a_proj_with_mqa")
        yield Linear(f"{name}.fused_qkv_a_proj", REPLICATED, hidden, (ranks.queries, down), shards)
        yield Linear(f"{name}.q_b_proj", "attention", ranks.queries, (queries,))
        if ranks.index_heads:
            yield Linear(f"{name}.indexer.wq_b", REPLICATED, ranks.queries, (ranks.index_heads * ranks.index_dim,))
            yield Linear(f"{name}.indexer.wk", REPLICATED, hidden, (ranks.index_dim,))
            yield Linear(f"{name}.indexer.weights_proj", REPLICATED, hidden, (ranks.index_heads,))
    yield Linear(f"{name}.kv_b_proj", "attention", ranks.cached, (heads * (ranks.nope + ranks.value),))
    yield Linear(f"{name}.o_proj", "attention", heads * ranks.value, (hidden,), by_rows=True)
