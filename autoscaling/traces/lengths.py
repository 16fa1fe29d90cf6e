"""Where the token counts of generated requests come from: another trace, or lognormals."""

import math
from statistics import NormalDist
from typing import Self

import numpy as np
from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from raylane.autoscaling.traces.trace import Tokens, Trace
from raylane.cluster.strict import StrictModel

_Z99 = NormalDist().inv_cdf(0.99)


class LognormalTokens(StrictModel):
    """A lognormal token count given by its mean and its 99th percentile, rounded and clipped to min and max."""

    model_config = ConfigDict(allow_inf_nan=False)

    mean: PositiveFloat
    """Before clipping; what is cut off lowers the mean that comes out."""
    p99: PositiveFloat
    """At least the mean and at most 14.9 times it: no lognormal has a p99 further away. Equal means constant."""
    min: PositiveInt = 1
    max: PositiveInt = 16_384

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.p99 < self.mean:
            raise ValueError(f"p99 {self.p99} is below the mean {self.mean}")
        if math.log(self.p99 / self.mean) > _Z99**2 / 2.0:
            most = self.mean * math.exp(_Z99**2 / 2.0)
            raise ValueError(f"p99 {self.p99} is too far from the mean {self.mean}: a lognormal reaches {most:.0f}")
        return self

    def sigma(self) -> float:
        """Standard deviation of the logarithm: the smaller root of ln(p99 / mean) = z99 sigma - sigma^2 / 2."""
        return _Z99 - math.sqrt(max(_Z99**2 - 2.0 * math.log(self.p99 / self.mean), 0.0))


class Lengths(StrictModel):
    """Prompt and reply lengths, drawn independently.

    The defaults have the means and p99 of the Azure 2023 conversation trace.
    """

    input_tokens: LognormalTokens = Field(default=LognormalTokens(mean=1155, p99=4142))
    output_tokens: LognormalTokens = Field(default=LognormalTokens(mean=211, p99=601))


def drawn_tokens(tokens: LognormalTokens, count: int, rng: np.random.Generator) -> Tokens:
    """`count` independent token counts."""
    sigma = tokens.sigma()
    values = rng.lognormal(math.log(tokens.mean) - sigma**2 / 2.0, sigma, count)
    return np.clip(np.rint(values), tokens.min, tokens.max).astype(np.int32)


def drawn_lengths(lengths: Lengths | Trace, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
    """Prompt and reply lengths of `count` requests; from a trace, whole requests drawn with replacement."""
    if isinstance(lengths, Trace):
        if not len(lengths):
            raise ValueError(f"{lengths.name}: has no request to draw lengths from")
        rows = rng.integers(0, len(lengths), count)
        return lengths.input_tokens[rows], lengths.output_tokens[rows]
    return drawn_tokens(lengths.input_tokens, count, rng), drawn_tokens(lengths.output_tokens, count, rng)
