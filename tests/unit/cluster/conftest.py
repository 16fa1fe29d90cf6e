"""Hosts for tests: any number of GPUs with levels and measurements given by index."""

from collections.abc import Callable
from itertools import combinations

import pytest

from raylane.cluster.hosts import Gpu, Host, Link, LinkLevel, LinkMeasurement, PeerStatus, Verdict


def build_host(
    count: int,
    level: Callable[[int, int], LinkLevel] = lambda a, b: LinkLevel.NODE,
    times_ms: dict[tuple[int, int], float] | None = None,
    broken: frozenset[tuple[int, int]] = frozenset(),
    name: str = "host",
    gpu_names: dict[int, str] | None = None,
    mig: frozenset[int] = frozenset(),
    nodes: tuple[int | None, ...] | None = None,
) -> Host:
    """GPUs name-0, name-1, ... `times_ms` are measured 32 MiB all-reduces of pairs (a < b), `broken` failed pairs,
    `nodes` the NUMA node of each GPU."""
    gpus = tuple(
        Gpu(
            f"{name}-{i}",
            i,
            (gpu_names or {}).get(i, "NVIDIA L40S"),
            mig=True if i in mig else None,
            numa_node=nodes[i] if nodes else None,
        )
        for i in range(count)
    )
    links = []
    for a, b in combinations(range(count), 2):
        measured = None
        if (a, b) in broken:
            measured = LinkMeasurement(Verdict.BROKEN, reason="hangs")
        elif times_ms and (a, b) in times_ms:
            measured = LinkMeasurement(Verdict.OK, peer_access=True, allreduce_32mb_s=times_ms[a, b] / 1e3)
        ok = PeerStatus.OK
        links.append(Link(gpus[a].uuid, gpus[b].uuid, level(a, b), p2p_read=ok, p2p_write=ok, measured=measured))
    return Host(name, gpus, tuple(links))


@pytest.fixture(scope="session")
def build() -> Callable[..., Host]:
    return build_host
