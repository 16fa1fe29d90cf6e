"""GPU readings at a steady pace."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from raylane.cluster.gpu_readings import GpuReader, GpuReading

SAMPLE_PERIOD_S = 0.2


@dataclass(frozen=True, slots=True)
class GpuSample:
    """A reading and when it was taken, in seconds on the run's clock."""

    t_s: float
    reading: GpuReading


class GpuSampler:
    """Reads about five times a second in a thread of its own while the context is open."""

    def __init__(self, reader: GpuReader, clock: Callable[[], float], period_s: float = SAMPLE_PERIOD_S) -> None:
        self._reader = reader
        self._clock = clock
        self._period_s = period_s
        self._samples: list[GpuSample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-sampler", daemon=True)

    def samples(self) -> list[GpuSample]:
        """Everything read so far."""
        return list(self._samples)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due_s = self._clock()
        while not self._stop.wait(max(0.0, due_s - self._clock())):
            t_s = self._clock()
            self._samples.extend(GpuSample(t_s, reading) for reading in self._reader.read())
            # A reading that took longer than the period is not caught up with a burst.
            due_s = max(due_s + self._period_s, t_s)
