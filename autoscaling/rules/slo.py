"""raylane's own rule for one model: enough replicas for the load that arrives now. Pure.

    need = (L + z sqrt(L x dispersion)) / (b x target_load),    L = rate x output tokens x time per token

L is the number of requests in service at the SLO's time per token (Little's law), b how many of them one replica
carries (profile.py), z sqrt(L ...) the margin for bursts: it is large for few requests and small for many, so small
models keep proportionally more in hand. Queues, full caches and sick replicas add to it. Growth is at once and counts
replicas that are starting; shrinking is one at a time, when the largest need of the hold period fits on one fewer.

Where the engines tell no tokens it is unknown what a request costs: then need is what they hold over what one would
hold with requests of the usual length, and nothing shrinks while anything runs.
"""

from dataclasses import dataclass
from math import ceil, exp, sqrt
from typing import Annotated, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation, Phase
from raylane.autoscaling.rules.demand import Demand, History, Mix, estimate, mix, remember, sized
from raylane.autoscaling.rules.entry import RuleEntry, Space
from raylane.autoscaling.share import by_loss
from raylane.autoscaling.spec import ModelSpec

SLOWEST, FASTEST = 0.05, 1.5  # how wrong a profile may turn out, as a factor on its speed
FADE_S = 7200.0
SETTLES_S = 120.0  # after a shortage requests that waited through it still end
LOADED = 0.4  # of what the replicas carry: below, nothing is learnt from requests that were good
FULL_CACHE = 0.9
CLEAR_S = 30.0  # a backlog is to be gone this long after help has come
ALWAYS_BUSY, FULL_LOAD = 0.95, 0.9
LEAST_CLAIM = 0.01  # replicas
BUSY = 0.1  # GPU utilisation above which a GPU is not idle


