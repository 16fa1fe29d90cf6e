"""How an engine shares its KV cache among layers that see all of a request and layers that see a window. Pure.

As vLLM plans it (0.29: vllm/v1/core/kv_cache_utils.py, get_kv_cache_groups and get_kv_cache_capacity; the blocks of a
request: vllm/v1/kv_cache_interface.py). Layers that see alike share block tables in groups of as many layers as the
rarest kind has. Every block is large enough for any group, so all groups take theirs from one pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raylane.deployments.sizing.families.caches import KvLayers

BLOCK_TOKENS = 16
FEW_MORE = 1.5
"""Where the commonest kind has less than this many times the layers of the rarest, it gives the size of the groups."""


@dataclass(frozen=True)
class CachedLayers:
    """Layers of one GPU that cache alike."""

    layers: int
    token_bytes: float
    """Of one layer."""
    window: int | None


@dataclass(frozen=True)
class KvGroup:
    """Layers that share one block table of a request."""

    block_tokens: int
    window: int | None

    def blocks_of(self, tokens: int, in_flight_tokens: int) -> int:
        """Blocks of a request of `tokens`. A window may start within a block, so it takes one more."""
        if self.window is None:
            return -(-tokens // self.block_tokens)
        kept = min(self.window - 1 + in_flight_tokens, tokens)
        return -(-kept // self.block_tokens) + 1


@dataclass(frozen=True)
class KvLayout:
    """The KV cache of one GPU: blocks of one size that groups of layers take as a request grows."""

    groups: tuple[KvGroup, ...]
    block_bytes: float
    in_flight_tokens: int
    """Tokens scheduled but not yet settled, whose blocks a window keeps for so long."""

    def blocks_of(self, tokens: int) -> int:
        """Blocks that a request of so many tokens takes at most."""
        return sum(group.blocks_of(tokens, self.in_flight_tokens) for group in self.groups)

    def tokens(self, blocks: int, length: int) -> int:
        """Tokens of context in so many blocks, in requests of `length`: what vLLM logs as the size of its cache."""
        return blocks * length // self.blocks_of(length)

    def longest(self, blocks: int, at_most: int) -> int:
        """The longest request, up to `at_most` tokens, that fits in so many blocks; 0 for none."""
        low, high = 0, at_most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks_of(middle) <= blocks else (low, middle - 1)
        return low


def kv_layout(kinds: Sequence[CachedLayers], in_flight_tokens: int) -> KvLayout:
    """The layout for these kinds of layers (at least one)."""
    if len({kind.window for kind in kinds}) == 1:
        group = KvGroup(BLOCK_TOKENS, kinds[0].window)
        size = sum(kind.layers * kind.token_bytes for kind in kinds) * BLOCK_TOKENS
        return KvLayout((group,), size, in_flight_tokens)
    page = max(kind.token_bytes for kind in kinds) * BLOCK_TOKENS
    counts = [kind.layers for kind in kinds]
    size = max(counts) if max(counts) < FEW_MORE * min(counts) else min(counts)
    groups: list[KvGroup] = []
    widest = 0
    for kind in kinds:
        parts = -(-kind.layers // size)
        widest = max(widest, -(-kind.layers // parts))
        groups += [KvGroup(_tokens_in(page, kind), kind.window)] * parts
    return KvLayout(tuple(groups), widest * page, in_flight_tokens)


def _tokens_in(page_bytes: float, kind: CachedLayers) -> int:
    """Tokens of a block: more where a layer's cache is a whole fraction of the largest, else what it would be alone."""
    times = page_bytes / (kind.token_bytes * BLOCK_TOKENS)
    return BLOCK_TOKENS * int(times) if times == int(times) else BLOCK_TOKENS


def on_one_gpu(
    caches: Sequence[KvLayers],
    element_bytes: float,
    tensor_parallel: int,
    pipeline_parallel: int,
    *,
    windows: bool = True,
) -> list[CachedLayers]:
    """A model's caches as the fullest GPU holds them; with `windows` off those that differ keep whole requests.

    With more GPUs than KV heads the heads are repeated.
    """
    alike = len({each.window for each in caches}) == 1
    seen = caches if windows or alike else [replace(each, window=None) for each in caches]
    return [
        CachedLayers(
            -(-each.layers // pipeline_parallel),
            max(1, each.heads // tensor_parallel) * each.bytes_per_token(element_bytes),
            each.window,
        )
        for each in seen
    ]


def merged(kinds: Sequence[CachedLayers]) -> list[CachedLayers]:
    """The same layers; kinds that are alike (the target's and the draft's) as one."""
    found: dict[tuple[float, int | None], int] = {}
    for kind in kinds:
        key = (kind.token_bytes, kind.window)
        found[key] = found.get(key, 0) + kind.layers
    return [CachedLayers(layers, *key) for key, layers in found.items()]


def read_bytes(kinds: Sequence[CachedLayers], context_tokens: float) -> float:
    """What one GPU reads of its KV cache for the next token of a request of so many tokens."""
    return sum(kind.layers * kind.token_bytes * min(context_tokens, kind.window or context_tokens) for kind in kinds)
