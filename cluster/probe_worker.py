"""One rank of a probe: proves that data crosses the links unharmed, then measures them. Needs torch.

Run by `probe` as `python -m raylane.cluster.probe_worker --folder DIR --rank R --size N`, with CUDA_VISIBLE_DEVICES set
to the group's GPUs. The folder carries everything between parent and ranks: the ranks' rendezvous, the files `go` and
`measure` with which the parent lets a phase begin, and a file of JSON lines per rank with what happened. A rank that
finds wrong data says so and leaves; one that hangs is ended by the parent.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_S = 0.005
WATCH_S = 0.5
ALLREDUCE_BYTES = {"allreduce_8kb_s": 8 * 1024, "allreduce_256kb_s": 256 * 1024, "allreduce_32mb_s": 32 * 1024 * 1024}
TARGET_S = 0.05  # a timed loop lasts about this long, between 5 and 100 rounds
CHECK_ROUNDS = 3
DIRECT_BYTES = 64 * 1024 * 1024
COPY_BYTES = 256 * 1024 * 1024


class CorruptError(Exception):
    """Data arrived changed; the message says on which path."""


@dataclass(frozen=True)
class Group:
    """This rank's place: `device` is what torch calls its GPU, or the CPU."""

    rank: int
    size: int
    backend: str
    device: Any
    direct: bool

    def sync(self) -> None:
        """Wait until this rank's GPU is idle."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> None:
    """Import torch, then check and measure, each when the parent says so."""
    options = parse()
    watch(options.limit_s)
    events = options.folder / f"rank{options.rank}.events"
    import torch
    import torch.distributed as dist

    if options.backend == "nccl" and torch.cuda.device_count() < options.size:
        sys.exit(f"torch sees {torch.cuda.device_count()} of {options.size} GPUs")
    report(events, event="ready")
    wait_for(options.folder / "go")
    group = join(options)
    try:
        check(group)
    except CorruptError as error:
        report(events, event="corrupt", detail=str(error))
        os._exit(0)  # the other ranks may hang: no orderly end is possible
    report(events, event="checked", peer_access=peer_access(group))
    wait_for(options.folder / "measure")
    with torch.inference_mode():
        report(events, event="result", **measure(group))
    dist.destroy_process_group()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--limit-s", type=float, default=120.0, help="this process ends itself after so long")
    parser.add_argument("--backend", choices=("nccl", "gloo"), default="nccl", help="gloo: on the CPU, for tests")
    parser.add_argument("--no-direct", action="store_true", help="leave direct peer access alone")
    return parser.parse_args()


def report(path: Path, **event: Any) -> None:
    """Append one event for the parent."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def wait_for(path: Path) -> None:
    """Return once the parent has made the file."""
    while not path.exists():
        time.sleep(POLL_S)


def watch(limit_s: float) -> None:
    """End this process when its parent is gone or the limit is over, even while it hangs in a collective."""
    parent, end = os.getppid(), time.monotonic() + limit_s

    def loop() -> None:
        while os.getppid() == parent and time.monotonic() < end:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=loop, daemon=True).start()


