"""Which replicas hold GPUs and do nothing with them, which nobody has looked at, and which hosts no replica uses.

Pure; times are wall-clock.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from raylane.autoscaling.observe import gpu_utilization
from raylane.deployments.directory.reports import Snapshot

IDLE_BELOW = 0.10  # GPU utilisation, 0 to 1
FORGET_AFTER_S = 600.0  # a replica that reports no more; longer than a directory needs to come back


@dataclass(frozen=True)
class GpuWatch:
    """One replica that holds GPUs."""

    model: str
    host: str
    gpus: tuple[str, ...]
    quiet_since_s: float
    """Since when no reading has been at IDLE_BELOW or above; before the first reading when it was first seen."""
    seen_s: float
    checked_s: float | None = None
    """When its utilisation was last known."""


Who = tuple[tuple[str, str], ...]
"""What is named, as keys and values of its log line."""


class Idleness(StrEnum):
    """Why a replica or a host is named. The values are the words for logs and people."""

    UNCHECKED = "no utilisation check"
    UNUSED = f"GPU utilisation under {IDLE_BELOW:.0%}"
    EMPTY = "no replica"


@dataclass(frozen=True)
class IdleReplica:
    """A replica to look at, what it has cost since, and why it is named."""

    replica_id: str
    model: str
    host: str
    gpus: tuple[str, ...]
    hours: float
    usd: float | None
    reason: Idleness

    @property
    def who(self) -> Who:
        return (("model", self.model), ("idle", self.replica_id))

    @property
    def problem(self) -> str:
        """In words."""
        return f"{self.reason} for {self.hours:.1f} h on {len(self.gpus)} GPUs of {self.host}{_dollars(self.usd)}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "problem": self.problem}


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
    reason: Idleness = Idleness.EMPTY

    @property
    def who(self) -> Who:
        return (("idle_host", self.host),)

    @property
    def problem(self) -> str:
        """In words."""
        return f"{self.reason} on any of {self.gpus} GPUs for {self.hours:.1f} h{_dollars(self.usd)}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "problem": self.problem}


Watches = Mapping[str, GpuWatch]
EmptyHosts = Mapping[str, EmptyHost]


def watch(watches: Watches, snapshot: Snapshot, now_s: float) -> dict[str, GpuWatch]:
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
            known = GpuWatch(report.model, report.node_ip, report.gpu_uuids, now_s, now_s)
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
            found.append(_named(replica, one, unchecked_s, usd_per_gpu_hour, Idleness.UNCHECKED))
        elif quiet_s >= idle_after_s:
            found.append(_named(replica, one, quiet_s, usd_per_gpu_hour, Idleness.UNUSED))
    return tuple(found)


def _named(replica: str, one: GpuWatch, for_s: float, usd_per_gpu_hour: float | None, reason: Idleness) -> IdleReplica:
    usd = _cost_usd(for_s, len(one.gpus), usd_per_gpu_hour)
    return IdleReplica(replica, one.model, one.host, one.gpus, for_s / 3600, usd, reason)


def _cost_usd(for_s: float, gpus: int, usd_per_gpu_hour: float | None) -> float | None:
    return None if usd_per_gpu_hour is None else for_s / 3600 * gpus * usd_per_gpu_hour


def _dollars(usd: float | None) -> str:
    return "" if usd is None else f", ${usd:,.2f}"


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
        for_s = now_s - one.since_s
        if for_s >= idle_after_s:
            found.append(IdleHost(host, one.gpus, for_s / 3600, _cost_usd(for_s, one.gpus, usd_per_gpu_hour)))
    return tuple(found)


def watches_to_json(watches: Watches) -> dict[str, Any]:
    return {replica: asdict(one) for replica, one in watches.items()}


def watches_from_json(data: Mapping[str, Any]) -> dict[str, GpuWatch]:
    return {replica: GpuWatch(**{**one, "gpus": tuple(one["gpus"])}) for replica, one in data.items()}


def empty_to_json(empty: EmptyHosts) -> dict[str, Any]:
    return {host: asdict(one) for host, one in empty.items()}


def empty_from_json(data: Mapping[str, Any]) -> dict[str, EmptyHost]:
    return {host: EmptyHost(**one) for host, one in data.items()}
