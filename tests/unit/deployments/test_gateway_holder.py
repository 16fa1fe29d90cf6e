"""Who keeps a gateway's port open, and until when: the decisions (pure)."""

import pytest

from raylane.deployments.gateway.holder import ADOPTED_WITHIN_S, Guests

A, B, WORKER_OF_A = 1, 2, 3
GATEWAY_A = [(A, "gateway a"), (A, "serving")]
CRASH_OF_A = [*GATEWAY_A, (WORKER_OF_A, "orphan a"), (A, None)]


def after(events: list[tuple[int, str | None]], at_s: float = 10.0) -> Guests:
    """None: that connection ended."""
    guests = Guests(crashed_s=0.0)
    for guest, words in events:
        if words is None:
            guests.left(guest, at_s)
        else:
            guests.said(guest, words)
    return guests


@pytest.mark.parametrize(
    ("events", "over_after_s"),
    [
        pytest.param([], ADOPTED_WITHIN_S - 10.0, id="nobody came for it"),
        pytest.param(GATEWAY_A, None, id="a gateway has it"),
        pytest.param([*GATEWAY_A, (A, "goodbye")], 0.0, id="the only one stopped in order"),
        pytest.param([*GATEWAY_A, (A, "goodbye"), (A, None)], 0.0, id="and its connection ended"),
        pytest.param([*GATEWAY_A, (B, "gateway b"), (A, "goodbye")], None, id="another one has it, too"),
        pytest.param(CRASH_OF_A, ADOPTED_WITHIN_S, id="the only one died"),
        pytest.param([*CRASH_OF_A, (B, "gateway b")], None, id="its successor starts"),
        pytest.param([*CRASH_OF_A, (B, "gateway b"), (B, None)], ADOPTED_WITHIN_S, id="its successor failed to start"),
        pytest.param([*CRASH_OF_A, (B, "gateway b"), (B, "goodbye")], 0.0, id="its successor was told to stop"),
        pytest.param([*CRASH_OF_A, (B, "gateway b"), (B, "serving"), (B, "goodbye")], 0.0, id="its successor stopped"),
    ],
)
def test_when_the_port_is_given_up(events: list[tuple[int, str | None]], over_after_s: float | None) -> None:
    guests = after(events, at_s=10.0)
    if over_after_s is None:
        assert not guests.over(1e9, host_gone=True)
    else:
        assert guests.over(10.0 + over_after_s, host_gone=False)
        assert not over_after_s or not guests.over(10.0 + over_after_s - 0.1, host_gone=False)
        assert guests.over(10.0, host_gone=True)


@pytest.mark.parametrize(
    ("events", "replaced"),
    [
        pytest.param(CRASH_OF_A, [], id="nobody else serves"),
        pytest.param([*GATEWAY_A, (WORKER_OF_A, "orphan a")], [], id="its gateway's end is not known yet"),
        pytest.param([*CRASH_OF_A, (B, "gateway b")], [], id="the successor does not serve yet"),
        pytest.param([*CRASH_OF_A, (B, "gateway b"), (B, "serving")], [WORKER_OF_A], id="the successor serves"),
        pytest.param(
            [(B, "gateway b"), (B, "serving"), *GATEWAY_A, (WORKER_OF_A, "orphan a")], [WORKER_OF_A], id="it comes late"
        ),
    ],
)
def test_which_orphans_are_not_needed(events: list[tuple[int, str | None]], replaced: list[int]) -> None:
    assert after(events).replaced() == replaced
