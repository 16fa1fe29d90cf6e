"""Readings by NVML (its answers stood in for) and replayed from lines, also those of older recordings."""

import json
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from raylane.cluster.gpu_readings import GpuReading, NvmlReader, RecordedReader, recorded_line

READING = GpuReading("GPU-a", 210.5, 1980.0, 97.0, 1 << 30, 61.0, 43.0)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU that answers everything."""
    answers = {
        "nvmlInit": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetUUID": "GPU-a",
        "nvmlDeviceGetPowerUsage": 210_500,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=43),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=1 << 30),
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetTemperature": 61,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)


@pytest.mark.usefixtures("nvml")
def test_a_reading_holds_what_the_gpu_says() -> None:
    assert NvmlReader().read() == [READING]


@pytest.mark.usefixtures("nvml")
def test_a_gpu_without_utilization_rates_leaves_both_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", unsupported)
    (seen,) = NvmlReader().read()
    assert (seen.gpu_util_percent, seen.memory_util_percent, seen.power_w) == (None, None, 210.5)


def test_a_recording_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "gpus.jsonl").write_text(recorded_line([READING]) + "\n")
    assert RecordedReader(tmp_path / "gpus.jsonl").read() == [READING]


def test_a_recording_from_before_memory_utilization_can_be_read(tmp_path: Path) -> None:
    old = {name: getattr(READING, name) for name in GpuReading.__slots__ if name != "memory_util_percent"}
    (tmp_path / "gpus.jsonl").write_text(json.dumps([old]) + "\n")
    (seen,) = RecordedReader(tmp_path / "gpus.jsonl").read()
    assert (seen.gpu_util_percent, seen.memory_util_percent) == (97.0, None)
