"""A floor from a forecast and steps of one from the queue above it: NVIDIA Dynamo's planner, both modes on.

Every three minutes: floor = ceil(forecast rate / (largest rate of a replica x target_load)). Every decision: the time
to the first token is estimated for each ready replica from its queue, as chunks of prompts between steps of decoding;
one replica more when all estimates are above the SLO, one fewer when all are below 0.8 of it, and nothing while a
replica starts or drains, so one that starts is supply. The last replica stays.
Facts: Dynamo docs/design-docs/planner-design.md.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple

from pydantic import NonNegativeFloat, PositiveFloat

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation, Phase, ReplicaObservation
from raylane.autoscaling.rules.demand import History, Mix, mix, rate_over, remember
from raylane.autoscaling.rules.entry import RuleEntry, Space
from raylane.autoscaling.rules.readings import at_zero
from raylane.autoscaling.share import in_turn
from raylane.autoscaling.spec import ModelSpec

CHUNK_TOKENS = 2048  # prompt tokens of one step, vLLM's default


class PlannerMemory(NamedTuple):
    """The floor in force, when it was made, and the rate it was made from."""

    planned_s: float
    floor: int = 0
    rate_rps: float | None = None
    history: History = ()


@dataclass(frozen=True)
class Planner:
    """Intervals and sensitivity are Dynamo's."""

    plan_every_s: PositiveFloat = 180.0
    forecast: Literal["constant", "linear"] = "constant"
    """"constant": the mean rate of the last interval. "linear": goes on as from the interval before to the last."""
    target_load: PositiveFloat = 1.0
    """Share of the profile's largest rate that the floor fills."""
    down_sensitivity: NonNegativeFloat = 0.8
    """Share of the SLO's time to the first token below which a replica may go."""

    def propose(
        self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: PlannerMemory | None
    ) -> tuple[Proposal, PlannerMemory]:
        """The floor, or one step above or towards it."""
        past = memory if memory is not None and at_s >= memory.planned_s else PlannerMemory(at_s)
        past = past._replace(history=remember(past.history, seen, at_s))
        if at_s - past.planned_s >= self.plan_every_s:
            past = self._plan(past, spec, at_s)
        if seen.target == 0:
            return at_zero(seen), past
        if seen.target < past.floor:
            return Proposal(past.floor, Reason.DEMAND, detail=f"forecast {past.rate_rps} req/s"), past
        step, reason, detail = self._feedback(spec, seen, mix(past.history) if past.history else Mix(512.0, 192.0))
        replicas = max(1, past.floor, seen.target + step)
        if replicas == seen.target and step:
            reason = Reason.STEADY
        return Proposal(replicas, reason, detail=detail), past

    def _plan(self, past: PlannerMemory, spec: ModelSpec, at_s: float) -> PlannerMemory:
        rate_rps = rate_over(past.history, self.plan_every_s)
        if rate_rps is None:
            return past._replace(planned_s=at_s)
        ahead_rps = rate_rps
        if self.forecast == "linear" and past.rate_rps is not None:
            ahead_rps = max(0.0, 2.0 * rate_rps - past.rate_rps)
        carries_rps = spec.profile.requests_per_s(*mix(past.history)) * self.target_load
        return past._replace(planned_s=at_s, floor=ceil(ahead_rps / carries_rps - 1e-9), rate_rps=rate_rps)

    def _feedback(self, spec: ModelSpec, seen: ModelObservation, lengths: Mix) -> tuple[int, Reason, str]:
        if seen.count(Phase.STARTING) or seen.count(Phase.DRAINING):
            return 0, Reason.WAIT, "an action is under way"
        estimates_s = [_first_token_s(spec, replica, lengths) for replica in seen.ready if replica.waiting is not None]
        if not estimates_s or len(estimates_s) < len(seen.ready):
            return 0, Reason.BLIND, ""
        allowed_s = spec.slo.limits().allowed_ttft_s(lengths.prompt)
        detail = f"first tokens in {min(estimates_s):.2f} to {max(estimates_s):.2f} s of {allowed_s:.2f} s"
        if min(estimates_s) > allowed_s:
            return 1, Reason.QUEUE, detail
        if max(estimates_s) < self.down_sensitivity * allowed_s:
            return -1, Reason.SHRINK, detail
        return 0, Reason.STEADY, detail


def _first_token_s(spec: ModelSpec, replica: ReplicaObservation, lengths: Mix) -> float:
    """Until a request that comes now would have its first token: the prompts before it and its own, in chunks."""
    tokens = ((replica.waiting or 0) + 1) * lengths.prompt
    context = (replica.running or 0) * (lengths.prompt + lengths.output / 2)
    step_s = spec.profile.step_s + context * spec.profile.context_token_s
    return ceil(tokens / CHUNK_TOKENS) * step_s + tokens * spec.profile.prompt_token_s


SPACE: Space = {
    "plan_every_s": (30.0, 60.0, 180.0),
    "forecast": ("constant", "linear"),
    "target_load": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5),
    "down_sensitivity": (0.2, 0.4, 0.6, 0.8),
}
ENTRY = RuleEntry(
    Planner,
    "a floor from a forecast and steps from the queue, as Dynamo's planner",
    in_turn,
    "target_load",
    (0.9, 0.8, 0.7, 0.6, 0.5, 0.35),
    SPACE,
)
