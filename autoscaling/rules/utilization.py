"""Utilisation thresholds: one replica more above 70 %, one fewer below 40 %, with a cooldown of 15 minutes.

Two readings of utilisation. As NVML gives it: the share of time with a kernel on the GPU, which reads near 100 % from a
fifth of the load on. Effective: the work that arrives over the work the replicas can do within the SLO,

    arrival rate / (ready replicas x largest rate of one)

Both are means over the ready replicas; one that starts is not supply until it is ready.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.rules.demand import History, mix, rate_over, remember
from raylane.autoscaling.rules.entry import RuleEntry, Space
from raylane.autoscaling.rules.readings import (
    LastChange,
    Series,
    at_zero,
    cooled,
    keep_one,
    mean,
    mean_over,
    note_change,
    record,
)
from raylane.autoscaling.share import in_turn
from raylane.autoscaling.spec import ModelSpec


class UtilizationMemory(NamedTuple):
    """Readings of the window, or arrivals for the effective reading, and the last change."""

    readings: Series = ()
    history: History = ()
    change: LastChange | None = None


@dataclass(frozen=True)
class Utilization:
    """Thresholds, cooldown and step are the requirements'; they give no window, so a minute is taken."""

    high: PositiveFloat = 0.70
    """Mean utilisation, 0 to 1, above which replicas are added."""
    low: NonNegativeFloat = 0.40
    cooldown_s: NonNegativeFloat = 900.0
    """From one change to the next."""
    cooldown_on: Literal["both", "shrink"] = "both"
    """"shrink": growth does not wait for the cooldown."""
    step: PositiveInt = 1
    """Replicas added or removed at a time."""
    window_s: NonNegativeFloat = 60.0
    effective: bool = False
    """False: as NVML gives it. True: work over capacity."""

    def propose(
        self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: UtilizationMemory | None
    ) -> tuple[Proposal, UtilizationMemory]:
        """One step up or down, or what is there."""
        past = self._remember(memory or UtilizationMemory(), seen, at_s)
        change = note_change(past.change, seen, at_s)
        past = past._replace(change=change)
        if seen.target == 0:
            return at_zero(seen), past
        used = self._used(spec, seen, at_s, past)
        if used is None:
            return Proposal(seen.target, Reason.BLIND), past
        return self._step(seen, used, cooled(change, at_s, self.cooldown_s)), past

    def _remember(self, past: UtilizationMemory, seen: ModelObservation, at_s: float) -> UtilizationMemory:
        if self.effective:
            return past._replace(history=remember(past.history, seen, at_s))
        now = mean(replica.gpu_utilization for replica in seen.ready)
        return past._replace(readings=record(past.readings, at_s, now, self.window_s))

    def _used(self, spec: ModelSpec, seen: ModelObservation, at_s: float, past: UtilizationMemory) -> float | None:
        if not self.effective:
            return mean_over(past.readings, at_s, self.window_s)
        rate_rps = rate_over(past.history, self.window_s)
        ready = len(seen.ready)
        if rate_rps is None or not ready or seen.arrivals_total is None:
            return None
        return rate_rps / (ready * spec.profile.requests_per_s(*mix(past.history)))

    def _step(self, seen: ModelObservation, used: float, cool: bool) -> Proposal:
        detail = f"utilisation {used:.2f}"
        if used > self.high:
            if cool or self.cooldown_on == "shrink":
                return Proposal(seen.target + self.step, Reason.DEMAND, detail=detail)
            return Proposal(seen.target, Reason.WAIT, detail=detail)
        if used < self.low and (fewer := keep_one(seen, seen.target - self.step)) < seen.target:
            if cool:
                return Proposal(fewer, Reason.SHRINK if fewer else Reason.IDLE, detail=detail)
            return Proposal(seen.target, Reason.HOLD, detail=detail)
        return Proposal(seen.target, Reason.STEADY, detail=detail)


SPACE: Space = {
    "high": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    "low": (0.1, 0.2, 0.3, 0.4, 0.5),
    "cooldown_s": (60.0, 180.0, 300.0, 900.0),
    "cooldown_on": ("both", "shrink"),
    "step": (1, 2),
    "window_s": (15.0, 60.0, 180.0),
}
NVML = RuleEntry(
    Utilization,
    "GPU utilisation as NVML gives it: above 70 % one more, below 40 % one fewer, 15 min cooldown",
    in_turn,
    "high",
    (0.99, 0.95, 0.9, 0.8, 0.7, 0.6),
    SPACE,
)
EFFECTIVE = RuleEntry(
    Utilization,
    "work over capacity: above 70 % one more, below 40 % one fewer, 15 min cooldown",
    in_turn,
    "high",
    (0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    SPACE,
    {"effective": True},
)
