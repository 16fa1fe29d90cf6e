"""How often a tensor parallel pair ends up on a second-best link: raylane's choice beside Ray's lowest free index.

20,000 random starts, stops and crashes of single-GPU and two-GPU replicas on every recorded topology. Both rules see
the same random events and the same rule for the host (the fullest that has room). A crashed replica starts again at
once.

    python -m studies.performance.placement_study RECORDING...
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raylane.cluster.choose import Refusal, choose, is_second_best
from raylane.cluster.hosts import Host
from raylane.cluster.links import host_links
from raylane.cluster.recording import load_recording

EVENTS = 20_000
CRASH_SHARE = 0.1
LOADS = (0.5, 0.75, 0.95)  # share of the GPUs in use that the random events steer towards

Uuids = tuple[str, ...]
Rule = Callable[[frozenset[str], Host, int], Uuids | None]


@dataclass
class Tally:
    """Starts of pairs under one rule."""

    pairs: int = 0
    second_best: int = 0

    @property
    def share(self) -> float | None:
        return self.second_best / self.pairs if self.pairs else None


def by_raylane(free: frozenset[str], host: Host, tp: int) -> Uuids | None:
    """raylane's rule."""
    choice = choose(free, host, tp)
    return None if isinstance(choice, Refusal) else choice.uuids


def by_lowest_index(free: frozenset[str], host: Host, tp: int) -> Uuids | None:
    """Ray's rule: the lowest free indices, whatever their links."""
    return tuple(gpu.uuid for gpu in host.gpus if gpu.uuid in free)[:tp]


def study(hosts: list[Host], rule: Rule, load: float, events: int = EVENTS, seed: int = 0) -> Tally:
    """Play random events under one rule. Starts and stops balance at `load` of all GPUs."""
    draw = random.Random(seed)
    free = {host.name: {gpu.uuid for gpu in host.gpus} for host in hosts}
    total = sum(len(gpus) for gpus in free.values())
    running: list[tuple[Host, Uuids]] = []
    tally = Tally()
    for _ in range(events):
        start, tp, victim, crash = draw.random(), draw.choice((1, 2)), draw.random(), draw.random()
        used = total - sum(len(gpus) for gpus in free.values())
        if total == 0 or start < (0.8 if used < load * total else 0.2):
            begin(hosts, free, running, tally, rule, tp)
        elif running:
            host, uuids = running.pop(int(victim * len(running)))
            free[host.name] |= set(uuids)
            if crash < CRASH_SHARE:
                begin(hosts, free, running, tally, rule, len(uuids))
    return tally


def begin(
    hosts: list[Host],
    free: dict[str, set[str]],
    running: list[tuple[Host, Uuids]],
    tally: Tally,
    rule: Rule,
    tp: int,
) -> None:
    """Start one replica on the fullest host with room, if there is one."""
    roomy = [host for host in hosts if len(free[host.name]) >= tp]
    if not roomy:
        return
    host = min(roomy, key=lambda candidate: len(free[candidate.name]))
    uuids = rule(frozenset(free[host.name]), host, tp)
    if uuids is None:
        return
    free[host.name] -= set(uuids)
    running.append((host, uuids))
    if tp > 1:
        links = host_links(host)
        tally.pairs += 1
        members = tuple(sorted(links.uuids.index(uuid) for uuid in uuids))
        tally.second_best += is_second_best(links.costs, members, links.far)


def main() -> None:
    """Print one row for each recording and load."""
    print(f"{'recording':<28}{'load':>6}{'pairs':>8}{'raylane':>10}{'Ray':>8}")
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("recordings", nargs="+", type=Path, help="hosts as `raylane topology --record` writes them")
    for path in sorted(arguments.parse_args().recordings):
        hosts = load_recording(path)
        for load in LOADS:
            ours, rays = study(hosts, by_raylane, load), study(hosts, by_lowest_index, load)
            if ours.pairs:
                print(f"{path.stem:<28}{load:>6.0%}{ours.pairs:>8}{ours.share:>10.1%}{rays.share:>8.1%}")
            else:
                print(f"{path.stem:<28}{load:>6.0%}{0:>8}{'-':>10}{'-':>8}")


if __name__ == "__main__":
    main()
