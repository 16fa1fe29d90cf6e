"""A small lab for tests: engines of round numbers, twelve GPUs in pairs, scripted policies, a world that is watched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raylane.autoscaling.constrain import WatchedFor
from raylane.autoscaling.decision import Decision, Reason, ReplicaMove, Target
from raylane.autoscaling.lab.setup import ColdStart, LabModel, Setup
from raylane.autoscaling.lab.world import ModelState, World
from raylane.autoscaling.observation import Observation, Phase
from raylane.autoscaling.pipeline import Policy
from raylane.autoscaling.profile import capacity_profile
from raylane.autoscaling.propose import Memory
from raylane.autoscaling.rules.fixed import Fixed
from raylane.autoscaling.share import in_turn
from raylane.autoscaling.spec import ModelSpec
from raylane.autoscaling.traces.shapes import generate, shape_from_data
from raylane.autoscaling.traces.trace import Trace
from raylane.cluster.recording import load_recording
from raylane.deployments.simulator.replica import EngineModel
from raylane.deployments.simulator.request import Limits
from raylane.deployments.simulator.step_model import StepModel
from raylane.deployments.slo import Slo

RECORDINGS = Path(__file__).parents[2] / "fixtures" / "topology"
HOSTS = tuple(load_recording(RECORDINGS / "l40s-x12-six-switch-pairs.json"))
SLO = Slo(ttft_ms=1000, tpot_ms=50)
SHORT = {"input_tokens": {"mean": 100, "p99": 400, "max": 900}, "output_tokens": {"mean": 50, "p99": 150, "max": 400}}


def engine(step_s: float = 0.02) -> EngineModel:
    """Every step takes `step_s`, 0.1 ms for each prompt token in it, and 20 us for each token decoded over."""
    steps = StepModel(step_s, (0.0,), 1e-4, 0.0, 2e-5, 0.0, 0.0)
    return EngineModel(Limits(20_000, 64, 2048, 2000, prefix_caching=False), steps)


def model(
    name: str = "a",
    *,
    gpus: int = 1,
    least: int = 0,
    most: int = 12,
    initial: int = 1,
    cold_start_s: float = 40.0,
    sigma: float = 0.0,
    slo: Slo = SLO,
) -> LabModel:
    """A model whose cold start always takes as long, unless `sigma` says otherwise. Apart it is half as fast."""
    spec = ModelSpec(name, gpus, least, most, slo, capacity_profile(engine(), slo), cold_start_s)
    return LabModel(spec, engine(), engine(0.04), ColdStart(cold_start_s, sigma), initial)


def trace(*requests: tuple[float, int, int], duration_s: float = 600.0) -> Trace:
    """Requests by hand: (arrival, prompt tokens, output tokens)."""
    columns = np.array(requests, dtype=float).reshape(-1, 3)
    return Trace("t", None, columns[:, 0], columns[:, 1].astype(int), columns[:, 2].astype(int), "by hand", duration_s)


def load(rps: float, duration_s: float = 600.0, seed: int = 1) -> Trace:
    """Constant load of short requests."""
    data = {"kind": "constant", "rps": rps, "duration_s": duration_s, "lengths": SHORT}
    return generate(shape_from_data(data, "test"), np.random.default_rng(seed))


def setup(models: Sequence[LabModel], traces: Mapping[str, Trace], hold_timeout_s: float = 300.0) -> Setup:
    return Setup("test", HOSTS, tuple(models), dict(traces), hold_timeout_s)


@dataclass
class Script:
    """What is decided at which time, and what was seen then."""

    targets: Callable[[str, float], int]
    moves: list[tuple[float, Callable[[Observation], ReplicaMove]]] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)

    def decide(self, seen: Observation) -> Decision:
        self.seen.append(seen)
        due = [make(seen) for at_s, make in self.moves if at_s == seen.at_s]
        targets = {one.name: Target(self.targets(one.name, seen.at_s), Reason.STATIC) for one in seen.models}
        return Decision(targets, tuple(due))


@dataclass(frozen=True)
class Scripted(Policy):
    """Decides what is written, whatever a rule would propose."""

    script: Script | None = None

    def decide(
        self, seen: Observation, memory: Memory, watched: WatchedFor = WatchedFor.LONG
    ) -> tuple[Decision, Memory]:
        assert self.script is not None
        return self.script.decide(seen), memory


def scripted(made: Setup, script: Script, every_s: float = 5.0) -> Policy:
    return Scripted({m.spec.name: m.spec for m in made.models}, Fixed(), in_turn, every_s, script=script)


def steps(*changes: tuple[float, int]) -> Callable[[str, float], int]:
    """The same targets for every model: (from when, how many), rising in time."""
    return lambda name, at_s: [count for from_s, count in changes if from_s <= at_s][-1]


class WatchedWorld(World):
    """Counts held GPUs and the requests of replicas by itself."""

    def __init__(self, made: Setup, policy: Policy, seed: int = 1) -> None:
        self.held_gpus: list[tuple[float, int]] = []
        self.sent_elsewhere = 0
        super().__init__(made, policy, seed)
        self._look(0.0)

    def _look(self, at_s: float) -> None:
        self.held_gpus.append((at_s, self.fleet.size - sum(len(free) for free in self.fleet.free.values())))

    def _decide(self, at_s: float) -> None:
        super()._decide(at_s)
        self._look(at_s)

    def _send(self, model: ModelState, index: int, at_s: float) -> None:
        others = [r.engine for r in model.replicas if r.phase is not Phase.READY and r.engine is not None]
        before = [one.in_system for one in others]
        super()._send(model, index, at_s)
        self.sent_elsewhere += [one.in_system for one in others] != before

    def gpu_hours(self) -> float:
        """The integral of held GPUs over the trace."""
        ends_s = [at_s for at_s, _ in self.held_gpus[1:]] + [self.end_s]
        pairs = zip(self.held_gpus, ends_s, strict=True)
        return sum(held * max(0.0, min(end_s, self.end_s) - at_s) for (at_s, held), end_s in pairs) / 3600


def watched(made: Setup, script: Script, every_s: float = 5.0, seed: int = 1) -> WatchedWorld:
    """A finished replay."""
    world = WatchedWorld(made, scripted(made, script, every_s), seed)
    world.run()
    return world
