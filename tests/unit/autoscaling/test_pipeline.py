"""One pipeline: the live decider and the replay lab decide alike, and a new rule is one entry of the registry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import small_lab
from hypothesis import given, settings
from hypothesis import strategies as st
from live_values import config, report, snapshot

from raylane.autoscaling.decision import Decision, Proposal, Reason
from raylane.autoscaling.lab.choices import check_choice
from raylane.autoscaling.lab.plan import PolicyChoice
from raylane.autoscaling.lab.policies import make_policy
from raylane.autoscaling.lab.replay import replay_one
from raylane.autoscaling.lab.setup import Setup
from raylane.autoscaling.lab.world import World
from raylane.autoscaling.live.decider import ClusterReading, Decided, Decider, FleetGpus
from raylane.autoscaling.live.specs import check_scaling, chosen_policy, model_specs
from raylane.autoscaling.observation import ModelObservation, Observation
from raylane.autoscaling.rules.entry import RuleEntry
from raylane.autoscaling.rules.registry import RULES, deployable_policies
from raylane.autoscaling.share import in_turn
from raylane.autoscaling.spec import ModelSpec
from raylane.cluster.domains import domains
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory.reports import ModelTraffic, Snapshot
from raylane.deployments.engines.load import EngineLoad

TICK_S = 5.0
(HOST,) = small_lab.HOSTS
PAIRS = [domain.uuids for domain in domains(HOST)]
MODELS: dict[str, dict[str, Any]] = {
    "one": {"replicas": {"min": 0, "max": 8}, "priority": 3, "cold_start_s": 60},
    "two": {"replicas": {"min": 1, "max": 6}, "tensor_parallel": 2, "cold_start_s": 90},
}


class FedWorld(World):
    """A replay that is shown observations instead of its own, and whose decisions are kept instead of carried out."""

    observed: Observation
    decision: Decision

    def _observe(self, at_s: float) -> Observation:
        return self.observed

    def _apply(self, decision: Decision, at_s: float) -> None:
        self.decision = decision

    def decide(self, observed: Observation) -> Decision:
        self.observed = observed
        self._decide(observed.at_s)
        return self.decision


BUSY: Mapping[str, Any] = {
    "rps": 150.0,
    "tells": True,
    "waits_s": 20.0,
    "held": 0,
    "waiting": 40,
    "running": 250,
    "kv": 0.95,
    "gpu_percent": 99.0,
}


def lab_for(deployed: DeploymentConfig) -> Setup:
    """The deployed models in a lab, on the same GPUs, with what the live policy knows of them."""
    specs = model_specs(deployed, "L40S", "test")
    models = [replace(small_lab.model(name, gpus=spec.gpus), spec=spec) for name, spec in specs.items()]
    return small_lab.setup(models, {name: small_lab.trace() for name in specs})


@dataclass
class LiveCluster:
    """Two models whose replicas follow the decisions at once; what their engines and gateways say is given."""

    deployed: DeploymentConfig
    targets: dict[str, int]

    def __post_init__(self) -> None:
        self.decider = Decider()
        self.came = dict.fromkeys(MODELS, 0)

    def tick(self, at_s: float, loads: Mapping[str, Mapping[str, Any]]) -> Decided:
        reading = ClusterReading(at_s, self._snapshot(loads), dict(self.targets), FleetGpus(12, "L40S", (HOST,)))
        decided = self.decider.decide(self.deployed, reading)
        self.targets = {name: target.replicas for name, target in decided.targets.items()}
        return decided

    def _snapshot(self, loads: Mapping[str, Mapping[str, Any]]) -> Snapshot:
        reports, traffic = [], {}
        for name, load in loads.items():
            self.came[name] += int(load["rps"] * TICK_S)
            came = self.came[name]
            tokens = (500.0 * came, 200.0 * came) if load["tells"] else (None, None)
            waits = {f"{name}0": load["waits_s"]}
            traffic[name] = ModelTraffic(came, completed=came, held=load["held"], first_byte_wait_s=waits)
            for n in range(self.targets[name]):
                gpus = PAIRS[5 - n % 6] if name == "two" else (PAIRS[n % 6][n // 6],)
                engine = EngineLoad(load["waiting"], load["running"], load["kv"], *(tokens if n == 0 else (0.0, 0.0)))
                reports.append(report(f"{name}{n}", name, load=engine, gpus=gpus, used_percent=load["gpu_percent"]))
        return snapshot(*reports, gateways={"gateway": traffic})


loads = st.fixed_dictionaries(
    {
        "rps": st.sampled_from([0.0, 0.5, 8.0, 40.0, 150.0]),
        "tells": st.sampled_from([True, True, True, False]),
        "waits_s": st.sampled_from([0.0, 0.2, 20.0]),
        "held": st.sampled_from([0, 0, 0, 3]),
        "waiting": st.sampled_from([0, 0, 40]),
        "running": st.sampled_from([0, 2, 60, 250]),
        "kv": st.sampled_from([0.0, 0.3, 0.95]),
        "gpu_percent": st.sampled_from([None, 0.0, 30.0, 99.0]),
    }
)
courses = st.lists(st.tuples(st.integers(1, 12), loads, loads), min_size=3, max_size=7)
"""How many decisions long each model has which load."""


@pytest.mark.parametrize("policy", [name for name in deployable_policies() if name != "fixed"])
@given(course=courses, start=st.tuples(st.integers(0, 4), st.integers(1, 4)), moves=st.booleans())
@settings(max_examples=15)
def test_live_and_lab_decide_alike_on_the_same_observations(
    policy: str, course: Sequence[tuple[int, Mapping[str, Any], Mapping[str, Any]]], start: tuple[int, int], moves: bool
) -> None:
    """Counts, reasons, figures and moves, from the second look on: at its first the live one only repairs bounds."""
    deployed = config({"policy": policy, "warm_up_s": 0, "moves": moves}, **MODELS)
    live = LiveCluster(deployed, dict(zip(MODELS, start, strict=True)))
    setup = lab_for(deployed)
    lab = FedWorld(setup, make_policy(setup, policy, {}, policy, moves=moves), seed=1)
    ticks = [now for count, *now in course for _ in range(count)]
    for n, now in enumerate(ticks):
        decided = live.tick(n * TICK_S, dict(zip(MODELS, now, strict=True)))
        replayed = lab.decide(decided.seen)
        if n:
            assert Decision(dict(decided.targets), decided.moves) == replayed


def test_the_loads_of_that_test_make_models_compete() -> None:
    """Else it would say little."""
    live = LiveCluster(config({"policy": "slo", "warm_up_s": 0}, **MODELS), {"one": 4, "two": 2})
    decided = [live.tick(n * TICK_S, {"one": BUSY, "two": BUSY}) for n in range(6)]
    reasons = {target.reason for each in decided for target in each.targets.values()}
    assert reasons & {Reason.SHARE, Reason.YIELD}
    assert decided[-1].targets["one"].replicas + 2 * decided[-1].targets["two"].replicas == 12


@pytest.mark.parametrize("moves", [True, False])
def test_live_and_lab_order_the_same_move(moves: bool) -> None:
    """Two singles stand on halves of two domains, four pairs on the others, and the load needs a fifth pair."""
    deployed = config({"policy": "slo", "warm_up_s": 0, "moves": moves}, **MODELS)
    live = LiveCluster(deployed, {"one": 2, "two": 4})
    setup = lab_for(deployed)
    lab = FedWorld(setup, make_policy(setup, "slo", {}, "slo", moves=moves), seed=1)
    busy = {**BUSY, "waits_s": 0.0, "waiting": 0}
    ordered = []
    for n in range(4):
        live.targets = {"one": 2, "two": 4}
        decided = live.tick(n * TICK_S, {"one": {**busy, "rps": 8.0, "running": 2}, "two": busy})
        replayed = lab.decide(decided.seen)
        if n:
            assert Decision(dict(decided.targets), decided.moves) == replayed
        ordered += [move.replica_id[:-1] for move in decided.moves]
    assert set(ordered) == ({"one"} if moves else set())


@pytest.mark.parametrize("sharing", ["by-loss", "in-turn"])
def test_a_config_and_a_plan_may_say_how_models_share(sharing: str) -> None:
    """The first model grows first, or the one of higher priority does, whatever the rule."""
    blocks: dict[str, dict[str, Any]] = {
        "one": {"replicas": {"min": 0, "max": 12}},
        "two": {"replicas": {"min": 0, "max": 12}, "priority": 9},
    }
    deployed = config({"policy": "fixed", "sharing": sharing, "knobs": {"replicas": 9}}, **blocks)
    assert deployed.scaling is not None
    specs = model_specs(config({"policy": "slo"}, **blocks), "L40S", "test")
    seen = Observation(0.0, tuple(ModelObservation(name, 0, arrivals_total=0.0) for name in specs), 12)
    decision, _ = chosen_policy(deployed.scaling, specs, (), "test").decide(seen, {})
    counts = {name: target.replicas for name, target in decision.targets.items()}
    assert counts == ({"one": 3, "two": 9} if sharing == "by-loss" else {"one": 9, "two": 3})

    setup = lab_for(config({"policy": "slo"}, **blocks))
    choice = PolicyChoice.model_validate({"rule": "fixed", "sharing": sharing, "knobs": {"replicas": 9}})
    lab = make_policy(setup, choice.rule, choice.knobs, "x", sharing=choice.sharing)
    assert lab.decide(seen, {})[0] == decision


@dataclass(frozen=True)
class TwoMore:
    """A rule for the test below."""

    more: int = 2

    def propose(self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: None) -> tuple[Proposal, None]:
        return Proposal(seen.target + self.more, Reason.DEMAND), None


def test_a_new_rule_is_one_entry_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Config, live autoscaler and lab know it by that, and it shares as its entry says, whatever its name."""
    entry = RuleEntry(TwoMore, "two more each time", in_turn, "more", (1, 2))
    monkeypatch.setitem(RULES, "slo-two-more", entry)
    deployed = config({"policy": "slo-two-more", "warm_up_s": 0}, **MODELS)
    check_scaling(deployed, "L40S", "test")
    assert "slo-two-more" in deployable_policies()

    live = LiveCluster(deployed, {"one": 1, "two": 1})
    decided = [live.tick(n * TICK_S, {"one": BUSY, "two": BUSY}).targets for n in range(5)]
    counts = [(targets["one"].replicas, targets["two"].replicas) for targets in decided]
    assert counts == [(1, 1), (3, 3), (5, 3), (6, 3), (6, 3)], "the pairs' model comes second, nobody gives a GPU back"

    choice = PolicyChoice(rule="slo-two-more", knobs={"more": 1})
    check_choice(choice)
    setup = small_lab.setup([small_lab.model(initial=1, most=4)], {"a": small_lab.load(1.0, 60.0)})
    replayed = replay_one(setup, choice, seed=1)
    assert [count for _, count in replayed.targets["a"]] == [1, 2, 3, 4]
