"""Which full blocks of earlier prompts are still in KV memory, and who uses them. Pure."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class PrefixCache:
    """Blocks by hash: in use by running requests, or idle and evictable, the longest unused first.

    `overcount` is how many more blocks the requests hold together than exist, because they share them.
    """

    def __init__(self) -> None:
        self._users: dict[int, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()  # the next to be evicted first
        self.overcount = 0

    def leading_hits(self, hashes: Sequence[int]) -> int:
        """How many blocks from the start are cached."""
        for i, block in enumerate(hashes):
            if block not in self._users and block not in self.idle:
                return i
        return len(hashes)

    def idle_among(self, hashes: Iterable[int]) -> int:
        """How many of these cached blocks nobody uses, so that taking them costs free memory."""
        return sum(1 for block in hashes if block in self.idle)

    def take(self, hashes: Iterable[int]) -> None:
        """One more request uses these cached blocks."""
        for block in hashes:
            if block in self.idle:
                del self.idle[block]
                self._users[block] = 1
            else:
                self._users[block] += 1
                self.overcount += 1

    def store(self, hashes: Iterable[int]) -> list[int]:
        """Offer a request's own finished blocks to others; returns those now shared.

        A block that is already there was computed twice: the second copy stays the request's own.
        """
        stored = []
        for block in hashes:
            if block not in self._users and block not in self.idle:
                self._users[block] = 1
                stored.append(block)
        return stored

    def release(self, hashes: Sequence[int]) -> None:
        """A request no longer uses these blocks; the end of a prompt is evicted before its beginning."""
        for block in reversed(hashes):
            self._users[block] -= 1
            if self._users[block]:
                self.overcount -= 1
            else:
                del self._users[block]
                self.idle[block] = None

    def shrink_to(self, blocks: int) -> None:
        """Evict idle blocks until at most `blocks` are left."""
        while len(self.idle) > max(0, blocks):
            self.idle.popitem(last=False)
