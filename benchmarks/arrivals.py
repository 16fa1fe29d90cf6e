"""When requests of an open loop are due. Pure: seconds since the start, the same for the same seed."""

from collections.abc import Iterator

import numpy as np

from raylane.benchmarks.plan import ConstantLoad, PoissonLoad

_DRAWS_AT_ONCE = 1024


def arrival_times_s(load: PoissonLoad | ConstantLoad, seed: int) -> Iterator[float]:
    """Endless, rising due times in seconds. A constant load is due at 0, 1/rate, 2/rate and so on."""
    return _poisson(load.rate_rps, seed) if isinstance(load, PoissonLoad) else _constant(load.rate_rps)


def _poisson(rate_rps: float, seed: int) -> Iterator[float]:
    draws = np.random.default_rng(seed)
    now_s = 0.0
    while True:
        for due_s in (now_s + np.cumsum(draws.exponential(1.0 / rate_rps, _DRAWS_AT_ONCE))).tolist():
            now_s = due_s
            yield due_s


def _constant(rate_rps: float) -> Iterator[float]:
    # index / rate, not a running sum: a sum drifts by one rounding error a request.
    index = 0
    while True:
        yield index / rate_rps
        index += 1
