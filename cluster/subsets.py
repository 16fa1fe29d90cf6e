"""For every subset of at most 16 GPUs at once: how well it pairs up, and how slow its slowest link is. Pure.

A subset is an integer whose bit i stands for GPU i. One numpy pass a GPU fills a table of 2^n entries (16 GPUs: 65,536
entries, a few ms), after which choosing GPUs is a lookup.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raylane.cluster.links import FarMatrix, NanosecondMatrix

EXACT_GPUS = 16
FAR_STEPS = 1 << 12
"""Sums are of prices: a time in ns times this, plus how far apart the pair is. So distance decides between equal times
and never outweighs one: no sum of distances comes to this."""

COST_CAP = 1 << 40
SINGLE = 1 << 56
"""Price of a GPU that stays without a partner: above any sum of times, which are capped at 2^40 ns (18 minutes)."""

UNUSABLE = 1 << 54

Table = NDArray[np.int64]


@dataclass(frozen=True)
class SubsetTables:
    """Arrays over all subsets, times in ns, sums as prices (`FAR_STEPS`).

    `singles` GPUs left over by the best pairing (most pairs, then the slowest pair as fast as possible, then the least
    sum of times, then the nearest), `slowest_pair` and `pair_sum` of that pairing; `slowest_link` and `link_sum` over
    all links within the subset (UNUSABLE or more if one of them must not be used); `size` its number of GPUs.
    """

    prices: NanosecondMatrix
    singles: Table
    slowest_pair: Table
    pair_sum: Table
    slowest_link: Table
    link_sum: Table
    size: Table
    by_limit: tuple[tuple[int, Table], ...]

    def pairs(self, subset: int) -> list[tuple[int, int]]:
        """The best pairing of a subset, as index pairs; near neighbours first where pairings are equal."""
        limit = int(self.slowest_pair[subset])
        table = dict(self.by_limit).get(limit)
        return [] if table is None else peel(self.prices, table, limit, subset)


@lru_cache(maxsize=128)
def subset_tables(costs: NanosecondMatrix, far: FarMatrix = ()) -> SubsetTables:
    """All tables of one matrix of pair times (ns, None unusable), `far` deciding between equal ones.

    ValueError above 16 GPUs.
    """
    count = len(costs)
    if count > EXACT_GPUS:
        raise ValueError(f"{count} GPUs; tables are built for at most {EXACT_GPUS}")
    prices = priced(costs, far)
    limits = sorted({price // FAR_STEPS for row in prices for price in row if price is not None})
    by_limit = tuple((limit, pairing_table(prices, limit)) for limit in limits)
    singles, slowest, total = best_pairing(by_limit, popcounts(count))
    slowest_link, link_sum = link_tables(prices)
    return SubsetTables(prices, singles, slowest, total, slowest_link, link_sum, popcounts(count), by_limit)


def priced(costs: NanosecondMatrix, far: FarMatrix) -> NanosecondMatrix:
    """The pairs' prices, None unusable."""
    return tuple(
        tuple(
            None if cost is None else min(cost, COST_CAP) * FAR_STEPS + (far[i][j] if far else 0)
            for j, cost in enumerate(row)
        )
        for i, row in enumerate(costs)
    )


def pairing_table(prices: NanosecondMatrix, limit: int) -> Table:
    """For each subset, the least SINGLE x GPUs without partner + sum of pairs' prices, using pairs up to `limit` ns.

    The highest GPU of a subset is either alone or with one of the others; both leave a smaller subset already solved.
    """
    best = np.zeros(1 << len(prices), dtype=np.int64)
    for top in range(len(prices)):
        smaller = best[: 1 << top]
        block = smaller + SINGLE
        for other in range(top):
            price = prices[top][other]
            if price is not None and price // FAR_STEPS <= limit:
                having = block.reshape(-1, 2, 1 << other)[:, 1, :]
                without = smaller.reshape(-1, 2, 1 << other)[:, 0, :]
                np.minimum(having, without + price, out=having)
        best[1 << top : 2 << top] = block
    return best


def best_pairing(by_limit: tuple[tuple[int, Table], ...], size: Table) -> tuple[Table, Table, Table]:
    """Fold the tables of all limits: the smallest limit that allows as many pairs as no limit at all, and its sum."""
    slowest, total = np.zeros_like(size), np.zeros_like(size)
    if not by_limit:
        return size.copy(), slowest, total
    singles = by_limit[-1][1] // SINGLE
    for limit, table in reversed(by_limit):
        enough = (table // SINGLE == singles) & (singles < size)
        slowest[enough] = limit
        total[enough] = table[enough] % SINGLE
    return singles, slowest, total


def link_tables(prices: NanosecondMatrix) -> tuple[Table, Table]:
    """For each subset, the slowest of all its links in ns and the sum of their prices.

    Both are UNUSABLE or more if one must not be used.
    """
    count = len(prices)
    slowest = np.zeros(1 << count, dtype=np.int64)
    total = np.zeros(1 << count, dtype=np.int64)
    for top in range(count):
        to_top_max = np.zeros(1 << top, dtype=np.int64)
        to_top_sum = np.zeros(1 << top, dtype=np.int64)
        for other in range(top):
            price = prices[top][other]
            half = 1 << other
            slow = UNUSABLE if price is None else price // FAR_STEPS
            to_top_max[half : 2 * half] = np.maximum(to_top_max[:half], slow)
            to_top_sum[half : 2 * half] = to_top_sum[:half] + (UNUSABLE if price is None else price)
        slowest[1 << top : 2 << top] = np.maximum(slowest[: 1 << top], to_top_max)
        total[1 << top : 2 << top] = total[: 1 << top] + to_top_sum
    return slowest, total


def popcounts(count: int) -> Table:
    """Number of GPUs in each subset of `count`."""
    sizes = np.zeros(1 << count, dtype=np.int64)
    for top in range(count):
        sizes[1 << top : 2 << top] = sizes[: 1 << top] + 1
    return sizes


def peel(prices: NanosecondMatrix, table: Table, limit: int, subset: int) -> list[tuple[int, int]]:
    """Read one best pairing back out of a pairing table; of equal ones that which leaves the last GPUs alone."""
    pairs = []
    while subset:
        top = subset.bit_length() - 1
        rest = subset ^ (1 << top)
        if table[rest] + SINGLE == table[subset]:
            subset = rest
            continue
        for other in reversed(range(top)):
            price = prices[top][other]
            if price is None or price // FAR_STEPS > limit or not rest >> other & 1:
                continue
            if table[rest ^ (1 << other)] + price == table[subset]:
                pairs.append((other, top))
                rest ^= 1 << other
                break
        subset = rest
    return pairs[::-1]