def join(options: argparse.Namespace) -> Group:
    """Form the process group; the rendezvous is a file, so no port is taken."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore  # torch.distributed has it without exporting it to type checkers

    cuda = options.backend == "nccl"
    device = torch.device("cuda", options.rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        options.backend,
        store=FileStore(str(options.folder / "store"), options.size),
        rank=options.rank,
        world_size=options.size,
        device_id=device if cuda else None,
    )
    return Group(options.rank, options.size, options.backend, device, not options.no_direct)


def peer_access(group: Group) -> bool | None:
    """Whether direct peer access was checked and works; None on the CPU and for more than two GPUs."""
    return can_access(group) if group.device.type == "cuda" and group.size == 2 else None


def can_access(group: Group) -> bool:
    """True if peer access is to be used and the driver offers it both ways."""
    import torch

    both = torch.cuda.can_device_access_peer(0, 1) and torch.cuda.can_device_access_peer(1, 0)
    return group.direct and both


def check(group: Group) -> None:
    """Raise CorruptError if known data arrives changed: by direct copies and stores, and in all-reduces."""
    if group.rank == 0 and peer_access(group):
        for source, target in ((0, 1), (1, 0)):
            for turn in range(CHECK_ROUNDS):
                check_direct(source, target, turn)
    group.sync()
    for size in ALLREDUCE_BYTES.values():
        for turn in range(CHECK_ROUNDS):
            check_all_reduce(group, size, turn)


def check_direct(source: int, target: int, turn: int) -> None:
    """One GPU writes into the other's memory, which then compares, by copy engine and by a kernel.

    torch copies strided data between GPUs with an elementwise kernel on the source that stores through the peer
    mapping: the path on which an engine's own all-reduce was seen to corrupt data while plain copies were right.
    """
    import torch

    count = DIRECT_BYTES // 4
    given = torch.arange(count, dtype=torch.int32, device=f"cuda:{source}").mul_(2 * turn + 3)
    expected = torch.arange(count, dtype=torch.int32, device=f"cuda:{target}").mul_(2 * turn + 3)
    for path in ("copy engine", "kernel stores"):
        landed = torch.full((count,), -1, dtype=torch.int32, device=f"cuda:{target}")
        torch.cuda.synchronize(target)
        if path == "copy engine":
            landed.copy_(given)
        else:
            for half in (0, 1):
                landed.view(-1, 2)[:, half].copy_(given.view(-1, 2)[:, half])
        torch.cuda.synchronize(source)
        wrong = int((landed != expected).sum())
        if wrong:
            raise CorruptError(f"{path} from GPU {source} to GPU {target}: {wrong} of {count} words wrong")


def check_all_reduce(group: Group, size_bytes: int, turn: int) -> None:
    """Sum known whole numbers, exact in float32, and compare on every rank."""
    import torch
    import torch.distributed as dist

    pattern = torch.arange(size_bytes // 4, device=group.device).add_(turn * 7).remainder_(1009).float()
    data = pattern * (group.rank + 1)
    dist.all_reduce(data)
    group.sync()
    wrong = int((data != pattern * (group.size * (group.size + 1) // 2)).sum())
    if wrong:
        raise CorruptError(f"all-reduce of {size_bytes} bytes: {wrong} of {size_bytes // 4} words wrong")


def measure(group: Group) -> dict[str, float]:
    """Times in seconds and rates in bytes/s under the names of LinkMeasurement."""
    found = {name: time_all_reduce(group, size) for name, size in ALLREDUCE_BYTES.items()}
    if group.size == 2:
        found["latency_s"] = time_ping_pong(group)
        if group.rank == 0 and group.device.type == "cuda" and group.direct:
            found["a_to_b_bytes_per_s"] = copy_rate(0, 1)
            found["b_to_a_bytes_per_s"] = copy_rate(1, 0)
    return found


def time_all_reduce(group: Group, size_bytes: int) -> float:
    """Mean seconds of one all-reduce in a row of them."""
    import torch
    import torch.distributed as dist

    data = torch.zeros(size_bytes // 4, device=group.device)
    return mean_s(group, lambda: dist.all_reduce(data))


def time_ping_pong(group: Group) -> float:
    """Half a round trip of 8 bytes between two ranks."""
    import torch
    import torch.distributed as dist

    data = torch.zeros(2, device=group.device)

    def round_trip() -> None:
        for sender in (0, 1):
            if group.rank == sender:
                dist.send(data, 1 - sender)
            else:
                dist.recv(data, sender)

    return mean_s(group, round_trip) / 2


def copy_rate(source: int, target: int) -> float:
    """Bytes per second of a plain copy from one GPU to the other."""
    import torch

    given = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=f"cuda:{source}")
    landed = torch.empty_like(given, device=f"cuda:{target}")

    def copy_all(rounds: int) -> float:
        start = time.perf_counter()
        for _ in range(rounds):
            landed.copy_(given, non_blocking=True)
        torch.cuda.synchronize(source)
        torch.cuda.synchronize(target)
        return time.perf_counter() - start

    copy_all(2)
    return 8 * COPY_BYTES / copy_all(8)


def mean_s(group: Group, action: Callable[[], Any]) -> float:
    """Mean seconds of an action that all ranks do together: warmed up, and as often as fills TARGET_S.

    Every rank must do the same number of rounds: the slowest rank's warm-up decides it.
    """
    import torch
    import torch.distributed as dist

    timed(group, action, 5)
    once = torch.tensor(timed(group, action, 5), device=group.device)
    dist.all_reduce(once, op=dist.ReduceOp.MAX)
    rounds = max(5, min(100, int(TARGET_S / max(float(once), 1e-9))))
    return timed(group, action, rounds)


def timed(group: Group, action: Callable[[], Any], rounds: int) -> float:
    """Mean seconds of `rounds` actions in a row."""
    group.sync()
    start = time.perf_counter()
    for _ in range(rounds):
        action()
    group.sync()
    return (time.perf_counter() - start) / rounds


if __name__ == "__main__":
    main()
