"""What one replica of a model carries within its SLO. Pure.

A step of an engine takes `step_s` with nothing to do, plus `prompt_token_s` for each prompt token in it, plus
`context_token_s` for each token its decoding requests attend to (deployments/simulator/step_model.py). At arrival
rate r, mean prompt i and mean output o, r x s requests start in each step of length s and r x o x s decode, each over
about i + o / 2 tokens. So

    s = step_s / (1 - r x (i x prompt_token_s + o x (i + o / 2) x context_token_s))

and the largest rate whose steps stay within the time per token that the SLO allows follows in closed form. KV memory
and the largest batch bound it too, and prompts may fill at most a given share of the time so that first tokens do not
wait.
"""

from dataclasses import dataclass, replace

from raylane.deployments.simulator.replica import EngineModel
from raylane.deployments.slo import Slo

PROMPT_SHARE = 0.6  # above it first tokens queue behind other prompts


@dataclass(frozen=True)
class CapacityProfile:
    """One replica's speed and size, and the time per output token (seconds) it may take."""

    step_s: float
    prompt_token_s: float
    context_token_s: float
    kv_tokens: int
    max_num_seqs: int
    tpot_s: float

    def requests_per_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Largest steady arrival rate of such requests that keeps the mean time per token within `tpot_s`.

        A model whose bare step is already longer than `tpot_s` still gets the rate of one request at a time.
        """
        work_s = self.work_s(prompt_tokens, output_tokens)
        by_time = max(0.0, 1.0 - self.step_s / self.tpot_s) / work_s
        stay_s = output_tokens * self.tpot_s  # in service, at the limit
        by_batch = min(self.max_num_seqs, self.kv_tokens / (prompt_tokens + output_tokens)) / stay_s
        by_prompts = PROMPT_SHARE / (prompt_tokens * self.prompt_token_s)
        alone = 1.0 / (output_tokens * self.step_s + work_s)
        return max(alone, min(by_time, by_batch, by_prompts))

    def work_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Seconds one request adds to the steps it takes part in."""
        context = prompt_tokens + output_tokens / 2
        return prompt_tokens * self.prompt_token_s + output_tokens * context * self.context_token_s

    def in_service(self, rate_rps: float, prompt_tokens: float, output_tokens: float) -> float | None:
        """Mean requests in a replica at this rate (Little's law); None at or above what it can ever carry."""
        spare = 1.0 - rate_rps * self.work_s(prompt_tokens, output_tokens)
        return rate_rps * output_tokens * self.step_s / spare if spare > 0.05 else None

    def concurrency(self, prompt_tokens: float, output_tokens: float) -> float:
        """Requests in a replica at the largest rate."""
        return self.requests_per_s(prompt_tokens, output_tokens) * output_tokens * self.tpot_s

    def faster(self, factor: float) -> "CapacityProfile":
        """The profile of a replica whose steps take 1 / `factor` of the time."""
        return replace(
            self,
            step_s=self.step_s / factor,
            prompt_token_s=self.prompt_token_s / factor,
            context_token_s=self.context_token_s / factor,
        )


def capacity_profile(engine: EngineModel, slo: Slo) -> CapacityProfile:
    """The profile computed from a model's step times on its GPUs, and its SLO."""
    steps, limits = engine.steps, engine.limits
    return CapacityProfile(
        step_s=steps.step_s(1, 0),
        prompt_token_s=steps.token_s + steps.token_link_s,
        context_token_s=steps.context_s,
        kv_tokens=limits.kv_tokens,
        max_num_seqs=limits.max_num_seqs,
        tpot_s=slo.tpot_ms / 1e3,
    )
