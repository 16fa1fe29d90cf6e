"""Capacity profiles: bounds, monotony, and agreement with the simulated engine they are computed from."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_models import PROFILE

from raylane.autoscaling.profile import CapacityProfile, capacity_profile
from raylane.deployments.simulator.replica import EngineModel, Replica
from raylane.deployments.simulator.request import Limits, Request
from raylane.deployments.simulator.step_model import StepModel
from raylane.deployments.slo import Slo

TOKENS = st.floats(1.0, 20_000.0)
ENGINE = EngineModel(
    Limits(kv_tokens=200_000, max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=8192, prefix_caching=False),
    StepModel(
        fixed_s=0.002,
        weights_s=(0.02,),
        token_s=4e-5,
        token_link_s=0.0,
        context_s=2e-7,
        pair_s=0.0,
        first_token_extra_s=0.0,
    ),
)
SLO = Slo(ttft_ms=1000, tpot_ms=60)


@pytest.mark.parametrize(
    ("change", "less"),
    [
        pytest.param({"step_s": 0.05}, True, id="a longer bare step carries less"),
        pytest.param({"context_token_s": 2e-6}, True, id="slower attention carries less"),
        pytest.param({"kv_tokens": 20_000}, True, id="a small KV cache bounds the rate"),
        pytest.param({"max_num_seqs": 8}, True, id="a small batch bounds the rate"),
        pytest.param({"prompt_token_s": 1e-3}, True, id="slow prompts bound the rate"),
        pytest.param({"kv_tokens": 10_000_000}, False, id="more KV cache than needed changes nothing"),
        pytest.param({"max_num_seqs": 10_000}, False, id="a larger batch than needed changes nothing"),
    ],
)
def test_what_bounds_the_rate(change: dict[str, float], less: bool) -> None:
    changed = CapacityProfile(**{**PROFILE.__dict__, **change})
    before, after = PROFILE.requests_per_s(500, 200), changed.requests_per_s(500, 200)
    assert after < before if less else after == before


def test_a_model_too_slow_for_its_slo_still_carries_one_request_at_a_time() -> None:
    slow = CapacityProfile(0.1, 1e-4, 1e-7, 100_000, 64, tpot_s=0.05)
    assert slow.requests_per_s(100, 10) == pytest.approx(0.99, rel=0.01)  # ten steps of 0.1 s and a short prompt


@given(prompt=TOKENS, output=TOKENS, longer=st.floats(1.0, 3.0))
@settings(max_examples=200)
def test_longer_requests_never_raise_the_rate(prompt: float, output: float, longer: float) -> None:
    rate = PROFILE.requests_per_s(prompt, output)
    assert 0.0 < PROFILE.requests_per_s(prompt * longer, output) <= rate * (1 + 1e-9)
    assert 0.0 < PROFILE.requests_per_s(prompt, output * longer) <= rate * (1 + 1e-9)


@given(prompt=TOKENS, output=TOKENS, factor=st.floats(0.5, 1.0))
@settings(max_examples=200)
def test_a_slower_replica_never_carries_more(prompt: float, output: float, factor: float) -> None:
    slower = PROFILE.faster(factor).requests_per_s(prompt, output)
    assert slower <= PROFILE.requests_per_s(prompt, output) * (1 + 1e-9)


def test_there_is_no_number_in_service_beyond_what_it_can_ever_carry() -> None:
    most_rps = 1.0 / PROFILE.work_s(500, 200)
    few, many = PROFILE.in_service(0.2 * most_rps, 500, 200), PROFILE.in_service(0.8 * most_rps, 500, 200)
    assert few is not None
    assert many is not None
    assert many > 4 * few
    assert PROFILE.in_service(most_rps, 500, 200) is None


def test_at_the_profiles_rate_the_engine_it_describes_just_keeps_the_time_per_token() -> None:
    profile = capacity_profile(ENGINE, SLO)
    rate_rps = profile.requests_per_s(400, 150)
    well, over = _tpot_s(0.9 * rate_rps), _tpot_s(1.25 * rate_rps)
    assert well < profile.tpot_s < over


def test_the_number_in_service_is_that_of_the_engine() -> None:
    profile = capacity_profile(ENGINE, SLO)
    rate_rps = 0.6 * profile.requests_per_s(400, 150)
    replica = Replica(ENGINE)
    for n in range(int(120 * rate_rps)):
        replica.submit(Request(n / rate_rps, 400, 150, n))
    inside = []
    for second in range(40, 110):
        replica.advance(float(second))
        inside.append(replica.signals().running)
    assert profile.in_service(rate_rps, 400, 150) == pytest.approx(sum(inside) / len(inside), rel=0.15)


def _tpot_s(rate_rps: float) -> float:
    replica = Replica(ENGINE)
    for n in range(int(90 * rate_rps)):
        replica.submit(Request(n / rate_rps, 400, 150, n))
    replica.advance(120.0)
    late = [o for o in replica.take_finished() if o.request.arrival_s > 45]
    times = [(o.finished_s - o.first_token_s) / 149 for o in late]
    return sum(times) / len(times)
