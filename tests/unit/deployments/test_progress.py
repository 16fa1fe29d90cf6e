"""When an engine counts as sick: requests wait, and nothing moves for a while."""

import pytest

from raylane.deployments.engines.load import EngineLoad
from raylane.deployments.engines.progress import SICK_AFTER_S, follow, sickness, still

UNREAD = EngineLoad()
NO_TOTALS = EngineLoad(waiting=2, running=1)


def load(waiting: int | None, read: float | None = 0.0, written: float | None = 0.0) -> EngineLoad:
    return EngineLoad(waiting=waiting, running=1, prompt_tokens_total=read, output_tokens_total=written)


LATER_S = SICK_AFTER_S + 1.0


@pytest.mark.parametrize(
    ("readings", "sick"),
    [
        pytest.param([(0.0, load(2)), (LATER_S, load(2))], True, id="two wait and nothing moves"),
        pytest.param([(0.0, load(2)), (SICK_AFTER_S, load(2))], False, id="not for long enough yet"),
        pytest.param([(0.0, load(2)), (LATER_S, load(0))], False, id="nobody waits"),
        pytest.param([(0.0, load(0)), (LATER_S, load(2))], False, id="they wait since a moment ago"),
        pytest.param([(0.0, load(2)), (20.0, load(0)), (LATER_S, load(2))], False, id="the queue was empty meanwhile"),
        pytest.param([(0.0, load(2)), (LATER_S, load(9, written=1.0))], False, id="a token was written"),
        pytest.param([(0.0, load(2)), (LATER_S, load(9, read=64.0))], False, id="a prompt was read"),
        pytest.param([(0.0, load(2, written=5.0)), (LATER_S, load(2))], False, id="the engine is a new one"),
        pytest.param([(0.0, load(2)), (20.0, UNREAD), (LATER_S, UNREAD)], True, id="and it is not readable any more"),
        pytest.param([(0.0, UNREAD), (LATER_S, UNREAD)], False, id="it was never readable"),
        pytest.param(
            [(0.0, load(2)), (20.0, NO_TOTALS), (LATER_S, NO_TOTALS)], False, id="the totals are no numbers any more"
        ),
        pytest.param(
            [(0.0, load(2)), (20.0, NO_TOTALS), (21.0, load(2)), (LATER_S, load(2))], False, id="20 s are not known of"
        ),
        pytest.param(
            [(0.0, load(2)), (20.0, load(2)), (20.0, NO_TOTALS), (20.0, load(2)), (LATER_S, load(2))],
            True,
            id="totals that come back where they were are no progress",
        ),
        pytest.param(
            [(0.0, load(2)), (20.0, NO_TOTALS), (LATER_S, load(2, written=1.0))], False, id="they come back higher"
        ),
        pytest.param(
            [(0.0, load(2)), (20.0, load(2, written=None)), (LATER_S, load(2))], True, id="one total is no number once"
        ),
        pytest.param([(0.0, load(2, None, None)), (LATER_S, load(2, None, None))], False, id="it counts no tokens"),
    ],
)
def test_sickness(readings: list[tuple[float, EngineLoad]], sick: bool) -> None:
    progress = None
    for now_s, reading in readings:
        progress = follow(progress, reading, now_s)
    assert progress is not None
    assert (sickness(progress, readings[-1][0]) is not None) is sick


def test_it_says_how_many_wait_and_how_long() -> None:
    progress = follow(follow(None, load(2), 0.0), load(3), 40.0)
    assert sickness(progress, 41.0) == "3 requests wait, and no token was read or written for 41 s"


BUSY = EngineLoad(waiting=0, running=1, output_tokens_total=5.0)
IDLE = EngineLoad(waiting=0, running=0, output_tokens_total=5.0)
WROTE = EngineLoad(waiting=0, running=1, output_tokens_total=6.0)
TOTAL_UNKNOWN = EngineLoad(waiting=0, running=1)
QUEUE_UNKNOWN = EngineLoad(output_tokens_total=5.0)


@pytest.mark.parametrize(
    ("readings", "still_s"),
    [
        pytest.param([(0.0, BUSY), (50.0, BUSY), (120.0, BUSY)], 120.0, id="a request and no token"),
        pytest.param([(0.0, BUSY), (50.0, IDLE), (120.0, BUSY)], 0.0, id="idle meanwhile"),
        pytest.param([(0.0, BUSY), (50.0, WROTE), (120.0, WROTE)], 70.0, id="since the last token"),
        pytest.param([(0.0, WROTE), (50.0, BUSY), (120.0, BUSY)], 70.0, id="the engine counts anew"),
        pytest.param([(0.0, BUSY), (50.0, TOTAL_UNKNOWN), (900.0, TOTAL_UNKNOWN)], 0.0, id="the total is no number"),
        pytest.param([(0.0, BUSY), (50.0, UNREAD), (900.0, BUSY), (907.0, BUSY)], 7.0, id="what is not known of"),
        pytest.param([(0.0, BUSY), (50.0, BUSY), (51.0, TOTAL_UNKNOWN), (52.0, BUSY)], 50.0, id="no progress either"),
        pytest.param([(0.0, BUSY), (50.0, BUSY), (51.0, UNREAD), (52.0, WROTE)], 0.0, id="more after what is unknown"),
        pytest.param([(0.0, BUSY), (50.0, QUEUE_UNKNOWN), (900.0, BUSY)], 0.0, id="perhaps it had no request"),
        pytest.param([(0.0, TOTAL_UNKNOWN), (900.0, TOTAL_UNKNOWN)], 0.0, id="an engine that counts no tokens"),
        pytest.param([(0.0, UNREAD), (900.0, BUSY)], 0.0, id="a first number begins the time"),
    ],
)
def test_how_long_an_engine_with_requests_gave_no_token(
    readings: list[tuple[float, EngineLoad]], still_s: float
) -> None:
    stillness = None
    for now_s, reading in readings:
        stillness = still(stillness, reading, now_s)
    assert stillness is not None
    assert stillness.still_s == still_s
