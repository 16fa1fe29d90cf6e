"""When an engine counts as sick: requests wait, and nothing moves for a while."""

import pytest

from raylane.deployments.engines.base import EngineLoad
from raylane.deployments.progress import SICK_AFTER_S, follow, sickness

UNREAD = EngineLoad()


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
