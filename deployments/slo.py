"""Is a request good? The one place that says so, for one request and for arrays of them. Pure.

A request is good when it completed, its first token came within `ttft_ms` + `ttft_ms_per_input_token` x input tokens,
and its further tokens took `tpot_ms` each at most, in the mean. What could not be measured cannot be shown to be good.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from raylane.cluster.strict import StrictModel

if TYPE_CHECKING:  # commands that judge nothing do not pay for numpy
    import numpy as np
    from numpy.typing import NDArray

Number = TypeVar("Number", float, "NDArray[np.float64]")
Truth = TypeVar("Truth", bool, "NDArray[np.bool_]")
SUCCESSES = frozenset({"stop", "length", "tool_calls", "function_call"})
"""Finish reasons of a whole reply. content_filter is none of them: a part of the reply was held back."""


@dataclass(frozen=True)
class SloLimits:
    """An SLO in seconds: first token within `ttft_s` + `ttft_s_per_token` x input tokens, then `tpot_s` a token."""

    ttft_s: float
    ttft_s_per_token: float
    tpot_s: float

    def allowed_ttft_s(self, input_tokens: Number) -> Number:
        """Longest time to first token, seconds."""
        return self.ttft_s + self.ttft_s_per_token * input_tokens


class Slo(StrictModel):
    """What a good request is: completed, TTFT <= ttft_ms + ttft_ms_per_input_token x input tokens, TPOT <= tpot_ms."""

    ttft_ms: PositiveFloat = Field(description="First token within this many ms, for an empty prompt.")
    ttft_ms_per_input_token: NonNegativeFloat = Field(0.0, description="Added allowance for each prompt token, in ms.")
    tpot_ms: PositiveFloat = Field(description="Mean time of each further output token, in ms.")
    attainment: float = Field(0.99, gt=0, le=1, description="Share of attempted requests that must be good.")

    def limits(self) -> SloLimits:
        """The same in seconds."""
        return SloLimits(self.ttft_ms / 1e3, self.ttft_ms_per_input_token / 1e3, self.tpot_ms / 1e3)


@dataclass(frozen=True)
class Verdict(Generic[Truth]):
    """What a request missed its SLO by; of arrays, arrays of the same shape."""

    late: Truth
    """The first token came after the limit."""
    slow: Truth
    """The further tokens took longer than the limit."""
    unproven: Truth
    """It did not complete, or a time that the SLO limits was not measured."""
    good: Truth


def judge(limits: SloLimits, completed: bool, ttft_s: float, tpot_s: float, input_tokens: float) -> Verdict[bool]:
    """The verdict on one request. NaN seconds: not measured. A reply of one token has `tpot_s` 0."""
    late, slow = ttft_s > limits.allowed_ttft_s(input_tokens), tpot_s > limits.tpot_s
    unproven = not completed or ttft_s != ttft_s or tpot_s != tpot_s
    return Verdict(late, slow, unproven, not (late or slow or unproven))


def judge_all(
    limits: SloLimits,
    completed: "NDArray[np.bool_]",
    ttft_s: "NDArray[np.float64]",
    tpot_s: "NDArray[np.float64]",
    input_tokens: "NDArray[np.float64]",
) -> "Verdict[NDArray[np.bool_]]":
    """The verdicts on many requests, arrays of one length; as `judge` on each."""
    late, slow = ttft_s > limits.allowed_ttft_s(input_tokens), tpot_s > limits.tpot_s
    unproven = ~completed | (ttft_s != ttft_s) | (tpot_s != tpot_s)
    return Verdict(late, slow, unproven, ~(late | slow | unproven))
