"""Which replicas hold GPUs and do nothing with them, and which nobody has looked at. Pure; times are wall-clock."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from raylane.autoscaling.observe import gpu_utilization
from raylane.deployments.reports import Snapshot

IDLE_BELOW = 0.10  # GPU utilisation, 0 to 1
FORGET_AFTER_S = 600.0  # a replica that reports no more; longer than a directory needs to come back


@dataclass(frozen=True)
class Watch:
    """One replica that holds GPUs."""

    model: str
    host: str
    gpus: tuple[str, ...]
    quiet_since_s: float
    """Since when no reading has been at IDLE_BELOW or above; before the first reading when it was first seen."""
    seen_s: float
    checked_s: float | None = None
    """When its utilisation was last known."""


@dataclass(frozen=True)
class IdleReplica:
    """A replica to look at, what it has cost since, and why it is named."""

    replica_id: str
    model: str
    host: str
    gpus: tuple[str, ...]
    hours: float
    usd: float | None
    problem: str


Watches = Mapping[str, Watch]


def watch(watches: Watches, snapshot: Snapshot, now_s: float) -> dict[str, Watch]:
    """The watches after one more look."""
    here = {report.replica_id for report in snapshot.replicas}
    after = {
        replica: known
        for replica, known in watches.items()
        if replica in here or now_s - known.seen_s <= FORGET_AFTER_S
    }
    for report in snapshot.replicas:
        if not report.gpu_uuids:
            after.pop(report.replica_id, None)
            continue
        known = after.get(report.replica_id)
        if known is None or known.gpus != report.gpu_uuids:
            known = Watch(report.model, report.node_ip, report.gpu_uuids, now_s, now_s)
        used = gpu_utilization(report)
        known = replace(known, seen_s=now_s)
        if used is not None:
            quiet = used < IDLE_BELOW and known.checked_s is not None
            since_s = known.quiet_since_s if quiet else now_s
            known = replace(known, checked_s=now_s, quiet_since_s=since_s)
        after[report.replica_id] = known
    return after


def idle_replicas(
    watches: Watches, now_s: float, idle_after_s: float, usd_per_gpu_hour: float | None
) -> tuple[IdleReplica, ...]:
    """Replicas under 10 % for `idle_after_s`, and replicas whose utilisation has not been known for that long."""
    found = []
    for replica, one in watches.items():
        quiet_s = 0.0 if one.checked_s is None else one.checked_s - one.quiet_since_s
        unchecked_s = now_s - (one.quiet_since_s if one.checked_s is None else one.checked_s)
        if unchecked_s >= idle_after_s:
            found.append(_named(replica, one, unchecked_s, usd_per_gpu_hour, "no utilisation check"))
        elif quiet_s >= idle_after_s:
            found.append(_named(replica, one, quiet_s, usd_per_gpu_hour, f"GPU utilisation under {IDLE_BELOW:.0%}"))
    return tuple(found)


def _named(replica: str, one: Watch, for_s: float, usd_per_gpu_hour: float | None, what: str) -> IdleReplica:
    hours = for_s / 3600
    usd = None if usd_per_gpu_hour is None else hours * len(one.gpus) * usd_per_gpu_hour
    cost = "" if usd is None else f", ${usd:,.2f}"
    problem = f"{what} for {hours:.1f} h on {len(one.gpus)} GPUs of {one.host}{cost}"
    return IdleReplica(replica, one.model, one.host, one.gpus, hours, usd, problem)


def watches_to_json(watches: Watches) -> dict[str, Any]:
    return {replica: asdict(one) for replica, one in watches.items()}


def watches_from_json(data: Mapping[str, Any]) -> dict[str, Watch]:
    return {replica: Watch(**{**one, "gpus": tuple(one["gpus"])}) for replica, one in data.items()}
