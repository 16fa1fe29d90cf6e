"""Hosts, their domains, GPUs and replicas as one structure, from what nodes and replicas say. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from raylane.cluster.domains import Domain, domains
from raylane.cluster.hosts import Gpu, Host, LinkLevel
from raylane.cluster.leases import Holder
from raylane.cluster.links import Source
from raylane.deployments.directory.reports import ReplicaReport


@dataclass(frozen=True)
class Seen:
    """A machine as it sees itself: GPUs and links, held leases of GPUs and of ports, processes of engines."""

    host: Host
    gpu_leases: tuple[Holder, ...]
    port_leases: tuple[Holder, ...]
    engine_pids: frozenset[int]


@dataclass(frozen=True)
class NodeSight:
    """A Ray node, how many GPUs Ray counts on it, and what it sees; None and why when it does not say."""

    address: str
    gpus: float
    seen: Seen | None
    problem: str | None = None


class GpuUse(StrEnum):
    """Who has a GPU."""

    FREE = "free"
    LEASED = "leased"
    FOREIGN = "foreign"  # nobody leases it, and a process that is no engine of raylane's uses it


@dataclass(frozen=True)
class GpuView:
    """One GPU and who has it. `foreign_pids` are processes on it that are no engine's; None where nobody tells."""

    index: int
    uuid: str
    pci_bus_id: str | None
    numa_node: int | None
    use: GpuUse
    model: str | None = None
    replica_id: str | None = None
    second_best: bool = False
    problem: str | None = None
    foreign_pids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DomainView:
    """GPUs that belong together, by their slowest link; its three values are None for a GPU on its own."""

    level: LinkLevel | None
    seconds: float | None
    source: Source | None
    gpus: tuple[GpuView, ...]


@dataclass(frozen=True)
class HostView:
    """One host. `gpu_name` names its kinds of GPU; `replicas_without_gpu` are ids of replicas that need none."""

    name: str
    address: str
    gpu_name: str
    driver_version: str | None
    domains: tuple[DomainView, ...]
    replicas_without_gpu: tuple[str, ...]
    problems: tuple[str, ...]

    def gpus(self) -> list[GpuView]:
        return [gpu for domain in self.domains for gpu in domain.gpus]


def cluster_view(sights: Iterable[NodeSight], replicas: Iterable[ReplicaReport]) -> list[HostView]:
    """Every host with what is on it, those without a replica too."""
    replicas = list(replicas)
    by_gpu = {uuid: replica for replica in replicas for uuid in replica.gpu_uuids}
    return [_host(sight, by_gpu, replicas) for sight in sights]


def _host(sight: NodeSight, by_gpu: Mapping[str, ReplicaReport], replicas: list[ReplicaReport]) -> HostView:
    address = sight.address
    if sight.seen is None:
        return HostView(address, address, "", None, (), (), (sight.problem or "not known",))
    host = sight.seen.host
    here = {holder.owner.partition(" ")[2] for holder in sight.seen.port_leases}  # addresses may be shared or odd
    plain = tuple(r.replica_id for r in replicas if not r.gpu_uuids and r.replica_id in here)
    grouped = list(domains(host))
    inside = {uuid for domain in grouped for uuid in domain.uuids}
    grouped += [Domain((gpu.uuid,), None, None, None) for gpu in host.gpus if gpu.uuid not in inside]  # in MIG mode
    owners = {holder.resource: holder.owner for holder in sight.seen.gpu_leases}
    views = tuple(
        DomainView(
            domain.level,
            domain.seconds,
            domain.source,
            tuple(_gpu(host.gpu(uuid), sight.seen, owners, by_gpu) for uuid in domain.uuids),
        )
        for domain in grouped
    )
    names = ", ".join(sorted({gpu.name for gpu in host.gpus}))
    problems = host.problems if sight.gpus or host.gpus else ()  # without a GPU to find, none is missed
    return HostView(host.name, address, names, host.driver_version, views, plain, problems)


def _gpu(gpu: Gpu, seen: Seen, owners: Mapping[str, str], by_gpu: Mapping[str, ReplicaReport]) -> GpuView:
    replica, owner = by_gpu.get(gpu.uuid), owners.get(gpu.uuid)
    leased = replica is not None or owner is not None
    foreign = _foreign(gpu, seen, leased)
    model, _, replica_id = (owner or "").partition(" ")  # a replica that has not reported yet has signed its lock
    return GpuView(
        index=gpu.index,
        uuid=gpu.uuid,
        pci_bus_id=gpu.pci_bus_id,
        numa_node=gpu.numa_node,
        use=GpuUse.LEASED if leased else GpuUse.FOREIGN if foreign else GpuUse.FREE,
        model=replica.model if replica else model or None,
        replica_id=replica.replica_id if replica else replica_id or None,
        second_best=replica is not None and replica.second_best,
        problem=replica.gpu_problem if replica else None,
        foreign_pids=foreign,
    )


def _foreign(gpu: Gpu, seen: Seen, leased: bool) -> tuple[int, ...] | None:
    """The GPU's processes without the engines'. On a leased GPU where no engine is seen, pids may be another
    namespace's, and nothing is said."""
    if gpu.processes is None or (leased and not seen.engine_pids.intersection(gpu.processes)):
        return None
    return tuple(pid for pid in gpu.processes if pid not in seen.engine_pids)
