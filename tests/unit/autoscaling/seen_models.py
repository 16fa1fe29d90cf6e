"""Observations of one model for tests, and a small loop in which replicas follow what a rule asks for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from raylane.autoscaling.observation import ModelSeen, Observation, Phase, ReplicaSeen
from raylane.autoscaling.policy import ModelSpec, Wish, Wisher
from raylane.autoscaling.profile import CapacityProfile
from raylane.deployments.config import Slo

TICK_S = 5.0
PROMPT, OUTPUT = 500.0, 200.0
PROFILE = CapacityProfile(
    step_s=0.02, prompt_token_s=5e-5, context_token_s=2e-7, kv_tokens=200_000, max_num_seqs=256, tpot_s=0.06
)
RATE_RPS = PROFILE.requests_per_s(PROMPT, OUTPUT)
"""What one replica carries of the requests used here."""
HOLDS = PROFILE.concurrency(PROMPT, OUTPUT)
"""Requests in a replica at that rate."""


def spec(name: str = "m", least: int = 0, most: int = 12, cold_start_s: float = 60.0, **changes: Any) -> ModelSpec:
    """A model that may have 0 to 12 replicas of one GPU."""
    slo = Slo(ttft_ms=1000, tpot_ms=60)
    return ModelSpec(name, changes.pop("gpus", 1), least, most, slo, PROFILE, cold_start_s, **changes)


def model(target: int = 1, *, ready: int | None = None, each: ReplicaSeen | None = None, **changes: Any) -> ModelSeen:
    """`ready` replicas (all, unless said) with the same readings `each`; the others of the target are starting."""
    count = target if ready is None else ready
    reading = each or ReplicaSeen("", Phase.READY, 0, 0, 0.0, 0.0)
    replicas = [reading._replace(replica_id=f"r{n}") for n in range(count)]
    replicas += [ReplicaSeen(f"s{n}", Phase.STARTING) for n in range(count, target)]
    totals = {"arrivals_total": 0.0, "finished_total": 0.0, "prompt_tokens_total": 0.0, "output_tokens_total": 0.0}
    return ModelSeen(**{"name": "m", "target": target, "replicas": tuple(replicas), **totals, **changes})


def reading(
    running: int | None = 0,
    waiting: int | None = 0,
    kv: float | None = 0.0,
    gpu: float | None = 0.0,
    sick: bool = False,
) -> ReplicaSeen:
    """One ready replica."""
    return ReplicaSeen("r", Phase.READY, waiting, running, kv, gpu, sick=sick)


def fleet(*models: ModelSeen, gpus: int = 12) -> Observation:
    return Observation(0.0, models, gpus)


def answers(rule: Wisher, of: ModelSpec, series: Sequence[tuple[float, ModelSeen]]) -> list[Wish]:
    """What the rule answers to each (time, observation), remembering."""
    memory: Any = None
    wishes = []
    for at_s, seen in series:
        wish, memory = rule.wish(of, seen, at_s, memory)
        wishes.append(wish)
    return wishes


@dataclass
class Loop:
    """Requests at a given rate that are all served at once, evenly, by replicas that take a time to start."""

    rule: Wisher
    rate_rps: Callable[[float], float]
    target: int = 1
    of: ModelSpec = field(default_factory=spec)
    at_s: float = 0.0
    memory: Any = None
    arrived: float = 0.0
    ready_s: list[float] = field(default_factory=list)
    """When each replica asked for is, or will be, ready."""
    targets: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ready_s = [0.0] * self.target

    def run(self, seconds: float) -> list[int]:
        """The target after each decision."""
        until_s = self.at_s + seconds
        while self.at_s < until_s:
            self.at_s += TICK_S
            self.arrived += self.rate_rps(self.at_s) * TICK_S
            wish, self.memory = self.rule.wish(self.of, self.see(), self.at_s, self.memory)
            self.follow(max(self.of.min_replicas, min(self.of.max_replicas, wish.replicas)))
        return self.targets

    def see(self) -> ModelSeen:
        ready = sum(1 for ready_s in self.ready_s if ready_s <= self.at_s)
        rate_rps = self.rate_rps(self.at_s)
        inside = PROFILE.in_service(rate_rps / ready, PROMPT, OUTPUT) if ready else 0.0
        running = round(HOLDS if inside is None else inside)
        kv = min(1.0, running * (PROMPT + OUTPUT / 2) / PROFILE.kv_tokens)
        each = reading(running, 0, kv, 1.0 if running else 0.0)
        return model(
            self.target,
            ready=ready,
            each=each,
            arrivals_total=self.arrived,
            finished_total=self.arrived,
            prompt_tokens_total=self.arrived * PROMPT,
            output_tokens_total=self.arrived * OUTPUT,
        )

    def follow(self, target: int) -> None:
        del self.ready_s[target:]
        self.ready_s += [self.at_s + self.of.cold_start_s] * (target - len(self.ready_s))
        self.target = target
        self.targets.append(target)


def reversals(targets: Sequence[int]) -> int:
    """Changes against the direction of the change before."""
    steps = [new - old for old, new in pairwise(targets) if new != old]
    return sum(1 for old, new in pairwise(steps) if old * new < 0)
