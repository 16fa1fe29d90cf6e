"""Ray Serve's own policy, as shipped or with its knobs tuned. Facts: ray/serve/autoscaling_policy.py of Ray 2.60.

    desired = ceil(mean ongoing requests / target_ongoing)

A change is made when every decision during the delay wanted one in that direction; a decision against it, or for what
is there, starts the delay anew. Replicas that start are not supply: only what is asked for already (the target) keeps
Ray from asking again. From zero there is no delay; to zero only from one, when no request is there at all.
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from pydantic import NonNegativeFloat, PositiveFloat

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.rules.demand import History, mix, remember
from raylane.autoscaling.rules.entry import SHARE_LEVELS, SHARES, RuleEntry, Space
from raylane.autoscaling.rules.readings import Series, mean_over, ongoing, record
from raylane.autoscaling.share import in_turn
from raylane.autoscaling.spec import ModelSpec

ELAPSED_SLACK_S = 1e-6  # as Ray grants when it compares delays


class RayMemory(NamedTuple):
    """What Ray keeps: requests of the look-back period, and since when and how often it has wanted a change."""

    requests: Series = ()
    streak: int = 0
    """Decisions in a row for more (positive) or fewer (negative) replicas."""
    since_s: float | None = None
    history: History = ()


@dataclass(frozen=True)
class RayDefault:
    """The defaults are Ray's."""

    target_ongoing: PositiveFloat = 2.0
    """Requests one replica should have."""
    target_share: PositiveFloat | None = None
    """Set, it replaces `target_ongoing` by this share of the requests the profile says a replica holds at its SLO."""
    upscale_delay_s: NonNegativeFloat = 30.0
    downscale_delay_s: NonNegativeFloat = 600.0
    downscale_to_zero_delay_s: NonNegativeFloat | None = None
    """From 1 to 0; None: as `downscale_delay_s`."""
    look_back_s: NonNegativeFloat = 30.0
    """Requests are averaged over this long."""
    upscaling_factor: PositiveFloat = 1.0
    """Share of the wanted growth that is made at a time."""
    downscaling_factor: PositiveFloat = 1.0

    def propose(
        self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: RayMemory | None
    ) -> tuple[Proposal, RayMemory]:
        """Replicas as Ray would set the target."""
        past = memory or RayMemory()
        past = past._replace(requests=record(past.requests, at_s, ongoing(seen), max(self.look_back_s, 1.0)))
        if self.target_share is not None:
            past = past._replace(history=remember(past.history, seen, at_s))
        ready = len(seen.ready)
        if not ready:
            return self._without_replicas(seen), past
        requests = mean_over(past.requests, at_s, self.look_back_s)
        if requests is None:
            return Proposal(seen.target, Reason.BLIND), past
        per_replica = self._target(spec, past.history)
        desired = self._scaled(ready * (requests / (per_replica * ready)), ready)
        proposal, past = self._delayed(desired, seen.target, at_s, past)
        return proposal._replace(detail=f"{requests:.1f} requests, {per_replica:.1f} for each replica"), past

    def _target(self, spec: ModelSpec, history: History) -> float:
        if self.target_share is None:
            return self.target_ongoing
        known = mix(history) if history else None
        return max(0.1, self.target_share * spec.profile.concurrency(*known)) if known else self.target_ongoing

    def _without_replicas(self, seen: ModelObservation) -> Proposal:
        if seen.held and seen.target < (first := ceil(self.upscaling_factor)):
            return Proposal(first, Reason.WAKE)
        return Proposal(seen.target, Reason.STEADY if seen.target else Reason.IDLE)

    def _scaled(self, desired: float, ready: int) -> int:
        """The part of the way from the ready replicas to the desired ones that the factors allow."""
        factor = self.upscaling_factor if desired > ready else self.downscaling_factor
        scaled = ceil(ready + factor * (desired - ready))
        return scaled - 1 if ceil(desired) < ready == scaled else scaled

    def _delayed(self, desired: int, target: int, at_s: float, past: RayMemory) -> tuple[Proposal, RayMemory]:
        """What is wanted, once it has been wanted for the delay; until then what is there."""
        if desired == target:
            return Proposal(target, Reason.STEADY), past._replace(streak=0, since_s=None)
        way = 1 if desired > target else -1
        same = past.streak * way >= 0
        since_s = past.since_s if same and past.since_s is not None else at_s
        if at_s - since_s + ELAPSED_SLACK_S < self._delay_s(way, target):
            streak = way + (past.streak if same else 0)
            return Proposal(target, Reason.WAIT if way > 0 else Reason.HOLD), past._replace(
                streak=streak, since_s=since_s
            )
        replicas = desired if way > 0 or target == 1 else max(1, desired)
        reason = Reason.DEMAND if way > 0 else Reason.SHRINK if replicas else Reason.IDLE
        return Proposal(max(0, replicas), reason), past._replace(streak=0, since_s=None)

    def _delay_s(self, way: int, target: int) -> float:
        if way > 0:
            return self.upscale_delay_s
        to_zero_s = self.downscale_to_zero_delay_s
        return to_zero_s if target == 1 and to_zero_s is not None else self.downscale_delay_s


SPACE: Space = {
    "target_share": SHARES,
    "upscale_delay_s": (0.0, 5.0, 15.0, 30.0),
    "downscale_delay_s": (60.0, 120.0, 300.0, 600.0, 1200.0),
    "look_back_s": (10.0, 30.0, 60.0),
}
AS_SHIPPED = RuleEntry(
    RayDefault, "Ray Serve's default, as shipped", in_turn, "target_ongoing", (32.0, 16.0, 8.0, 4.0, 2.0, 1.0)
)
TUNED = RuleEntry(
    RayDefault,
    "Ray Serve's default aiming at a share of the profile's concurrency",
    in_turn,
    "target_share",
    SHARE_LEVELS,
    SPACE,
    {"target_share": 0.7},
)
