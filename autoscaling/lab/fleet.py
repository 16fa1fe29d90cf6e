"""The GPUs of the simulated hosts: who holds which. Replicas are placed as live ones are, by cluster/choose.py."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from raylane.autoscaling.spec import ModelSpec
from raylane.cluster.choose import Choice, choose
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Host
from raylane.cluster.links import host_links


@dataclass(frozen=True)
class GpuPlace:
    """GPUs of one replica. `second_best`: not the best links, because a whole domain was not free."""

    host: str
    gpus: tuple[str, ...]
    second_best: bool


class LabFleet:
    """Free and held GPUs of some hosts."""

    def __init__(self, hosts: Iterable[Host]) -> None:
        self.hosts = {host.name: host for host in hosts}
        self.free = {host.name: frozenset(gpu.uuid for gpu in host.gpus) for host in self.hosts.values()}
        self.size = sum(len(free) for free in self.free.values())

    def take(self, gpus: int) -> GpuPlace | None:
        """The best free GPUs for one replica: a whole domain before a second-best set; None if no host has enough."""
        found: GpuPlace | None = None
        for name, free in self.free.items():
            choice = _choose(free, self.hosts[name], gpus) if len(free) >= gpus else None
            if isinstance(choice, Choice) and (found is None or (found.second_best and not choice.second_best)):
                found = GpuPlace(name, choice.uuids, choice.second_best)
        if found is not None:
            self.free[found.host] -= set(found.gpus)
        return found

    def take_these(self, host: str, gpus: tuple[str, ...]) -> GpuPlace | None:
        """Exactly these GPUs, or None when one of them is held."""
        if not self.free[host].issuperset(gpus):
            return None
        self.free[host] -= set(gpus)
        return GpuPlace(host, gpus, second_best=False)

    def give_back(self, place: GpuPlace) -> None:
        """These GPUs are free again."""
        self.free[place.host] |= set(place.gpus)


_choose = lru_cache(maxsize=65536)(choose)


def check_room(hosts: Sequence[Host], models: Iterable[ModelSpec]) -> None:
    """Places the least replicas of the models one after the other, as a replay begins. UsageError naming the model
    that finds no room, or one of which no replica fits a host."""
    fleet = LabFleet(hosts)
    for spec in models:
        if LabFleet(hosts).take(spec.gpus) is None:
            largest = max((len(host_links(host).uuids) for host in hosts), default=0)
            raise UsageError(
                f"model {spec.name}: a replica takes {spec.gpus} GPUs with usable links to each other, "
                f"the largest host has {largest} usable GPUs"
            )
        for placed in range(spec.min_replicas):
            if fleet.take(spec.gpus) is None:
                raise UsageError(
                    f"model {spec.name}: replicas.min {spec.min_replicas} of {spec.gpus} GPUs each, but the fleet of "
                    f"{fleet.size} GPUs has room for {placed} beside the least replicas of the models before it "
                    "(name models with larger replicas first)"
                )
