"""Whether an engine with waiting requests gets on with them. Pure: the caller reads clock and engine."""

from dataclasses import dataclass

from raylane.deployments.engines.base import EngineLoad

SICK_AFTER_S = 30.0  # far above a step, and above the prefill of a long prompt


@dataclass(frozen=True)
class Progress:
    """The last load that was read, and since when its token totals have stood still while requests waited."""

    load: EngineLoad
    since_s: float


def follow(before: Progress | None, load: EngineLoad, now_s: float) -> Progress:
    """The progress after one more reading. A reading that failed leaves things as they were."""
    if before is not None and load.waiting is None:
        return before
    stands_still = (
        before is not None
        and load.waiting
        and before.load.waiting
        and _totals(load) != (None, None)
        and _totals(load) == _totals(before.load)
    )
    return Progress(load, before.since_s if before is not None and stands_still else now_s)


def sickness(progress: Progress, now_s: float) -> str | None:
    """What is wrong with the engine; None while nothing is."""
    still_s = now_s - progress.since_s
    if not progress.load.waiting or still_s <= SICK_AFTER_S:
        return None
    return f"{progress.load.waiting} requests wait, and no token was read or written for {still_s:.0f} s"


def _totals(load: EngineLoad) -> tuple[float | None, float | None]:
    return load.prompt_tokens_total, load.output_tokens_total
