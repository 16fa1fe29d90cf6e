"""From what the directory and Serve know to what a policy sees. Pure.

The directory's counters belong to gateways and replicas that come and go; `Totals`, carried from one observation to the
next, adds up their growth. Whatever is missing, stale or no number becomes None.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from raylane.autoscaling.observation import ModelObservation, Observation, Phase, ReplicaObservation
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory.reports import (
    GATEWAY_STALE_S,
    ModelTraffic,
    MoveState,
    ReplicaReport,
    ReplicaState,
    Snapshot,
    traffic_growth,
)

T = TypeVar("T")

REPORT_STALE_S = 10.0
KEPT = 500  # gateways and replicas whose last counters are remembered, so that a directory that restarts is bridged


class Sums(NamedTuple):
    """What happened to one model since the autoscaler began to watch."""

    arrivals: float = 0.0
    finished: float = 0.0
    """However they ended, those rejected left out: what the tokens belong to."""
    rejected: float = 0.0
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    missed: float | None = None
    """None, as the tokens are, until an engine has told."""


class EngineCounters(NamedTuple):
    """One replica's counters when it was last heard of."""

    prompt: float | None
    output: float | None
    missed: float | None = None


NOTHING = EngineCounters(None, None)


@dataclass(frozen=True)
class Totals:
    """Sums by model, and the counters they have been taken from. What is heard of for the first time adds nothing."""

    sums: Mapping[str, Sums] = field(default_factory=dict)
    gateways: Mapping[str, dict[str, ModelTraffic]] = field(default_factory=dict)
    replicas: Mapping[str, EngineCounters] = field(default_factory=dict)

    def after(self, snapshot: Snapshot) -> "Totals":
        """With what has been counted since."""
        growth = traffic_growth(replace(snapshot, gateways=dict(self.gateways)), snapshot)
        now = {report.replica_id: _counters(report) for report in snapshot.replicas if _fresh(report, snapshot)}
        sums = dict(self.sums)
        for model, grown in growth.items():
            old = sums.get(model, Sums())
            sums[model] = old._replace(
                arrivals=old.arrivals + (number(grown.received) or 0.0),
                finished=old.finished + sum(number(ended) or 0.0 for ended in _ended(grown)),
                rejected=old.rejected + (number(grown.rejected) or 0.0),
            )
        for report in snapshot.replicas:
            if report.replica_id in now:
                before, after = self.replicas.get(report.replica_id, NOTHING), now[report.replica_id]
                old = sums.get(report.model, Sums())
                sums[report.model] = old._replace(
                    prompt_tokens=_added(old.prompt_tokens, before.prompt, after.prompt),
                    output_tokens=_added(old.output_tokens, before.output, after.output),
                    missed=_more(old.missed, 0.0 if _restarted(before, after) else before.missed, after.missed),
                )
        known = {replica: _known(self.replicas.get(replica), tokens) for replica, tokens in now.items()}
        return Totals(sums, _newest(self.gateways, snapshot.gateways), _newest(self.replicas, known))


def observe(
    snapshot: Snapshot,
    targets: Mapping[str, int],
    config: DeploymentConfig,
    gpus: int,
    at_s: float,
    totals: Totals,
    woken: Iterable[str] = (),
) -> tuple[Observation, Totals]:
    """What a policy sees of the deployed models that Serve has a target for; and the totals to carry along.

    `gpus` are those of the fleet. `woken` are models whose gateways have just begun to hold requests, which the
    snapshot may not say yet.
    """
    totals = totals.after(snapshot)
    counted = _counted(snapshot)
    traffic = snapshot.traffic()
    reports: dict[str, list[ReplicaReport]] = {}
    for report in snapshot.replicas:
        reports.setdefault(report.model, []).append(report)
    models = []
    for name in config.models:
        if name in targets:
            replicas = replicas_seen(name, targets[name], reports.get(name, []), snapshot)
            now = traffic.get(name, ModelTraffic())
            held = _held(now, replicas, name in woken)
            sums = totals.sums.get(name, Sums())
            if not _tells_tokens(reports.get(name, []), snapshot):
                sums = sums._replace(prompt_tokens=None, output_tokens=None)
            models.append(_model(name, targets[name], replicas, now, held, sums, counted))
    return Observation(at_s, tuple(models), gpus), totals


def _model(
    name: str,
    target: int,
    replicas: tuple[ReplicaObservation, ...],
    traffic: ModelTraffic,
    held: int,
    sums: Sums,
    counted: bool,
) -> ModelObservation:
    ages = [number(traffic.oldest_held_age_s), *map(number, traffic.first_byte_wait_s.values())]
    return ModelObservation(
        name=name,
        target=target,
        replicas=replicas,
        arrivals_total=sums.arrivals if counted else None,
        finished_total=sums.finished,
        missed_total=sums.missed,
        rejected_total=sums.rejected,
        prompt_tokens_total=sums.prompt_tokens,
        output_tokens_total=sums.output_tokens,
        held=held,
        queue_age_s=max((age for age in ages if age is not None), default=None),
    )


