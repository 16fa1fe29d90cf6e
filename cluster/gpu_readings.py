"""What GPUs do right now, read through NVML, or replayed from a recording."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pynvml

from raylane.cluster.errors import UsageError


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment. A figure the GPU does not report is None, never 0."""

    gpu_uuid: str
    power_w: float | None
    sm_clock_mhz: float | None
    gpu_util_percent: float | None
    memory_used_bytes: int | None
    temperature_c: float | None
    memory_util_percent: float | None = None  # share of time in which memory was read or written


class GpuReader(Protocol):
    """Reads all GPUs of interest once."""

    def read(self) -> list[GpuReading]: ...


class NvmlReader:
    """Reads this host's GPUs through NVML: all of them, or those with the given uuids."""

    def __init__(self, uuids: frozenset[str] | None = None) -> None:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        by_uuid = {str(pynvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
        missing = sorted((uuids or frozenset()) - set(by_uuid))
        if missing:
            raise UsageError(f"no GPU {', '.join(missing)} on this host; it has {', '.join(by_uuid) or 'none'}")
        self._handles = {uuid: handle for uuid, handle in by_uuid.items() if uuids is None or uuid in uuids}

    def read(self) -> list[GpuReading]:
        """One reading for each GPU."""
        return [_read(uuid, handle) for uuid, handle in self._handles.items()]


def _read(uuid: str, handle: Any) -> GpuReading:
    power_mw = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return GpuReading(
        gpu_uuid=uuid,
        power_w=None if power_mw is None else power_mw / 1e3,
        sm_clock_mhz=_ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        gpu_util_percent=None if rates is None else rates.gpu,
        memory_used_bytes=None if memory is None else memory.used,
        temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        memory_util_percent=None if rates is None else rates.memory,
    )


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer, or None where this GPU has none (not supported, lost, no permission)."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None


def nvml_reader() -> NvmlReader | None:
    """A reader for this host, or None on a host without NVIDIA's driver or without GPUs."""
    try:
        reader = NvmlReader()
    except pynvml.NVMLError:
        return None
    return reader if reader.read() else None


class RecordedReader:
    """Replays readings from a file: one JSON list of readings a line, one line a call; the last line repeats."""

    def __init__(self, path: Path) -> None:
        self._readings: Iterator[list[GpuReading]] = iter(
            [
                [GpuReading(**reading) for reading in json.loads(line)]
                for line in path.read_text(encoding="utf-8").splitlines()
            ]
        )
        self._last: list[GpuReading] = []

    def read(self) -> list[GpuReading]:
        """The next recorded readings."""
        self._last = next(self._readings, self._last)
        return self._last


def recorded_line(readings: list[GpuReading]) -> str:
    """One line of the file that RecordedReader replays."""
    return json.dumps([asdict(reading) for reading in readings])
