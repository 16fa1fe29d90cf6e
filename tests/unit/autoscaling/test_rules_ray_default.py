"""Ray's default rule: decision by decision as Ray's own policy, and how its delays show."""

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve import autoscaling_policy as rays
from ray.serve.config import AutoscalingConfig
from seen_models import HOLDS, OUTPUT, PROMPT, answers, model, reading, spec

from raylane.autoscaling.decision import Reason
from raylane.autoscaling.observation import ModelObservation, Phase, ReplicaObservation
from raylane.autoscaling.rules.ray_default import RayDefault, RayMemory


class RaysContext:
    """What Ray's policy reads of its AutoscalingContext."""

    def __init__(self, config: AutoscalingConfig, ready: int, target: int, total: float, state: dict[str, Any]) -> None:
        self.config = config
        self.current_num_replicas = ready
        self.target_num_replicas = target
        self.total_num_requests = total
        self.policy_state = state


CONFIGS: list[Any] = [
    pytest.param({}, id="as shipped"),
    pytest.param({"target_ongoing_requests": 7.0, "upscale_delay_s": 0.0, "downscale_delay_s": 40.0}, id="tuned"),
    pytest.param({"downscale_to_zero_delay_s": 15.0, "downscale_delay_s": 30.0}, id="soon to zero"),
    pytest.param({"upscaling_factor": 0.5, "downscaling_factor": 0.3, "downscale_delay_s": 10.0}, id="with factors"),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", range(4))
def test_it_decides_as_ray_does(config: dict[str, float], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = RayDefault(
        target_ongoing=config.get("target_ongoing_requests", 2.0),
        look_back_s=0.0,
        **{key: value for key, value in config.items() if key != "target_ongoing_requests"},
    )
    settings = AutoscalingConfig(min_replicas=0, max_replicas=100, **config)
    theirs = rays._apply_autoscaling_config(rays.replica_queue_length_autoscaling_policy)
    state: dict[str, Any] = {}
    memory: RayMemory | None = None
    target, ready, differing = 1, 1, 0
    for n, total in enumerate(_requests(random.Random(seed), 600)):
        at_s = 5.0 * n
        ready += (ready < target) - (ready > target)
        now = SimpleNamespace(time=lambda at_s=at_s: at_s)
        monkeypatch.setattr("ray.serve.autoscaling_policy.time", now)
        context: Any = RaysContext(settings, ready, target, total, state)
        asked, state = theirs(context)
        proposal, memory = ours.propose(spec(), _with(total, ready, target), at_s, memory)
        assert proposal.replicas == math.ceil(asked), f"at {at_s} s with {total} requests in {ready} of {target}"
        differing += proposal.replicas != target
        target = proposal.replicas
    assert differing >= 3


def _requests(random: random.Random, count: int) -> list[int]:
    """Ongoing requests that wander, jump and stay at zero for a while."""
    level, totals = 4, list[int]()
    while len(totals) < count:
        level = random.choice([0, 0, level, level + random.randint(-6, 6), random.randint(0, 60)])
        level = max(0, level)
        totals += [level] * random.randint(1, 40)
    return totals[:count]


def _with(total: int, ready: int, target: int) -> ModelObservation:
    """That many requests in all: on the first replica, or held while none is ready."""
    replicas = [ReplicaObservation(f"r{n}", Phase.READY, 0, total if n == 0 else 0) for n in range(ready)]
    return model(target)._replace(replicas=tuple(replicas), held=0 if ready else total)


def busy(target: int, running: int, ready: int | None = None, waiting: int = 0) -> ModelObservation:
    return model(target, ready=ready, each=reading(running, waiting))


@pytest.mark.parametrize(
    ("rule", "seen", "seconds", "expected"),
    [
        pytest.param(RayDefault(), busy(1, 6), 25, (1, Reason.WAIT), id="waits out the upscale delay"),
        pytest.param(RayDefault(), busy(1, 6), 30, (3, Reason.DEMAND), id="then goes all the way"),
        pytest.param(RayDefault(), busy(1, 2, waiting=4), 30, (3, Reason.DEMAND), id="waiting requests count"),
        pytest.param(
            RayDefault(), busy(3, 6, ready=1), 60, (3, Reason.STEADY), id="what is asked for is not asked again"
        ),
        pytest.param(RayDefault(), busy(4, 1), 595, (4, Reason.HOLD), id="waits out the downscale delay"),
        pytest.param(RayDefault(), busy(4, 1), 600, (2, Reason.SHRINK), id="then shrinks by all at once"),
        pytest.param(RayDefault(), busy(3, 0), 600, (1, Reason.SHRINK), id="to one before it goes to none"),
        pytest.param(RayDefault(), busy(1, 0), 600, (0, Reason.IDLE), id="from one to none without requests"),
        pytest.param(RayDefault(), busy(1, 1), 9000, (1, Reason.STEADY), id="one stays for one request"),
        pytest.param(RayDefault(), model(0, held=9), 0, (1, Reason.WAKE), id="one wakes at once"),
        pytest.param(RayDefault(), model(0), 900, (0, Reason.IDLE), id="zero stays zero"),
        pytest.param(
            RayDefault(), model(1, ready=0, held=99), 900, (1, Reason.STEADY), id="none more while the first starts"
        ),
        pytest.param(
            RayDefault(),
            model(2, each=reading(None)),
            900,
            (2, Reason.BLIND),
            id="keeps what is there without readings",
        ),
    ],
)
def test_delays(rule: RayDefault, seen: ModelObservation, seconds: int, expected: tuple[int, Reason]) -> None:
    """The answer after so many seconds of the same observation."""
    proposal = answers(rule, spec(), [(float(at_s), seen) for at_s in range(0, seconds + 1, 5)])[-1]
    assert (proposal.replicas, proposal.reason) == expected


def test_a_moment_of_calm_starts_the_delay_anew() -> None:
    rule = RayDefault(look_back_s=0.0)
    series = [(5.0 * n, busy(1, 2 if n == 5 else 8)) for n in range(14)]
    grew_at_s = next(
        at_s for (at_s, _), proposal in zip(series, answers(rule, spec(), series), strict=True) if proposal.replicas > 1
    )
    assert grew_at_s == 60.0


def test_requests_are_averaged_over_the_look_back() -> None:
    rule = RayDefault(upscale_delay_s=0.0, look_back_s=30.0)
    proposals = answers(rule, spec(), [(5.0 * n, busy(1, 12 if n == 6 else 0)) for n in range(7)])
    assert proposals[-1].replicas == 1


def test_a_share_of_the_profile_replaces_the_number() -> None:
    seen = model(
        1,
        each=reading(round(HOLDS)),
        arrivals_total=1000.0,
        finished_total=1000.0,
        prompt_tokens_total=1000 * PROMPT,
        output_tokens_total=1000 * OUTPUT,
    )
    none = seen._replace(arrivals_total=0.0, finished_total=0.0, prompt_tokens_total=0.0, output_tokens_total=0.0)
    series = [(0.0, none), *((5.0 * n, seen) for n in range(1, 12))]
    by_share, by_number = RayDefault(target_share=0.55, upscale_delay_s=0.0), RayDefault(upscale_delay_s=0.0)
    assert answers(by_share, spec(), series)[-1].replicas == 2
    assert answers(by_number, spec(), series)[-1].replicas > 50
