"""The `scaling` block of a deployment config: who decides how many replicas each model has, and how.

Config only; raylane.autoscaling acts on it, and checks `policy` and `knobs`: it has the rules.
"""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from raylane.cluster.prices import ShippedGpuPrice, gpu_hour_usd, one_price_at_most, shipped_prices
from raylane.cluster.strict import StrictModel

SharingName = Literal["by-loss", "in-turn"]


class ScalingConfig(StrictModel):
    """How replica counts follow the load. Changing it restarts nothing."""

    policy: str = Field(
        "slo",
        description="slo: enough replicas for the models' slo; fixed: nobody scales; the others: see autoscaling.md.",
    )
    knobs: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Settings of that policy, each with a default; an unknown name is an error."
    )
    sharing: SharingName | None = Field(
        None,
        description="Where GPUs are short: by-loss to the model that loses most, in-turn; None: as the policy has it.",
    )
    mode: Literal["act", "shadow"] = Field(
        "act", description="shadow changes nothing: it logs what it would do and adds up what that would have saved."
    )
    decide_every_s: PositiveFloat = Field(
        5.0, description="Seconds between decisions; a request for a model without replicas does not wait for the next."
    )
    warm_up_s: NonNegativeFloat = Field(
        60.0,
        description="For this long after its start it knows little: it wakes, clears queues, and does not shrink.",
    )
    fleet_gpus: PositiveInt | None = Field(
        None, description="GPUs the fleet can grow to where Ray's cluster autoscaler adds hosts; None: those there now."
    )
    moves: bool = Field(
        False, description="Let a replica of several GPUs wait while a single moves out of its domain (raylane move)."
    )
    price: ShippedGpuPrice | None = Field(
        None,
        description="A GPU-hour, for savings and idle replicas: a key of the price book (h200-nebius) or dollars; "
        "None: no dollars are stated.",
    )
    usd_per_gpu_hour: NonNegativeFloat | None = Field(None, description="The older name of `price`, dollars alone.")
    idle_after_s: PositiveFloat = Field(
        86_400.0, description="A replica whose GPUs stay under 10 % for this long is named as idle, with its cost."
    )

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        one_price_at_most(self.price, self.usd_per_gpu_hour)
        return self

    @property
    def gpu_hour_usd(self) -> float | None:
        """Dollars per GPU-hour; None when no price is given."""
        return self.usd_per_gpu_hour if self.price is None else gpu_hour_usd(self.price, shipped_prices())


class CapacityConfig(StrictModel):
    """What one replica can do, for models whose speed cannot be computed from a config.json and a known card."""

    step_ms: PositiveFloat = Field(description="A step with one request: the time per output token on an idle engine.")
    prompt_token_ms: PositiveFloat = Field(description="Added to a step by each prompt token in it: 1 / prefill rate.")
    context_token_ms: NonNegativeFloat = Field(
        description="Added to a step by each token of context that is attended to; 0.0001 to 0.001 on usual cards."
    )
    kv_tokens: PositiveInt = Field(description="Tokens the KV cache holds; vLLM prints it when it starts.")
    max_num_seqs: PositiveInt = Field(256, description="Largest batch.")
