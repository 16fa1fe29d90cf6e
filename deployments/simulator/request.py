"""What goes into a simulated engine and what comes out."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Request:
    """One request of known size. Times are seconds on the caller's clock."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    """Tokens it will produce; the simulated model never stops earlier."""
    key: int | str = 0
    """The caller's name for it; the engine passes it on."""
    block_hashes: tuple[int, ...] = ()
    """One hash for each full 16-token block of the prompt, each covering everything before it; () shares nothing."""


class Outcome(NamedTuple):
    """A request that was served to its end."""

    request: Request
    first_token_s: float
    finished_s: float
    preemptions: int
    cached_tokens: int
    """Prompt tokens found in the prefix cache when it was last admitted."""

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_token_s - self.request.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (last - first) / (tokens - 1); None for a single token."""
        more = self.request.output_tokens - 1
        return (self.finished_s - self.first_token_s) / more if more else None

    @property
    def latency_s(self) -> float:
        """From arrival to the last token."""
        return self.finished_s - self.request.arrival_s


@dataclass(frozen=True)
class Limits:
    """What one simulated engine can hold and do at once; names and meanings are vLLM's."""

    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs {self.max_num_seqs} is larger than max_num_batched_tokens {self.max_num_batched_tokens}"
            )
        if self.kv_tokens // 16 * 16 < self.max_model_len:
            raise ValueError(f"kv_tokens {self.kv_tokens} hold no request of max_model_len {self.max_model_len}")
