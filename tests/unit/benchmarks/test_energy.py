import itertools
import json
import time
from pathlib import Path

import pytest

from raylane.benchmarks.declared import Window
from raylane.benchmarks.energy import window_energy
from raylane.benchmarks.gpu_sampler import GpuSample, GpuSampler
from raylane.cluster.gpu_readings import GpuReading, RecordedReader, recorded_line

WINDOW = Window(10.0, 14.0)


def sample(t_s: float, power_w: float | None, uuid: str = "GPU-a") -> GpuSample:
    return GpuSample(t_s, GpuReading(uuid, power_w, 1980.0, 50.0, 1 << 30, 40.0))


@pytest.mark.parametrize(
    ("samples", "energy_j"),
    [
        pytest.param([sample(10, 100), sample(12, 300), sample(14, 300)], 1000.0, id="ramp of 400 J, then 600 J flat"),
        pytest.param([sample(9, 100), sample(11, 300), sample(15, 300)], 1150.0, id="edges are interpolated: 200 W"),
        pytest.param([sample(11, 100), sample(13, 100)], 400.0, id="constant beyond the outer samples"),
        pytest.param(
            [sample(10, 100), sample(10, 50, "GPU-b"), sample(13, 100), sample(13, 50, "GPU-b")], 600.0, id="two GPUs"
        ),
    ],
)
def test_energy_in_the_window(samples: list[GpuSample], energy_j: float) -> None:
    energy = window_energy(samples, WINDOW, output_tokens=200)
    assert energy is not None
    assert energy.energy_j == pytest.approx(energy_j)
    assert energy.mean_power_w == pytest.approx(energy_j / 4)


def test_joules_per_token() -> None:
    energy = window_energy([sample(10, 100), sample(12, 100), sample(14, 100)], WINDOW, output_tokens=200)
    assert energy is not None
    assert energy.valid
    assert energy.j_per_output_token == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        pytest.param([sample(10, 100), sample(13.1, 100), sample(14, 100)], "3.1 s apart", id="a hole inside"),
        pytest.param([sample(13.5, 100), sample(14, 100)], "3.5 s apart", id="nothing near the start"),
        pytest.param([sample(9, 100), sample(12.5, 100), sample(14, 100)], "3.5 s apart", id="a hole over the edge"),
        pytest.param([sample(10, None), sample(12, None)], "does not report its power", id="no power reading"),
    ],
)
def test_doubtful_energy_gives_no_joules_per_token(samples: list[GpuSample], reason: str) -> None:
    energy = window_energy(samples, WINDOW, output_tokens=200)
    assert energy is not None
    assert (energy.valid, energy.j_per_output_token) == (False, None)
    assert reason in energy.reasons[0]


def test_energy_of_a_gpu_without_a_power_reading_is_unknown() -> None:
    silent = [sample(10, None), sample(12, None)]
    for samples in (silent, [*silent, sample(10, 100, "GPU-b"), sample(12, 100, "GPU-b")]):
        energy = window_energy(samples, WINDOW, output_tokens=200)
        assert energy is not None
        assert (energy.energy_j, energy.mean_power_w, energy.valid) == (None, None, False)


def test_no_gpu_no_energy() -> None:
    assert window_energy([], WINDOW, output_tokens=200) is None


def test_sampler_replays_a_recording(tmp_path: Path) -> None:
    recording = tmp_path / "gpu.jsonl"
    readings = [[GpuReading("GPU-a", watts, None, None, None, None)] for watts in (100.0, None)]
    recording.write_text("\n".join(recorded_line(each) for each in readings))
    assert json.loads(recording.read_text().splitlines()[1])[0]["power_w"] is None
    ticks = itertools.count()
    with GpuSampler(RecordedReader(recording), lambda: float(next(ticks)), period_s=0.0) as sampler:
        while len(sampler.samples()) < 3:
            time.sleep(0.001)
    powers = [each.reading.power_w for each in sampler.samples()[:3]]
    assert powers == [100.0, None, None]
    times = [each.t_s for each in sampler.samples()]
    assert times == sorted(times)
