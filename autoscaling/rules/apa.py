"""In proportion to KV use and waiting requests, with tolerances: AIBrix's APA.

    ratio = mean over ready replicas / target;   wanted = ceil(ready x ratio), at most doubled, at least halved

for each metric; the largest counts. Within the tolerance of the target nothing changes. It shrinks to the largest
proposal of the stabilisation time. Starting replicas are not supply: the ratio is applied to ready ones. The last
replica stays. Facts: AIBrix docs (metric-based autoscaling) and algorithm/apa.go.
"""

from dataclasses import dataclass
from math import ceil, floor
from typing import Annotated, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.rules.entry import RuleEntry, Space
from raylane.autoscaling.rules.readings import Series, at_zero, mean, mean_over, record
from raylane.autoscaling.share import in_turn
from raylane.autoscaling.spec import ModelSpec


class ApaMemory(NamedTuple):
    """Readings of the window and proposals of the stabilisation time."""

    kv: Series = ()
    waiting: Series = ()
    proposals: Series = ()


@dataclass(frozen=True)
class Apa:
    """The defaults are AIBrix's, except `waiting_target`: 5 is llm-d's limit of a replica's queue."""

    kv_target: PositiveFloat = 0.5
    """Share of the KV cache in use, mean over the replicas."""
    waiting_target: PositiveFloat = 5.0
    """Waiting requests of a replica."""
    up_tolerance: NonNegativeFloat = 0.1
    down_tolerance: NonNegativeFloat = 0.1
    max_up_rate: Annotated[float, Field(ge=1)] = 2.0
    max_down_rate: Annotated[float, Field(ge=1)] = 2.0
    scale_down_s: NonNegativeFloat = 300.0
    """Stabilisation: shrink to the largest proposal of this long."""
    window_s: NonNegativeFloat = 180.0
    """Readings are averaged over this long."""

    def propose(
        self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: ApaMemory | None
    ) -> tuple[Proposal, ApaMemory]:
        """The largest proposal of the metrics."""
        past = self._remember(memory or ApaMemory(), seen, at_s)
        if seen.target == 0:
            return at_zero(seen), past
        ready = len(seen.ready)
        kv, waiting = mean_over(past.kv, at_s, self.window_s), mean_over(past.waiting, at_s, self.window_s)
        ratios = [
            value / target
            for value, target in ((kv, self.kv_target), (waiting, self.waiting_target))
            if value is not None
        ]
        if not ready or not ratios:
            return Proposal(seen.target, Reason.STEADY if seen.ready else Reason.BLIND), past
        wanted = max(1, *(self._wanted(ready, ratio) for ratio in ratios))
        past = past._replace(proposals=record(past.proposals, at_s, float(wanted), self.scale_down_s))
        highest = max([wanted, *(int(value) for _, value in past.proposals)])
        given = max(wanted, min(highest, seen.target))
        full = kv is not None and kv / self.kv_target >= max(ratios)
        return Proposal(given, _reason(given, wanted, seen.target, full), detail=f"ratios {ratios}"), past

    def _remember(self, past: ApaMemory, seen: ModelObservation, at_s: float) -> ApaMemory:
        ready = seen.ready
        kv = mean(replica.kv_use for replica in ready)
        inside = mean(replica.waiting for replica in ready)
        waiting = None if inside is None else inside + seen.held / len(ready)
        return past._replace(
            kv=record(past.kv, at_s, kv, self.window_s), waiting=record(past.waiting, at_s, waiting, self.window_s)
        )

    def _wanted(self, ready: int, ratio: float) -> int:
        if ratio > 1.0 + self.up_tolerance:
            return min(ceil(ready * ratio), ceil(ready * self.max_up_rate))
        if ratio < 1.0 - self.down_tolerance:
            return max(ceil(ready * ratio), floor(ready / self.max_down_rate))
        return ready


def _reason(given: int, wanted: int, target: int, full: bool) -> Reason:
    if given > target:
        return Reason.MEMORY if full else Reason.QUEUE
    if given < target:
        return Reason.SHRINK
    return Reason.HOLD if wanted < given else Reason.STEADY


SPACE: Space = {
    "kv_target": (0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8),
    "waiting_target": (1.0, 2.0, 5.0),
    "scale_down_s": (60.0, 180.0, 300.0, 600.0),
    "window_s": (15.0, 30.0, 60.0, 180.0),
}
ENTRY = RuleEntry(
    Apa,
    "in proportion to KV use and waiting requests, as AIBrix's",
    in_turn,
    "kv_target",
    (0.65, 0.5, 0.35, 0.2, 0.1, 0.05),
    SPACE,
)
