"""What somebody who knows every request beforehand knows of a model's load, window by window. Pure."""

import math

import numpy as np
from numpy.typing import NDArray

from raylane.autoscaling.lab.setup import LabModel
from raylane.autoscaling.profile import CapacityProfile, capacity_profile
from raylane.autoscaling.traces.trace import Trace

Floats = NDArray[np.float64]

SLICE_S = 5.0  # bursts as short as this matter to the first token
SLOW_START_SIGMAS = 1.3  # nine cold starts of ten are faster


def window_loads(model: LabModel, trace: Trace, windows: int, window_s: float) -> tuple[Floats, Floats]:
    """For each window the replicas that its load fills, as a fraction, and the requests that load belongs to.

    A request fills one replica for 1 / (the rate of such requests that a replica carries), spread evenly over the time
    it is in service; so it counts in every window in which it is served, by the part of it that is.
    """
    if not len(trace):
        return np.zeros(windows), np.zeros(windows)
    profile = true_profile(model)
    pairs = zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    fills_s = np.array([1.0 / profile.requests_per_s(inputs, outputs) for inputs, outputs in pairs])
    stays_s = service_s(model, trace)
    need, requests = np.zeros(windows), np.zeros(windows)
    at_s, later = trace.at_s, 0
    while len(at_s):
        window = (at_s // window_s).astype(np.int64) + later
        inside_s = np.minimum(at_s + stays_s, (window + 1) * window_s) - np.maximum(at_s, window * window_s)
        share = np.maximum(inside_s, 0.0) / stays_s
        into = np.minimum(window, windows - 1)
        need += np.bincount(into, share * fills_s, windows) / window_s
        requests += np.bincount(into, share, windows)
        stays_on = at_s + stays_s > (window + 1) * window_s
        at_s, stays_s, fills_s, later = at_s[stays_on], stays_s[stays_on], fills_s[stays_on], later + 1
    return need, requests


def peak_loads(model: LabModel, trace: Trace, windows: int, window_s: float) -> tuple[Floats, Floats]:
    """For each window the replicas that its fullest `SLICE_S` seconds fill, and the requests served in it."""
    slices = max(1, round(window_s / SLICE_S))
    slice_s = window_s / slices
    after = math.ceil(max(service_s(model, trace), default=0.0) / slice_s) + 1  # what ends after the last window
    need, requests = window_loads(model, trace, windows * slices + after, slice_s)
    shape = (windows, slices)
    return need[:-after].reshape(shape).max(axis=1), requests[:-after].reshape(shape).sum(axis=1)


def service_s(model: LabModel, trace: Trace) -> Floats:
    """Seconds each request is in service, its tokens halfway between as fast as can be and as slow as may be."""
    profile = true_profile(model)
    token_s = (min(profile.step_s, profile.tpot_s) + profile.tpot_s) / 2
    stays_s: Floats = trace.output_tokens * token_s + trace.input_tokens * profile.prompt_token_s
    return stays_s


def true_profile(model: LabModel) -> CapacityProfile:
    """What its replicas carry, also where policies are told otherwise."""
    return capacity_profile(model.engine, model.spec.slo)


def drain_s(model: LabModel, trace: Trace) -> float:
    """Seconds until what a replica serves is finished and its GPUs are free."""
    return float(service_s(model, trace).mean()) if len(trace) else 0.0


def lead_windows(model: LabModel, window_s: float) -> int:
    """Windows from asking for a replica until it is ready, nine times of ten."""
    cold = model.cold_start
    return math.ceil(cold.median_s * math.exp(SLOW_START_SIGMAS * cold.sigma) / window_s)
