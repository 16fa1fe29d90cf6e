"""Observations of one model for tests, and a small loop in which replicas follow what a rule asks for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from raylane.autoscaling.decision import Proposal
from raylane.autoscaling.observation import ModelObservation, Observation, Phase, ReplicaObservation
from raylane.autoscaling.profile import CapacityProfile
from raylane.autoscaling.propose import Proposer
from raylane.autoscaling.spec import ModelSpec
from raylane.deployments.slo import Slo

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


def model(
    target: int = 1, *, ready: int | None = None, each: ReplicaObservation | None = None, **changes: Any
) -> ModelObservation:
    """`ready` replicas (all, unless said) with the same readings `each`; the others of the target are starting."""
    count = target if ready is None else ready
    reading = each or ReplicaObservation("", Phase.READY, 0, 0, 0.0, 0.0)
    replicas = [reading._replace(replica_id=f"r{n}") for n in range(count)]
    replicas += [ReplicaObservation(f"s{n}", Phase.STARTING) for n in range(count, target)]
    totals = {"arrivals_total": 0.0, "finished_total": 0.0, "prompt_tokens_total": 0.0, "output_tokens_total": 0.0}
    return ModelObservation(**{"name": "m", "target": target, "replicas": tuple(replicas), **totals, **changes})


def reading(
    running: int | None = 0,
    waiting: int | None = 0,
    kv: float | None = 0.0,
    gpu: float | None = 0.0,
    sick: bool = False,
) -> ReplicaObservation:
    """One ready replica."""
    return ReplicaObservation("r", Phase.READY, waiting, running, kv, gpu, sick=sick)


def fleet(*models: ModelObservation, gpus: int = 12) -> Observation:
    return Observation(0.0, models, gpus)


def answers(rule: Proposer, of: ModelSpec, series: Sequence[tuple[float, ModelObservation]]) -> list[Proposal]:
    """What the rule answers to each (time, observation), remembering."""
    memory: Any = None
    proposals = []
    for at_s, seen in series:
        proposal, memory = rule.propose(of, seen, at_s, memory)
        proposals.append(proposal)
    return proposals


@dataclass
class Loop:
    """Requests at a given rate that are all served at once, evenly, by replicas that take a time to start."""

    rule: Proposer
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
            proposal, self.memory = self.rule.propose(self.of, self.see(), self.at_s, self.memory)
            self.follow(max(self.of.min_replicas, min(self.of.max_replicas, proposal.replicas)))
        return self.targets

    def see(self) -> ModelObservation:
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