@dataclass(frozen=True)
class SloRule:
    """The knobs. `burst_margin` (z) is the one that trades GPU-hours for attainment."""

    burst_margin: NonNegativeFloat = 2.0
    target_load: PositiveFloat = 0.8
    confidence: NonNegativeFloat = 2.0
    hold_s: NonNegativeFloat = 450.0
    shrink_every_s: NonNegativeFloat = 30.0
    idle_s: PositiveFloat = 600.0
    yield_s: PositiveFloat = 60.0
    """Idle this long, the last replica of a model that may rest is given up where another model lacks its GPU."""
    forecast: bool = False
    """Prolong a rise that is sure over the cold start: the load expected when a new replica would be ready counts."""
    learning: Annotated[float, Field(ge=0, le=100)] = 1.0
    """How fast: a minute in which every request misses lowers the believed speed by a factor e at 1, never at 0."""
    shrink_band: NonNegativeFloat = 0.3
    """Shrink only when this much more than the need would fit too, so that chance does not turn it back."""
    misses: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the misses that the SLO allows which is aimed at."""

    def propose(
        self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: "SloMemory | None"
    ) -> tuple[Proposal, "SloMemory"]:
        """See decision.Reason for the answers."""
        past = memory or SloMemory(began_s=at_s, last_shrink_s=at_s, last_active_s=at_s)
        past = past._replace(history=remember(past.history, seen, at_s))
        if seen.arrivals_total is None or not past.history:
            # what came meanwhile is unknown: the patience of shrinking begins anew
            return self._blind(spec, seen, mix(past.history)), past._replace(began_s=at_s, last_active_s=at_s)
        found, past = (self._sized if sized(past.history) else self._unsized)(spec, seen, past, at_s)
        return found._replace(need=self._claim(found, spec, seen, past, at_s)), past

    def _sized(
        self, spec: ModelSpec, seen: ModelObservation, past: "SloMemory", at_s: float
    ) -> tuple[Proposal, "SloMemory"]:
        """The engines tell tokens: go by what arrives."""
        horizon_s = spec.cold_start_s if self.forecast else 0.0
        demand = estimate(past.history, horizon_s, self.confidence)
        if not self.forecast:
            demand = demand._replace(ahead_rps=demand.now_rps)
        ready = len(seen.ready)
        if seen.held or past.load > 1.0:
            past = past._replace(short_s=at_s)
        past = self._forget(self._learn(past, spec, seen, demand, fits=at_s - past.short_s > SETTLES_S))
        carried = past.speed * spec.profile.requests_per_s(*demand.mix)
        past = past._replace(load=demand.now_rps / (carried * ready) if ready else 2.0)
        need, reason = self._need(carried, spec, seen, demand)
        past = self._note(past, seen, need, at_s)
        replicas, reason, past = self._step(spec, seen, need, reason, past, at_s)
        ahead = f" -> {demand.ahead_rps:.2f}" if self.forecast else ""
        load = f"{demand.now_rps:.2f}{ahead} req/s"
        detail = f"need {need:.2f}, {load}, dispersion {demand.dispersion:.1f}, speed {past.speed:.2f}"
        return Proposal(replicas, reason, need, detail), past

    def _need(self, rate: float, spec: ModelSpec, seen: ModelObservation, demand: Demand) -> tuple[float, Reason]:
        """Replicas, as a fraction, and what asks for them. `rate`: requests a second that one replica carries."""
        stay_s = demand.mix.output * spec.profile.tpot_s
        load = demand.ahead_rps * stay_s
        margin = self.burst_margin * sqrt(load * demand.dispersion)
        need, reason = (load + margin) / (rate * stay_s * self.target_load), Reason.DEMAND
        waiting = seen.held + sum(replica.waiting or 0 for replica in seen.ready)
        alive = [replica for replica in seen.replicas if replica.phase is not Phase.DRAINING and not replica.sick]
        if waiting and (seen.queue_age_s or 0.0) > spec.slo.ttft_ms / 2e3:
            left = waiting + (demand.now_rps - len(alive) * rate) * spec.cold_start_s
            queued = (demand.now_rps + max(0.0, left) / CLEAR_S) / rate
            if queued > need:
                need, reason = queued, Reason.QUEUE
        caches = [replica.kv_use for replica in seen.ready if replica.kv_use is not None]
        if waiting and caches and (full := sum(caches) / FULL_CACHE) > max(need, len(caches)):
            need, reason = full, Reason.MEMORY
        return need + self._sick(seen), reason

    def _step(
        self, spec: ModelSpec, seen: ModelObservation, need: float, reason: Reason, past: "SloMemory", at_s: float
    ) -> tuple[int, Reason, "SloMemory"]:
        """From what is needed to what is asked for, and when."""
        have = seen.target
        if have == 0 and not seen.held:
            return 0, Reason.IDLE, past
        wanted = max(ceil(need - 1e-9), 1 if seen.held else 0)
        if wanted > have:
            return wanted, Reason.WAKE if have == 0 else reason, past
        most = max((value for _, value in past.needs), default=need)
        fits = max(ceil(most * (1.0 + self.shrink_band) - 1e-9), spec.min_replicas)
        if have <= spec.min_replicas:
            return have, Reason.STEADY, past
        if have == 1:
            return self._to_zero(seen, past, at_s)
        fits = max(fits, 1)
        if fits >= have:
            return have, Reason.HOLD if wanted < have else Reason.STEADY, past
        if not self._may_shrink(seen, past, at_s):
            return have, Reason.HOLD, past
        return have - 1, Reason.SHRINK, past._replace(last_shrink_s=at_s)

    def _to_zero(self, seen: ModelObservation, past: "SloMemory", at_s: float) -> tuple[int, Reason, "SloMemory"]:
        """The last replica goes when it has had nothing to do for long enough and the GPUs say so too."""
        if self._idle_for(seen, past, at_s) >= self.idle_s:
            return 0, Reason.IDLE, past._replace(last_shrink_s=at_s)
        return 1, Reason.STEADY, past

    def _idle_for(self, seen: ModelObservation, past: "SloMemory", at_s: float) -> float:
        """Seconds without work; none while a GPU works."""
        working = any((replica.gpu_utilization or 0.0) > BUSY for replica in seen.ready)
        return 0.0 if working else at_s - past.last_active_s

    def _claim(
        self, proposal: Proposal, spec: ModelSpec, seen: ModelObservation, past: "SloMemory", at_s: float
    ) -> float | None:
        """The need as it counts against other models' where GPUs are short.

        A first replica that requests wait for counts in full, though a rate is not known yet; the last one of a model
        that may rest counts for nothing once it is idle, and before that even without a need.
        """
        if proposal.need is None or proposal.replicas != 1 or spec.min_replicas:
            return proposal.need
        if seen.target and self._idle_for(seen, past, at_s) >= self.yield_s:
            return 0.0
        return max(proposal.need, LEAST_CLAIM)

    def _may_shrink(self, seen: ModelObservation, past: "SloMemory", at_s: float) -> bool:
        if at_s - past.last_shrink_s < self.shrink_every_s or at_s - past.began_s < self.hold_s:
            return False
        return not (seen.held or any(replica.waiting for replica in seen.ready) or self._busy(seen, past))

    def _busy(self, seen: ModelObservation, past: "SloMemory") -> bool:
        """GPUs that are never idle veto a shrink that would fill those left by our own reckoning."""
        shares = [replica.gpu_utilization for replica in seen.ready if replica.gpu_utilization is not None]
        fuller = past.load * len(seen.ready) / max(1, len(seen.ready) - 1)
        return bool(shares) and min(shares) > ALWAYS_BUSY and fuller > FULL_LOAD

    def _note(self, past: "SloMemory", seen: ModelObservation, need: float, at_s: float) -> "SloMemory":
        """Keep the needs of the hold period (only those a later one does not exceed matter), and when work was last
        seen: a replica that starts counts, so that one just woken is not taken for one that was idle all the time, and
        so does one without readings."""
        kept = [entry for entry in past.needs if entry[0] >= at_s - self.hold_s and entry[1] > need]
        history = past.history
        arrived = len(history) > 1 and history[-1].arrivals > history[-2].arrivals
        inside = any((replica.waiting or 0) + (replica.running or 0) for replica in seen.replicas)
        unknown = any(replica.running is None for replica in seen.ready)
        active = arrived or inside or unknown or seen.held or seen.count(Phase.STARTING)
        return past._replace(needs=(*kept, (at_s, need)), last_active_s=at_s if active else past.last_active_s)

    def _learn(
        self, past: "SloMemory", spec: ModelSpec, seen: ModelObservation, demand: Demand, fits: bool
    ) -> "SloMemory":
        """Correct the believed speed until the share of requests that miss their SLO is the share that may.

        Robbins and Monro's rule for a quantile: each miss lowers the belief, each good request raises it by as much as
        the allowed share of misses. Misses while replicas were too few by our own reckoning say nothing about their
        speed, and neither do good requests while the replicas are far from full.
        """
        if not self.learning or len(past.history) < 2:
            return past
        last, before = past.history[-1], past.history[-2]
        if last.missed is None or before.missed is None:
            return past
        finished, missed = last.finished - before.finished, last.missed - before.missed
        surplus = (1.0 - spec.slo.attainment) * self.misses * finished - missed
        if not finished or (surplus < 0 and not fits) or (surplus > 0 and past.load < LOADED):
            return past
        minutes = max(-1.0, surplus / max(demand.now_rps * 60.0, finished))
        return past._replace(speed=max(SLOWEST, min(FASTEST, past.speed * exp(self.learning * minutes))))

    def _forget(self, past: "SloMemory") -> "SloMemory":
        """The belief fades towards the profile, so that misses which no replica would have prevented do not pile up."""
        if len(past.history) < 2:
            return past
        kept = exp((past.history[-2].at_s - past.history[-1].at_s) / FADE_S)
        return past._replace(speed=past.speed**kept)

    def _unsized(
        self, spec: ModelSpec, seen: ModelObservation, past: "SloMemory", at_s: float
    ) -> tuple[Proposal, "SloMemory"]:
        """No tokens: go by what the engines hold, and shrink only while they are known to hold nothing."""
        need = (self._inside(seen) + seen.held) / self._holds(spec, mix(past.history)) + self._sick(seen)
        past = self._note(past, seen, need, at_s)
        replicas, reason, after = self._step(spec, seen, need, Reason.DEMAND, past, at_s)
        detail = f"need {need:.2f} by the requests inside; the engines tell no tokens"
        if replicas < seen.target and not all(one.running == 0 and not one.waiting for one in seen.ready):
            return Proposal(seen.target, Reason.BUSY, need, detail), past
        return Proposal(replicas, reason, need, detail), after

    def _inside(self, seen: ModelObservation) -> int:
        """Requests of replicas that get on."""
        return sum((one.running or 0) + (one.waiting or 0) for one in seen.ready if not one.sick)

    def _sick(self, seen: ModelObservation) -> int:
        return sum(1 for replica in seen.replicas if replica.sick)

    def _holds(self, spec: ModelSpec, requests: Mix) -> float:
        """Requests that one replica is to hold."""
        return spec.profile.concurrency(*requests) * self.target_load

    def _blind(self, spec: ModelSpec, seen: ModelObservation, requests: Mix) -> Proposal:
        """No counts of arrivals: go by what the engines hold, never shrink busy GPUs, else stay."""
        if inside := self._inside(seen):
            need = inside / self._holds(spec, requests) + self._sick(seen)
            return Proposal(max(seen.target, ceil(need)), Reason.DEMAND if need > seen.target else Reason.BUSY, need)
        if any((replica.gpu_utilization or 0.0) > BUSY for replica in seen.ready):
            return Proposal(seen.target, Reason.BUSY)
        return Proposal(max(seen.target, 1) if seen.held else seen.target, Reason.WAKE if seen.held else Reason.BLIND)


class SloMemory(NamedTuple):
    """What the rule remembers of one model."""

    history: History = ()
    needs: tuple[tuple[float, float], ...] = ()
    """(time, need) in the hold period, leaving out what a later need reaches; the first is the largest."""
    last_shrink_s: float = 0.0
    last_active_s: float = 0.0
    """When a request last came, waited or ran, or a replica was starting."""
    began_s: float = 0.0
    speed: float = 1.0
    """Factor on the profile's speed, learnt."""
    load: float = 0.0
    """Rate over what the ready replicas carry, last time."""
    short_s: float = -SETTLES_S
    """When replicas were last too few by our own reckoning."""


SPACE: Space = {
    "burst_margin": (1.0, 1.5, 2.0, 3.0),
    "target_load": (0.7, 0.8, 0.9, 1.0),
    "confidence": (1.0, 2.0, 3.0),
    "hold_s": (120.0, 180.0, 300.0, 450.0, 600.0),
    "shrink_band": (0.05, 0.15, 0.3, 0.5),
    "forecast": (True, False),
    "learning": (0.5, 1.0, 1.5, 2.0),
    "misses": (0.5, 1.0),
}
ENTRY = RuleEntry(
    SloRule,
    "raylane's own: enough replicas for the load that arrives now, with a margin for bursts",
    by_loss,
    "burst_margin",
    (0.0, 0.5, 1.0, 1.5, 2.5, 4.0),
    SPACE,
)
