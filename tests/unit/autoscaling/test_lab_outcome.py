import pytest
from small_lab import Script, model, scripted, setup, steps, trace

from raylane.autoscaling.lab.outcome import good_requests, outcome
from raylane.autoscaling.lab.world import World
from raylane.autoscaling.traces.trace import Trace
from raylane.deployments.slo import Slo

SLO = Slo(ttft_ms=1000, ttft_ms_per_input_token=0.5, tpot_ms=50)


def world(*traces: Trace, least: int = 0) -> World:
    """A world before its replay: what happened is written into it by hand."""
    names = [chr(ord("a") + n) for n in range(len(traces))]
    made = setup([model(n, slo=SLO, initial=0, least=least) for n in names], dict(zip(names, traces, strict=True)))
    return World(made, scripted(made, Script(steps((0, 0)))), seed=1)


@pytest.mark.parametrize(
    ("first_s", "finished_s", "good", "late", "slow", "lost"),
    [
        pytest.param(11.19, 11.68, True, 0, 0, 0, id="in time: 1 s and 0.2 s for 400 tokens, 50 ms for each further"),
        pytest.param(11.21, 11.30, False, 1, 0, 0, id="the first token is late"),
        pytest.param(10.50, 11.01, False, 0, 1, 0, id="the tokens are slow"),
        pytest.param(11.21, 12.21, False, 1, 1, 0, id="both late and slow"),
        pytest.param(None, None, False, 0, 0, 1, id="rejected or never finished"),
    ],
)
def test_what_a_good_request_is(
    first_s: float | None, finished_s: float | None, good: bool, late: int, slow: int, lost: int
) -> None:
    made = world(trace((10.0, 400, 11)))
    made.models[0].first_s, made.models[0].finished_s = [first_s], [finished_s]
    found = outcome(made)
    assert good_requests(made.models[0]).tolist() == [good]
    assert (found.models[0].late_first_token, found.models[0].slow_tokens, found.models[0].lost) == (late, slow, lost)
    assert found.attainment == float(good)
    assert found.good_output_tokens == 11 * good


def test_one_output_token_has_no_time_between_tokens() -> None:
    made = world(trace((10.0, 400, 1)))
    made.models[0].first_s = made.models[0].finished_s = [11.0]
    assert outcome(made).attainment == 1.0


def answered(made: World, model_index: int, good: list[bool]) -> None:
    one = made.models[model_index]
    one.first_s = [at_s + 0.1 if ok else None for at_s, ok in zip(one.arrivals_s, good, strict=True)]
    one.finished_s = [None if at_s is None else at_s + 0.1 for at_s in one.first_s]


def test_the_worst_ten_minutes_are_of_all_models_and_need_enough_requests() -> None:
    at_s = [float(10 * n) for n in range(40)] + [600.0 + 10 * n for n in range(15)] + [1200.0 + n for n in range(10)]
    made = world(
        trace(*((s, 10, 5) for s in at_s), duration_s=1800.0),
        trace(*((600.0 + 10 * n, 10, 5) for n in range(15)), duration_s=1800.0),
    )
    answered(made, 0, [True] * 40 + [False] * 15 + [False] * 10)  # the last 10 are too few to count
    answered(made, 1, [True] * 15)
    found = outcome(made)
    assert found.worst_10_minutes == 0.5
    assert found.attainment == 55 / 80
    assert found.worst_model == 40 / 65


def test_reversals_are_changes_back_within_fifteen_minutes() -> None:
    made = world(trace(duration_s=7200.0))
    made.models[0].targets = [(0, 2), (100, 3), (200, 2), (1200, 3), (1300, 4), (1400, 3), (2300, 5), (3201, 4)]
    found = outcome(made).models[0]
    assert (found.ups, found.downs) == (4, 3)
    # Back down at 200 and 1400, up at 2300 after exactly 900 s. Not: up at 1200 (1000 s later), down at 3201 (901 s).
    assert found.reversals == 3
    assert outcome(made).reversals_per_hour == 1.5


def test_gpu_hours_end_with_the_trace() -> None:
    made = world(trace(duration_s=3600.0))
    made.models[0].allocated = [(0.0, 1800.0, 2), (3000.0, 5000.0, 1), (4000.0, 5000.0, 4)]
    assert outcome(made).gpu_hours == pytest.approx(1.0 + 600 / 3600)


def test_replicas_above_and_below_what_is_needed() -> None:
    made = world(trace(duration_s=3600.0), least=1)  # no request: the minimum is needed
    made.models[0].allocated = [(0.0, 1800.0, 1), (0.0, 900.0, 1)]
    found = outcome(made).models[0]
    assert (found.over, found.over_share) == (0.25, 0.25)
    assert (found.under, found.under_share) == (0.5, 0.5)
    assert found.wasted_gpu_hours == pytest.approx(0.25)