def _counted(snapshot: Snapshot) -> bool:
    """Whether every gateway has spoken lately: what a silent one counts comes all at once, and looks like a jump."""
    ages_s = snapshot.gateway_age_s.values()
    return bool(ages_s) and all(age_s <= GATEWAY_STALE_S for age_s in ages_s)


def _tells_tokens(reports: Iterable[ReplicaReport], snapshot: Snapshot) -> bool:
    """Whether every ready replica tells its tokens; those of some are not those of all that finished."""
    ready = [report for report in reports if report.state is ReplicaState.READY]
    known = (_counters(report)[:2] for report in ready if _fresh(report, snapshot))
    return sum(None not in tokens for tokens in known) == len(ready)


def _ended(traffic: ModelTraffic) -> tuple[int, ...]:
    return traffic.completed, traffic.cancelled, traffic.failed


def _held(traffic: ModelTraffic, replicas: Iterable[ReplicaObservation], woken: bool) -> int:
    ready = any(replica.phase is Phase.READY for replica in replicas)
    return max(int(number(traffic.held) or 0), 1 if woken and not ready else 0)


def replicas_seen(
    model: str, target: int, reports: Iterable[ReplicaReport], snapshot: Snapshot
) -> tuple[ReplicaObservation, ...]:
    """The replicas that report, and as STARTING those that Serve was asked for and that do not report yet."""
    seen = [_replica(report, _fresh(report, snapshot)) for report in reports]
    coming = target - sum(replica.phase is not Phase.DRAINING for replica in seen)
    return (*seen, *(ReplicaObservation(f"{model}-pending-{index}", Phase.STARTING) for index in range(coming)))


def _replica(report: ReplicaReport, fresh: bool) -> ReplicaObservation:
    phase = _phase(report)
    where = ReplicaObservation(report.replica_id, phase, gpus=report.gpu_uuids, host=report.node_ip)
    if not fresh:
        return where
    waiting, running = number(report.load.waiting), number(report.load.running)
    return where._replace(
        waiting=None if waiting is None else int(waiting),
        running=None if running is None else int(running),
        kv_use=number(report.load.kv_use),
        gpu_utilization=gpu_utilization(report),
        sick=report.sick is not None,
    )


def _phase(report: ReplicaReport) -> Phase:
    """A replica that drains because it moves comes back: it counts as starting."""
    if report.state is ReplicaState.READY:
        return Phase.READY
    moves = report.move is not None and report.move.state is MoveState.RUNNING
    return Phase.DRAINING if report.state is ReplicaState.DRAINING and not moves else Phase.STARTING


def gpu_utilization(report: ReplicaReport) -> float | None:
    """Mean over the replica's GPUs, 0 to 1; None when none of them says."""
    known = [value for value in (number(gpu.gpu_util_percent) for gpu in report.gpus) if value is not None]
    return sum(known) / len(known) / 100.0 if known else None


def number(value: float | None) -> float | None:
    """The value if it is a number a counter or gauge can have (finite, not negative), else None."""
    good = isinstance(value, int | float) and math.isfinite(value) and value >= 0.0
    return float(value) if good and value is not None else None


def _fresh(report: ReplicaReport, snapshot: Snapshot) -> bool:
    return snapshot.report_age_s.get(report.replica_id, math.inf) <= REPORT_STALE_S


def _counters(report: ReplicaReport) -> EngineCounters:
    load = report.load
    return EngineCounters(number(load.prompt_tokens_total), number(load.output_tokens_total), number(load.missed_total))


def _known(before: EngineCounters | None, now: EngineCounters) -> EngineCounters:
    """A reading that is missing now keeps the last one, so that nothing counted in between is lost."""
    if before is None:
        return now
    kept = EngineCounters(*(old if new is None else new for old, new in zip(before, now, strict=True)))
    if before.missed is None or kept.missed is None or _restarted(before, now):
        return kept
    return kept._replace(missed=max(before.missed, kept.missed))


def _added(total: float | None, before: float | None, now: float | None) -> float | None:
    """The total with what was counted since; unknown while no engine tells. One that starts again counts from 0."""
    if now is None:
        return total
    grown = 0.0 if before is None else now - before if now >= before else now
    return (total or 0.0) + grown


def _more(total: float | None, before: float | None, now: float | None) -> float | None:
    """The total with what was added; unknown while no engine tells.

    Misses are read off histograms with the allowance of the mean prompt, so the figure can fall a little without a
    restart; what it had reached is not counted twice.
    """
    if now is None:
        return total
    return (total or 0.0) + (0.0 if before is None else max(0.0, now - before))


def _restarted(before: EngineCounters, now: EngineCounters) -> bool:
    """Whether the engine began to count anew: its tokens, true counters, fell."""
    return any(old is not None and new is not None and new < old for old, new in zip(before[:2], now[:2], strict=True))


def _newest(old: Mapping[str, T], new: Mapping[str, T]) -> dict[str, T]:
    """Both, the new ones last, at most KEPT of them."""
    both = {key: value for key, value in old.items() if key not in new} | dict(new)
    return dict(list(both.items())[-KEPT:])
