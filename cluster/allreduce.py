"""Which all-reduce settings an engine needs on the GPUs it got. Pure.

Sources: vLLM uses its own peer-to-peer all-reduce on two PCIe GPUs and on fully NVLinked ones, not on more PCIe GPUs.
It trusts the driver's word on peer access unless VLLM_SKIP_P2P_CHECK=0 and does not look at NCCL_P2P_DISABLE (vLLM
pull request 45004). Peer access that is offered and loses data under ACS with a translating IOMMU hangs TP=2 (vLLM
issue 51513, NCCL issue 2079).
"""

from dataclasses import dataclass
from itertools import combinations

from raylane.cluster.hosts import Host, Iommu, Link, LinkLevel, Verdict
from raylane.cluster.links import peer_access_offered

HOST_MEMORY = (("NCCL_P2P_DISABLE", "1"),)
CHECK_FIRST = (("VLLM_SKIP_P2P_CHECK", "0"),)


@dataclass(frozen=True)
class AllReduceSettings:
    """Environment variables for the engine's processes and whether its own peer-to-peer all-reduce may run.

    `custom_all_reduce` False means `--disable-custom-all-reduce` for vLLM and SGLang.
    """

    environment: tuple[tuple[str, str], ...]
    custom_all_reduce: bool
    reason: str


def allreduce_settings(host: Host, uuids: tuple[str, ...]) -> AllReduceSettings:
    """Settings for one replica on these GPUs, safest rule first. KeyError for a uuid that the host does not have.

    ValueError for a pair that is broken: no setting makes it usable.
    """
    links = [host.link(a, b) for a, b in combinations(uuids, 2)]
    if not links:
        host.gpu(uuids[0])
        return AllReduceSettings((), True, "one GPU: nothing is exchanged")
    for link in links:
        if link.measured is not None and link.measured.verdict is Verdict.BROKEN:
            raise ValueError(f"the pair {link.a}, {link.b} is broken ({link.measured.reason})")
    if any(link.measured is not None and link.measured.peer_access is False for link in links):
        return AllReduceSettings(HOST_MEMORY, False, "the probe found peer access wrong: data goes through host memory")
    if not all(peer_access_offered(link) for link in links):
        return AllReduceSettings(HOST_MEMORY, False, "the driver offers no peer access: data goes through host memory")
    if not all(proven(link) for link in links):
        return unproven(host, links)
    return proven_settings(links)


def proven(link: Link) -> bool:
    """True if the probe saw data cross the link by peer access unharmed."""
    return link.measured is not None and link.measured.peer_access is True


def unproven(host: Host, links: list[Link]) -> AllReduceSettings:
    """Some link was never probed: trust NVLink, let the engine check PCIe, and avoid what is known to hang."""
    if all(link.level is LinkLevel.NVLINK for link in links):
        return AllReduceSettings((), True, "NVLink, not probed")
    if host.iommu is Iommu.TRANSLATED:
        reason = "not probed, and the IOMMU translates addresses, which is known to lose peer writes"
        return AllReduceSettings(HOST_MEMORY, False, reason)
    if len(links) > 1 or any(link.level in (LinkLevel.SYS, None) for link in links):
        return AllReduceSettings((), False, "not probed; NCCL alone beyond two GPUs and across sockets")
    return AllReduceSettings(CHECK_FIRST, True, "not probed: the engine tests peer access before it relies on it")


def proven_settings(links: list[Link]) -> AllReduceSettings:
    """Every link was probed and carries peer access correctly."""
    if all(link.level is LinkLevel.NVLINK for link in links):
        return AllReduceSettings((), True, "NVLink, probed")
    if len(links) > 1:
        return AllReduceSettings((), False, "more than two PCIe GPUs: engines have no all-reduce of their own for them")
    if links[0].level in (LinkLevel.SYS, None):
        return AllReduceSettings((), False, "across sockets NCCL goes through host memory, which peer stores cannot")
    return AllReduceSettings((), True, "PCIe pair, peer access proven by the probe")
