"""Streams from a process of their own until it is told to stop: at a rate, or so many that are always open."""

import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

from raylane.benchmarks.client import LoadClient
from raylane.benchmarks.plan import ConcurrencyLoad, Stream, TokenIds
from raylane.benchmarks.prompts import PlannedRequest, planned_requests
from raylane.benchmarks.records import RawReply, read_reply

LONGEST_REQUEST_S = 400.0
ENDS_WITHIN_S = 150.0  # after stop(): what is open may finish
LOOK_EVERY_S = 0.02
Keep = Callable[[RawReply], None]


@dataclass(frozen=True)
class Ended:
    """One request as its client saw it. Times are Unix times; `error` is None when the whole answer came."""

    sent_at_s: float
    ended_at_s: float
    ttft_s: float | None
    per_token_s: float | None
    error: str | None


@dataclass(frozen=True)
class Sending:
    """What is sent: random starts at `rate_rps`; where that is None, `streams` side by side, one for each that ends.

    Each of those is sent once even when the sender is told to stop at once."""

    url: str
    model: str
    input_tokens: int
    output_tokens: int
    rate_rps: float | None = None
    streams: int = 0
    seed: int = 1


class Sender:
    """Sends from its start until stop(), which returns every request once the open ones have ended."""

    def __init__(self, sending: Sending, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self.began_at_s = time.time()
        self._file = file
        self._told = context.Event()
        self._process = context.Process(target=run_sender, args=(sending, file, self._told), daemon=True)
        self._process.start()

    def tell(self) -> None:
        """Send nothing more; what is open goes on."""
        self._told.set()

    def stop(self, within_s: float = ENDS_WITHIN_S) -> list[Ended]:
        """Every request in the order they ended. Raises TimeoutError when some have not ended by then."""
        self.tell()
        self._process.join(within_s)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"requests were still open {within_s:.0f} s after the load was stopped")
        return self.ended()

    def ended(self) -> list[Ended]:
        """Those that have ended so far."""
        if not self._file.exists():
            return []
        lines = self._file.read_text().splitlines(keepends=True)
        return [Ended(**json.loads(line)) for line in lines if line.endswith("\n")]


def run_sender(sending: Sending, file: Path, told: Event) -> None:
    """The body of the sender's process."""
    with file.open("w", buffering=1) as out:

        def keep(reply: RawReply) -> None:
            out.write(json.dumps(asdict(ended(reply))) + "\n")

        asyncio.run(_send(sending, told, keep))


def ended(reply: RawReply) -> Ended:
    """What is kept of a reply. The time per token leaves the first one out."""
    record = read_reply(reply, "", "", "")
    first, last, tokens = record.t_first_s, record.t_last_s, record.completion_tokens or 0
    error = record.error
    if error is None and tokens != reply.output_tokens:
        error = f"{tokens} of {reply.output_tokens} tokens came"
    return Ended(
        sent_at_s=reply.t_send_s,
        ended_at_s=reply.t_end_s,
        ttft_s=None if first is None else first - reply.t_send_s,
        per_token_s=(last - first) / (tokens - 1) if first is not None and last is not None and tokens > 1 else None,
        error=error,
    )


async def _send(sending: Sending, told: Event, keep: Keep) -> None:
    stream = Stream(
        model=sending.model,
        load=ConcurrencyLoad(concurrency=1),
        input_tokens=sending.input_tokens,
        output_tokens=sending.output_tokens,
    )
    requests = planned_requests(stream, TokenIds(), sending.seed)
    async with LoadClient(sending.url, None, LONGEST_REQUEST_S, time.time) as client:
        if sending.rate_rps is None:
            await asyncio.gather(*(_one_after_the_other(client, requests, told, keep) for _ in range(sending.streams)))
        else:
            await _at_rate(client, requests, sending.rate_rps, random.Random(sending.seed), told, keep)


async def _one_after_the_other(client: LoadClient, requests: Iterator[PlannedRequest], told: Event, keep: Keep) -> None:
    while True:
        await client.send(next(requests), time.time(), keep)
        if told.is_set():
            return


async def _at_rate(
    client: LoadClient,
    requests: Iterator[PlannedRequest],
    rate_rps: float,
    draws: random.Random,
    told: Event,
    keep: Keep,
) -> None:
    """Starts with exponential gaps, whatever the answers do (an open loop)."""
    due_s, open_ones = time.time(), set[asyncio.Task[None]]()
    while not told.is_set():
        if (wait_s := due_s - time.time()) > 0.0:
            await asyncio.sleep(min(wait_s, LOOK_EVERY_S))
            continue
        task = asyncio.create_task(client.send(next(requests), due_s, keep))
        open_ones.add(task)
        task.add_done_callback(open_ones.discard)
        due_s += draws.expovariate(rate_rps)
        await asyncio.sleep(0)
    await asyncio.gather(*open_ones)
