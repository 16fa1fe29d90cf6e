"""Random starts, stops and crashes of singles and pairs on every recording."""

import random
from itertools import combinations
from pathlib import Path

import pytest

from raylane.cluster.choose import Choice, choose, is_second_best
from raylane.cluster.hosts import Host
from raylane.cluster.links import host_links
from raylane.cluster.recording import load_recording
from studies.performance.placement_study import by_lowest_index, by_raylane, study

ROOT = Path(__file__).resolve().parents[3]
RECORDINGS = sorted((ROOT / "tests/fixtures/topology").glob("*.json"))
PCIE = [path for path in RECORDINGS if path.stem.startswith("l40s")]


@pytest.mark.parametrize("path", PCIE, ids=lambda path: path.stem)
def test_fewer_pairs_on_second_best_links_than_by_lowest_index(path: Path) -> None:
    hosts = load_recording(path)
    ours = study(hosts, by_raylane, load=0.75)
    rays = study(hosts, by_lowest_index, load=0.75)
    assert ours.pairs > 1000
    assert ours.share is not None
    assert rays.share is not None
    assert ours.share < 0.07
    assert ours.share < rays.share / 4


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_second_best_link_is_taken_only_where_no_domain_is_free(path: Path) -> None:
    hosts = load_recording(path)
    for host in hosts:
        play(host, events=5_000 // len(hosts), seed=len(path.stem))


def play(host: Host, events: int, seed: int) -> None:
    """Starts and stops on one host; every pair's link is checked, and that no GPU is held twice."""
    draw, links = random.Random(seed), host_links(host)
    best = {frozenset(pair) for pair in combinations(links.uuids, 2) if not second_best(host, pair)}
    free = {gpu.uuid for gpu in host.gpus}
    running: list[tuple[str, ...]] = []
    for _ in range(events):
        found = choose(frozenset(free), host, draw.choice((1, 2)))
        if isinstance(found, Choice) and (draw.random() < 0.6 or not running):
            assert set(found.uuids) <= free
            available = any(pair <= free for pair in best)
            assert not (found.second_best and available)
            free -= set(found.uuids)
            running.append(found.uuids)
        elif running:
            free |= set(running.pop(draw.randrange(len(running))))
    assert len(free) + sum(len(uuids) for uuids in running) == len(host.gpus)


def second_best(host: Host, pair: tuple[str, str]) -> bool:
    links = host_links(host)
    return is_second_best(links.costs, tuple(sorted(links.uuids.index(uuid) for uuid in pair)), links.far)
