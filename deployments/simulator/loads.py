"""Loads run against one simulated replica in virtual time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from raylane.deployments.simulator.replica import EngineModel, Replica, Signals
from raylane.deployments.simulator.request import Outcome, Request


@dataclass(frozen=True)
class Simulated:
    """What a simulated load gave. Every figure in it is simulated."""

    outcomes: tuple[Outcome, ...]
    signals: Signals
    started_s: float

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens of finished requests over the time from the start to the last of them."""
        tokens = sum(outcome.request.output_tokens for outcome in self.outcomes)
        return tokens / (max(outcome.finished_s for outcome in self.outcomes) - self.started_s)

    @property
    def ttft_p50_s(self) -> float:
        return median(outcome.ttft_s for outcome in self.outcomes)

    @property
    def tpot_p50_s(self) -> float | None:
        """None when every request had a single token."""
        values = [outcome.tpot_s for outcome in self.outcomes if outcome.tpot_s is not None]
        return median(values) if values else None


def simulate(arrivals: Iterable[Request], engine: EngineModel) -> Simulated:
    """An open loop: requests in order of arrival, whatever the engine does, until the last one is finished."""
    replica = Replica(engine)
    outcomes: list[Outcome] = []
    started_s: float | None = None
    for request in arrivals:
        started_s = request.arrival_s if started_s is None else started_s
        replica.advance(request.arrival_s)
        replica.submit(request)
    outcomes += _drain(replica)
    return Simulated(tuple(outcomes), replica.signals(), started_s or 0.0)


def closed_loop(
    engine: EngineModel, *, concurrency: int, requests: int, input_tokens: int, output_tokens: int
) -> Simulated:
    """`concurrency` clients that each send the next request when the last one is finished."""
    replica = Replica(engine)
    outcomes: list[Outcome] = []
    sizes: Iterator[Request] = (Request(0.0, input_tokens, output_tokens, key) for key in range(requests))
    for _ in range(concurrency):
        _send_next(replica, sizes)
    while (event_s := replica.next_event_s()) is not None:
        replica.advance(event_s)
        for outcome in replica.take_finished():
            outcomes.append(outcome)
            _send_next(replica, sizes)
    return Simulated(tuple(outcomes), replica.signals(), 0.0)


def _send_next(replica: Replica, sizes: Iterator[Request]) -> None:
    size = next(sizes, None)
    if size is not None:
        replica.submit(Request(replica.now_s, size.input_tokens, size.output_tokens, size.key))


def _drain(replica: Replica) -> list[Outcome]:
    while (event_s := replica.next_event_s()) is not None:
        replica.advance(event_s)
    return replica.take_finished()
