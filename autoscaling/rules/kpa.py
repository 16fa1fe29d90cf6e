"""Requests per replica with a calm and a panicking window: Knative's pod autoscaler, with AIBrix's windows.

    desired = ceil(mean ongoing requests / target),    target = share x requests a replica holds at its SLO

over a stable window, and over a panic window beside it. When the panic window wants at least twice the ready replicas,
the rule panics: it takes the larger number and never shrinks, until a whole stable window has passed without. Each
answer lies between ready / down rate and ready x up rate. Starting replicas are not supply: the rates and the threshold
go by ready ones, and the answer is an absolute number. Facts: Knative docs (KPA), AIBrix docs (metric-based
autoscaling).
"""

from dataclasses import dataclass
from math import ceil, floor
from typing import Annotated, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.rules.demand import History, Mix, mix, remember
from raylane.autoscaling.rules.entry import SHARE_LEVELS, SHARES, RuleEntry, Space
from raylane.autoscaling.rules.readings import Series, at_zero, keep_one, mean_over, ongoing, record
from raylane.autoscaling.share import in_turn
from raylane.autoscaling.spec import ModelSpec


class KpaMemory(NamedTuple):
    """Requests of the stable window, the panic, and what was proposed during the scale-down delay."""

    requests: Series = ()
    panic_s: float | None = None
    """Last time the threshold was passed; None: calm."""
    panic_replicas: int = 0
    """The most proposed in this panic."""
    proposals: Series = ()
    history: History = ()


@dataclass(frozen=True)
class Kpa:
    """Windows, threshold and rates are AIBrix's; the share is Knative's target utilisation of 70 %."""

    target_share: PositiveFloat = 0.7
    """Share of the requests a replica holds at its SLO that it should have."""
    stable_s: NonNegativeFloat = 180.0
    panic_s: NonNegativeFloat = 60.0
    panic_threshold: PositiveFloat = 2.0
    """Wanted over ready replicas from which it panics."""
    max_up_rate: Annotated[float, Field(ge=1)] = 2.0
    max_down_rate: Annotated[float, Field(ge=1)] = 2.0
    scale_down_delay_s: NonNegativeFloat = 0.0
    """A lower proposal counts when all of this time had no higher one; Knative's default is none."""

    def propose(
        self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: KpaMemory | None
    ) -> tuple[Proposal, KpaMemory]:
        """The larger of both windows in a panic, else that of the stable one."""
        past = memory or KpaMemory()
        past = past._replace(
            requests=record(past.requests, at_s, ongoing(seen), max(self.stable_s, self.panic_s)),
            history=remember(past.history, seen, at_s),
        )
        if seen.target == 0:
            return at_zero(seen), past
        stable = mean_over(past.requests, at_s, self.stable_s)
        panic = mean_over(past.requests, at_s, self.panic_s)
        if stable is None or panic is None:
            return Proposal(seen.target, Reason.BLIND), past
        mean_request = mix(past.history) if past.history else Mix(512.0, 192.0)
        target = max(0.1, self.target_share * spec.profile.concurrency(*mean_request))
        return self._answer(seen, ceil(stable / target), ceil(panic / target), at_s, past)

    def _answer(
        self, seen: ModelObservation, stable: int, panic: int, at_s: float, past: KpaMemory
    ) -> tuple[Proposal, KpaMemory]:
        ready = max(1, len(seen.ready))
        past = self._panic(past, panic / ready, at_s)
        calm = wanted = self._within_rates(stable, ready)
        if past.panic_s is not None:
            wanted = max(calm, self._within_rates(panic, ready), past.panic_replicas)
            past = past._replace(panic_replicas=wanted)
        past = past._replace(proposals=record(past.proposals, at_s, float(wanted), self.scale_down_delay_s))
        given = keep_one(seen, max([wanted, *(int(value) for _, value in past.proposals)]))
        detail = f"stable {stable}, panic {panic}{', panicking' if past.panic_s is not None else ''}"
        return Proposal(given, _reason(given, calm, seen.target), detail=detail), past

    def _panic(self, past: KpaMemory, excess: float, at_s: float) -> KpaMemory:
        if excess >= self.panic_threshold:
            return past._replace(panic_s=at_s)
        if past.panic_s is not None and at_s - past.panic_s > self.stable_s:
            return past._replace(panic_s=None, panic_replicas=0)
        return past

    def _within_rates(self, wanted: int, ready: int) -> int:
        return min(max(wanted, floor(ready / self.max_down_rate)), ceil(ready * self.max_up_rate))


def _reason(given: int, calm: int, target: int) -> Reason:
    if given > target:
        return Reason.DEMAND
    if given < target:
        return Reason.SHRINK if given else Reason.IDLE
    return Reason.HOLD if calm < given else Reason.STEADY


SPACE: Space = {
    "target_share": SHARES,
    "stable_s": (60.0, 120.0, 180.0, 300.0),
    "panic_s": (10.0, 30.0, 60.0),
    "panic_threshold": (1.2, 1.5, 2.0, 3.0),
    "scale_down_delay_s": (0.0, 60.0, 300.0, 600.0),
}
ENTRY = RuleEntry(
    Kpa, "requests per replica with a panic window, as Knative's", in_turn, "target_share", SHARE_LEVELS, SPACE
)
