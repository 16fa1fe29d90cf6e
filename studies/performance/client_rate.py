"""How many streams a second the load client carries, on two shared cores, against a server that answers at once.

    python -m studies.performance.client_rate [--seconds 4] [--concurrency 64]

The stub server runs in a child process on a free loopback port; client and stub are bound to the same two cores.
"""

import argparse
import os
import time

import uvloop

from raylane.benchmarks.client import LoadClient
from raylane.benchmarks.load import CaseLoad
from raylane.benchmarks.plan import BenchmarkPlan, Stream
from raylane.benchmarks.records import RawReply
from raylane.benchmarks.sse import read_stream
from studies.performance.stub import stub_engine


def _bind(cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)


def _plan(port: int, tokens: int, concurrency: int, seconds: float) -> BenchmarkPlan:
    stream = {
        "model": "stub",
        "load": {"shape": "concurrency", "concurrency": concurrency},
        "input_tokens": 16,
        "output_tokens": tokens,
    }
    return BenchmarkPlan.from_data(
        {
            "name": "client-rate",
            "base_url": f"http://127.0.0.1:{port}",
            "cases": [{"name": "rate", "duration_s": seconds, "streams": [stream]}],
        },
        "client_rate.py",
    )


async def _measure(plan: BenchmarkPlan) -> str:
    replies: list[RawReply] = []

    def keep(_: Stream, reply: RawReply) -> None:
        replies.append(reply)

    async with LoadClient(plan.base_url, None, plan.request_timeout_s, time.perf_counter) as client:
        load = CaseLoad(plan, plan.cases[0], client, time.perf_counter, keep)
        await load.run()
    start_s, end_s, cpu_s = load.times.window_start_s, load.times.window_end_s, load.times.window_cpu_s
    if start_s is None or end_s is None or cpu_s is None:
        raise RuntimeError("the case ended without a window")
    window_s = end_s - start_s
    inside = [reply for reply in replies if start_s <= reply.t_end_s < end_s]
    parse_start_s = time.perf_counter()
    facts = [read_stream(reply.body) for reply in inside]
    parse_us = (time.perf_counter() - parse_start_s) / len(inside) * 1e6
    failed = sum(fact.error is not None for fact in facts)
    chunks = sum(len(reply.body.chunk_ends) for reply in inside)
    events = sum(len(fact.content_times_s) for fact in facts)
    return (
        f"{len(inside) / window_s:12,.0f} {events / window_s:12,.0f} {chunks / len(inside):12.1f} "
        f"{cpu_s / window_s:10.0%} {parse_us:12.0f} {failed:8d}"
    )


def main() -> None:
    """Print one row for each stream length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    _bind(cores)
    with stub_engine() as ports:
        heads = ("tokens", "streams/s", "events/s", "chunks/reply", "client CPU", "parse us", "failed")
        widths = (6, 12, 12, 12, 10, 12, 8)
        print("events come", *(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
        for way, port in (("at once", ports.at_once), ("one by one", ports.apart)):
            for tokens in (1, 16, 128):
                row = uvloop.run(_measure(_plan(port, tokens, options.concurrency, options.seconds)))
                print(f"{way:>11} {tokens:6d} {row}")


if __name__ == "__main__":
    main()
