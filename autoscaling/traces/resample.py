"""Many versions of one recorded trace, one for each seed."""

from dataclasses import replace

import numpy as np

from raylane.autoscaling.traces.trace import LENGTH_WINDOW_S, Trace, scaled, taken
from raylane.cluster.errors import UsageError

KEEP = 0.9


def variant(trace: Trace, seed: int, keep: float = KEEP) -> Trace:
    """Another trace that could have been recorded instead: same load curve, other requests. Same seed, same trace.

    Three steps, none of which cuts the trace into blocks, so that days, ramps and bursts stay where they are: the
    rate is scaled up by 1/keep (copies up to 30 s away with lengths of their neighbourhood), requests are thinned
    with probability `keep`, and the lengths of the requests (prompt and reply together) are shuffled within each
    window of 10 minutes. The expected number of requests is that of the original.

    With keep 0.9, 90 % of a variant's arrival times are the original's and two variants share 81 % of theirs.
    Differences between seeds show how much a result depends on single requests; they do not show how much weeks
    differ. For that resample days or hours (raylane.autoscaling.lab.statistics) or use another week.
    """
    if not 0.0 < keep <= 1.0:
        raise UsageError(f"{trace.name}: keep must be above 0 and at most 1, got {keep}")
    rng = np.random.default_rng(seed)
    grown = scaled(trace, 1.0 / keep, rng)
    thinned = taken(grown, rng.random(len(grown)) < keep, trace.source)
    return replace(shuffled_lengths(thinned, rng), source=f"{trace.source}; variant {seed} with keep {keep:g}")


def shuffled_lengths(trace: Trace, rng: np.random.Generator) -> Trace:
    """Arrivals as they are; who has which lengths is shuffled among the requests of each 10-minute window."""
    window = (trace.at_s // LENGTH_WINDOW_S).astype(np.int64)
    rows = np.lexsort((rng.random(len(trace)), window))
    return replace(
        trace,
        input_tokens=trace.input_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        source=f"{trace.source}; lengths shuffled within {LENGTH_WINDOW_S:g} s",
    )
