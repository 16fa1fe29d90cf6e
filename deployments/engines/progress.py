"""Whether an engine that has requests gets on with them. Pure: the caller reads clock and engine.

What a reading does not tell counts neither as progress nor as standing still: totals are compared with what they were
when they were last told.
"""

from dataclasses import dataclass, replace

from raylane.deployments.engines.load import EngineLoad

SICK_AFTER_S = 30.0  # far above a step, and above the prefill of a long prompt


@dataclass(frozen=True)
class Progress:
    """The last load that was read, and since when its token totals have stood still while requests waited."""

    load: EngineLoad  # its totals as last told
    since_s: float
    read_s: float


def follow(before: Progress | None, load: EngineLoad, now_s: float) -> Progress:
    """The progress after one more reading. A reading that failed leaves things as they were."""
    if before is None:
        return Progress(load, now_s, now_s)
    if load.waiting is None:
        return before
    known, told = _totals(before.load), _totals(load)
    if told == (None, None) != known:  # how long they stand still waits for the next reading that tells
        queue = replace(before.load, waiting=load.waiting)
        return Progress(queue, before.since_s + now_s - before.read_s, now_s)
    prompt, output = (old if new is None else new for old, new in zip(known, told, strict=True))
    stands_still = load.waiting and before.load.waiting and (None, None) != (prompt, output) == known
    load = replace(load, prompt_tokens_total=prompt, output_tokens_total=output)
    return Progress(load, before.since_s if stands_still else now_s, now_s)


@dataclass(frozen=True)
class Stillness:
    """For how long an engine has had requests and written no token, as far as its readings prove it."""

    output_tokens_total: float | None  # as last told
    still_s: float
    read_s: float | None  # when this was last told of an engine with requests; None after a reading that was not


def still(before: Stillness | None, load: EngineLoad, now_s: float) -> Stillness:
    """The stillness after one more reading. Only the time between two readings in a row that tell counts."""
    known = None if before is None else before.output_tokens_total
    total, busy = load.output_tokens_total, _busy(load)
    if before is None or busy is False or (None not in (total, known) and total != known):
        return Stillness(known if total is None else total, 0.0, now_s if total is not None and busy else None)
    if total is None or busy is None:
        return replace(before, read_s=None)
    return Stillness(total, before.still_s + (0.0 if before.read_s is None else now_s - before.read_s), now_s)


def _busy(load: EngineLoad) -> bool | None:
    """Whether the engine has requests; None when the reading does not tell."""
    if load.running or load.waiting:
        return True
    return None if None in (load.running, load.waiting) else False


def sickness(progress: Progress, now_s: float) -> str | None:
    """What is wrong with the engine; None while nothing is."""
    still_s = now_s - progress.since_s
    if not progress.load.waiting or still_s <= SICK_AFTER_S:
        return None
    return f"{progress.load.waiting} requests wait, and no token was read or written for {still_s:.0f} s"


def _totals(load: EngineLoad) -> tuple[float | None, float | None]:
    return load.prompt_tokens_total, load.output_tokens_total
