"""Queue and KV cache only, by the spare room of the replicas: llm-d's saturation analyser, first version.

Source: docs/saturation-analyzer.md of llm-d's Workload Variant Autoscaler. Once a minute, on the peaks of that minute:
a replica is saturated from 80 % of its KV cache or 5 waiting requests on. The mean room of the others below 10 % or 3
requests adds one replica. One goes if the same load on one fewer keeps both rooms. While a replica starts nothing is
changed, so one that starts is supply. The last replica stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import NonNegativeFloat, PositiveFloat

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation, Phase
from raylane.autoscaling.rules.entry import RuleEntry, Space
from raylane.autoscaling.rules.readings import at_zero
from raylane.autoscaling.share import in_turn
from raylane.autoscaling.spec import ModelSpec


class Peak(NamedTuple):
    """The most one replica had since the last decision."""

    replica_id: str
    kv_use: float
    waiting: float


class QueueMemory(NamedTuple):
    """Peaks since the last decision, and when that was."""

    decided_s: float
    peaks: tuple[Peak, ...] = ()


@dataclass(frozen=True)
class QueueOnly:
    """The defaults are llm-d's."""

    kv_limit: PositiveFloat = 0.80
    """Share of its KV cache from which a replica is saturated."""
    queue_limit: PositiveFloat = 5.0
    """Waiting requests from which a replica is saturated."""
    spare_kv: NonNegativeFloat = 0.10
    """Share of the KV cache that the replicas are to have left on average."""
    spare_queue: NonNegativeFloat = 3.0
    """Waiting requests that the replicas are to have room for on average."""
    every_s: NonNegativeFloat = 60.0

    def propose(
        self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: QueueMemory | None
    ) -> tuple[Proposal, QueueMemory]:
        """One more, one fewer, or what is there."""
        past = memory if memory is not None and at_s >= memory.decided_s else QueueMemory(at_s)
        past = past._replace(peaks=_peaks(past.peaks, seen))
        if seen.target == 0:
            return at_zero(seen), past
        if at_s - past.decided_s < self.every_s:
            return Proposal(seen.target, Reason.STEADY), past
        return self._judge(seen, past.peaks), QueueMemory(at_s)

    def _judge(self, seen: ModelObservation, peaks: Sequence[Peak]) -> Proposal:
        if seen.count(Phase.STARTING):
            return Proposal(seen.target, Reason.WAIT)
        if not peaks:
            return Proposal(seen.target, Reason.BLIND)
        free = [peak for peak in peaks if peak.kv_use < self.kv_limit and peak.waiting < self.queue_limit]
        if not free:
            return Proposal(seen.target + 1, Reason.QUEUE, detail=f"all {len(peaks)} replicas saturated")
        kv, queue = sum(peak.kv_use for peak in free), sum(peak.waiting for peak in free)
        detail = f"KV {kv / len(free):.2f}, waiting {queue / len(free):.1f} on average"
        if (reason := self._short(kv / len(free), queue / len(free))) is not None:
            return Proposal(seen.target + 1, reason, detail=detail)
        others = len(free) - 1
        if others and self._short(kv / others, queue / others) is None:
            return Proposal(max(1, seen.target - 1), Reason.SHRINK, detail=detail)
        return Proposal(seen.target, Reason.STEADY, detail=detail)

    def _short(self, kv_use: float, waiting: float) -> Reason | None:
        """Which room is too small at this mean load; None: both are large enough."""
        if self.queue_limit - waiting < self.spare_queue:
            return Reason.QUEUE
        return Reason.MEMORY if self.kv_limit - kv_use < self.spare_kv else None


def _peaks(past: Sequence[Peak], seen: ModelObservation) -> tuple[Peak, ...]:
    """Peaks of the replicas that are ready now; held requests count as waiting in each in equal parts."""
    before = {peak.replica_id: peak for peak in past}
    ready = seen.ready
    now = []
    for replica in ready:
        old = before.get(replica.replica_id)
        if replica.kv_use is None and replica.waiting is None:
            if old is not None:
                now.append(old)
            continue
        kv, waiting = replica.kv_use or 0.0, (replica.waiting or 0) + seen.held / len(ready)
        if old is not None:
            kv, waiting = max(kv, old.kv_use), max(waiting, old.waiting)
        now.append(Peak(replica.replica_id, kv, waiting))
    return tuple(now)


SPACE: Space = {
    "kv_limit": (0.6, 0.7, 0.8, 0.9),
    "queue_limit": (3.0, 5.0, 8.0),
    "spare_kv": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    "spare_queue": (1.0, 2.0, 3.0),
    "every_s": (15.0, 30.0, 60.0),
}
ENTRY = RuleEntry(
    QueueOnly,
    "room in queues and KV caches, as llm-d's first saturation rule",
    in_turn,
    "spare_kv",
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
    SPACE,
)
