from collections.abc import Callable
from dataclasses import replace

import pytest

from raylane.cluster.allreduce import allreduce_settings
from raylane.cluster.hosts import Host, Iommu, LinkLevel, LinkMeasurement, PeerStatus, Verdict

Build = Callable[..., Host]
PROVEN = LinkMeasurement(Verdict.OK, peer_access=True, allreduce_32mb_s=0.002)
HOST_MEMORY = LinkMeasurement(Verdict.OK, "corrupts", peer_access=False, allreduce_32mb_s=0.004)


def with_links(build: Build, count: int, level: LinkLevel, measured: LinkMeasurement | None) -> Host:
    host = build(count, lambda a, b: level)
    return replace(host, links=tuple(replace(link, measured=measured) for link in host.links))


P2P_OFF = {"NCCL_P2P_DISABLE": "1"}
CHECK = {"VLLM_SKIP_P2P_CHECK": "0"}


@pytest.mark.parametrize(
    ("count", "level", "measured", "iommu", "environment", "custom"),
    [
        pytest.param(1, LinkLevel.PIX, None, None, {}, True, id="one GPU"),
        pytest.param(2, LinkLevel.PIX, PROVEN, None, {}, True, id="a proven pair on a switch"),
        pytest.param(2, LinkLevel.NODE, PROVEN, None, {}, True, id="a proven pair on one socket"),
        pytest.param(2, LinkLevel.SYS, PROVEN, None, {}, False, id="a proven pair across sockets"),
        pytest.param(4, LinkLevel.PIX, PROVEN, None, {}, False, id="four PCIe GPUs"),
        pytest.param(4, LinkLevel.NVLINK, PROVEN, None, {}, True, id="four NVLink GPUs"),
        pytest.param(2, LinkLevel.PIX, HOST_MEMORY, None, P2P_OFF, False, id="the probe found peer access wrong"),
        pytest.param(2, LinkLevel.NVLINK, HOST_MEMORY, None, P2P_OFF, False, id="even over NVLink"),
        pytest.param(2, LinkLevel.PIX, None, None, CHECK, True, id="not probed"),
        pytest.param(2, LinkLevel.SYS, None, None, {}, False, id="not probed, across sockets"),
        pytest.param(4, LinkLevel.PIX, None, None, {}, False, id="not probed, four PCIe GPUs"),
        pytest.param(2, LinkLevel.NVLINK, None, Iommu.TRANSLATED, {}, True, id="not probed, NVLink"),
        pytest.param(
            2, LinkLevel.PIX, None, Iommu.TRANSLATED, P2P_OFF, False, id="not probed under a translating IOMMU"
        ),
        pytest.param(
            2, LinkLevel.PIX, None, Iommu.IDENTITY, CHECK, True, id="not probed, IOMMU passes addresses through"
        ),
        pytest.param(2, LinkLevel.PIX, PROVEN, Iommu.TRANSLATED, {}, True, id="proven under a translating IOMMU"),
    ],
)
def test_settings(
    build: Build,
    count: int,
    level: LinkLevel,
    measured: LinkMeasurement | None,
    iommu: Iommu | None,
    environment: dict[str, str],
    custom: bool,
) -> None:
    host = replace(with_links(build, count, level, measured), iommu=iommu)
    found = allreduce_settings(host, tuple(gpu.uuid for gpu in host.gpus))
    assert (dict(found.environment), found.custom_all_reduce) == (environment, custom)
    assert found.reason


def test_no_peer_access_by_the_drivers_word(build: Build) -> None:
    host = build(2, lambda a, b: LinkLevel.PIX)
    host = replace(host, links=(replace(host.links[0], p2p_write=PeerStatus.CHIPSET_NOT_SUPPORTED),))
    found = allreduce_settings(host, ("host-0", "host-1"))
    assert (dict(found.environment), found.custom_all_reduce) == (P2P_OFF, False)


def test_only_the_chosen_gpus_count(build: Build) -> None:
    host = build(3, broken=frozenset({(0, 2), (1, 2)}), times_ms={(0, 1): 1.0})
    assert allreduce_settings(host, ("host-0", "host-1")).custom_all_reduce


def test_no_setting_helps_a_broken_pair(build: Build) -> None:
    with pytest.raises(ValueError, match="host-0, host-1 is broken"):
        allreduce_settings(build(2, broken=frozenset({(0, 1)})), ("host-0", "host-1"))
