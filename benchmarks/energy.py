"""Energy from sampled power. Pure."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from raylane.benchmarks.declared import Window
from raylane.benchmarks.gpu_sampler import GpuSample
from raylane.benchmarks.results import Energy

MAX_GAP_S = 3.0

Points = list[tuple[float, float]]


def window_energy(samples: Sequence[GpuSample], window: Window, output_tokens: float | None) -> Energy | None:
    """Joules of all sampled GPUs inside the window, and joules per output token; None without samples.

    Trapezoids over each GPU's power samples, interpolated at the edges of the window. Not valid when a GPU reports no
    power, or when neighbouring samples, or a sample and the edge it should reach, are more than 3 s apart.
    """
    if not samples:
        return None
    power: dict[str, Points] = defaultdict(list)
    for sample in samples:
        points = power[sample.reading.gpu_uuid]
        if sample.reading.power_w is not None:
            points.append((sample.t_s, sample.reading.power_w))
    reasons = [doubt for uuid, points in power.items() for doubt in _doubts(uuid, points, window)]
    each_j = [trapezoid_j(points, window) for points in power.values()]
    known_j = [energy_j for energy_j in each_j if energy_j is not None]
    energy_j = sum(known_j) if len(known_j) == len(each_j) else None
    return Energy(
        gpus=len(power),
        energy_j=energy_j,
        mean_power_w=None if energy_j is None else energy_j / window.length_s,
        j_per_output_token=energy_j / output_tokens if energy_j is not None and output_tokens and not reasons else None,
        valid=not reasons,
        reasons=tuple(reasons),
    )


def trapezoid_j(points: Points, window: Window) -> float | None:
    """Joules inside the window; None without samples. Power is straight between samples and constant beyond them."""
    if not points:
        return None
    times, watts = np.array(points).T
    inside = times[(times > window.start_s) & (times < window.end_s)]
    grid = np.concatenate(([window.start_s], inside, [window.end_s]))
    return float(np.trapezoid(np.interp(grid, times, watts), grid))


def _doubts(uuid: str, points: Points, window: Window) -> list[str]:
    if not points:
        return [f"{uuid} does not report its power"]
    times = [t_s for t_s, _ in points]
    before = max((t_s for t_s in times if t_s <= window.start_s), default=window.start_s)
    after = min((t_s for t_s in times if t_s >= window.end_s), default=window.end_s)
    inside = [t_s for t_s in times if before < t_s < after]
    gap_s = float(np.diff([before, *inside, after]).max())
    return [f"{uuid}: samples {gap_s:.1f} s apart (limit {MAX_GAP_S:.0f} s)"] if gap_s > MAX_GAP_S else []
