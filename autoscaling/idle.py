"""Which replicas hold GPUs and do nothing with them, which nobody has looked at, and which hosts no replica uses.

Pure; times are wall-clock.
"""

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


@dataclass(frozen=True)
class EmptyHost:
    """A host with GPUs of which no replica holds one."""

    gpus: int
    since_s: float
    seen_s: float


@dataclass(frozen=True)
class IdleHost:
    """A host that no replica has used for long, and what its GPUs have cost since."""

    host: str
    gpus: int
    hours: float
    usd: float | None
    problem: str


Watches = Mapping[str, Watch]
EmptyHosts = Mapping[str, EmptyHost]


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
    hours, usd, cost = _cost(for_s, len(one.gpus), usd_per_gpu_hour)
    problem = f"{what} for {hours:.1f} h on {len(one.gpus)} GPUs of {one.host}{cost}"
    return IdleReplica(replica, one.model, one.host, one.gpus, hours, usd, problem)


def _cost(for_s: float, gpus: int, usd_per_gpu_hour: float | None) -> tuple[float, float | None, str]:
    """(hours, dollars, dollars in words)."""
    hours = for_s / 3600
    usd = None if usd_per_gpu_hour is None else hours * gpus * usd_per_gpu_hour
    return hours, usd, "" if usd is None else f", ${usd:,.2f}"


def watch_hosts(empty: EmptyHosts, snapshot: Snapshot, gpus: Mapping[str, int], now_s: float) -> dict[str, EmptyHost]:
    """The hosts of whose GPUs no replica holds one, after one more look. `gpus` of every host, by its address.

    After a time in which nobody looked it begins anew: a replica may have been there.
    """
    watched = {host for host, one in empty.items() if now_s - one.seen_s <= FORGET_AFTER_S}
    used = {report.node_ip for report in snapshot.replicas if report.gpu_uuids}
    return {
        host: EmptyHost(count, empty[host].since_s if host in watched else now_s, now_s)
        for host, count in gpus.items()
        if count and host not in used
    }


def idle_hosts(
    empty: EmptyHosts, now_s: float, idle_after_s: float, usd_per_gpu_hour: float | None
) -> tuple[IdleHost, ...]:
    """Hosts that no replica has used for `idle_after_s`."""
    found = []
    for host, one in empty.items():
        hours, usd, cost = _cost(now_s - one.since_s, one.gpus, usd_per_gpu_hour)
        if now_s - one.since_s >= idle_after_s:
            problem = f"no replica on any of {one.gpus} GPUs for {hours:.1f} h{cost}"
            found.append(IdleHost(host, one.gpus, hours, usd, problem))
    return tuple(found)


def watches_to_json(watches: Watches) -> dict[str, Any]:
    return {replica: asdict(one) for replica, one in watches.items()}


def watches_from_json(data: Mapping[str, Any]) -> dict[str, Watch]:
    return {replica: Watch(**{**one, "gpus": tuple(one["gpus"])}) for replica, one in data.items()}


def empty_to_json(empty: EmptyHosts) -> dict[str, Any]:
    return {host: asdict(one) for host, one in empty.items()}


def empty_from_json(data: Mapping[str, Any]) -> dict[str, EmptyHost]:
    return {host: EmptyHost(**one) for host, one in data.items()}
