"""One look after another at a cluster whose replicas follow: what engines and gateways leave out moves no counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_values import config, report, snapshot

from raylane.autoscaling.live.decider import ClusterReading, Decided, Decider, FleetGpus
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory.reports import ModelTraffic, Snapshot
from raylane.deployments.engines.load import EngineLoad

TICK_S = 5.0
RPS = 15.0
PROMPT, OUTPUT = 500.0, 200.0


@dataclass
class LoadedModel:
    """A model under a constant load, decided about every 5 s; its replicas start at once."""

    load: Callable[[float], EngineLoad]
    """What each replica says at a time, in seconds since the beginning."""
    gateways: Callable[[float], tuple[dict[str, dict[str, ModelTraffic]], dict[str, float]]]
    """Their traffic and the seconds since each spoke."""
    target: int
    config: DeploymentConfig = field(default_factory=lambda: config(m={"replicas": {"min": 1, "max": 12}}))
    targets: list[int] = field(default_factory=list)

    def run(self, seconds: float) -> list[int]:
        """The counts that were decided."""
        decider = Decider()
        for n in range(int(seconds / TICK_S)):
            at_s = n * TICK_S
            decided = decider.decide(
                self.config, ClusterReading(at_s, self._snapshot(at_s), {"m": self.target}, FleetGpus(12, "L40S"))
            )
            self.target = decided.targets["m"].replicas
            self.targets.append(self.target)
            self.decided = decided
        return self.targets

    @property
    def need(self) -> float:
        """Replicas needed, by the last decision."""
        return need(self.decided)

    def _snapshot(self, at_s: float) -> Snapshot:
        traffic, ages_s = self.gateways(at_s)
        reports = (report(f"r{n}", load=self.load(at_s), gpus=(f"g{n}",)) for n in range(self.target))
        seen = snapshot(*reports, gateways=traffic)
        return Snapshot(seen.epoch, seen.models, seen.replicas, seen.report_age_s, traffic, ages_s)


def need(decided: Decided) -> float:
    found = decided.targets["m"].need
    assert found is not None
    return found


def one_gateway(
    cancelled: float = 0.0,
) -> Callable[[float], tuple[dict[str, dict[str, ModelTraffic]], dict[str, float]]]:
    """All requests through one; this share of them is left by its client."""

    def at(at_s: float) -> tuple[dict[str, dict[str, ModelTraffic]], dict[str, float]]:
        came = int(RPS * at_s)
        left = int(came * cancelled)
        return {"gw": {"m": ModelTraffic(received=came, completed=came - left, cancelled=left)}}, {"gw": 0.2}

    return at


def tells(replicas: int, until_s: float = float("inf")) -> Callable[[float], EngineLoad]:
    """Replicas that share the load, and tell its tokens until then."""

    def at(at_s: float) -> EngineLoad:
        done = int(RPS * at_s) / replicas
        tokens = (PROMPT * done, OUTPUT * done) if at_s < until_s else (None, None)
        return EngineLoad(0, 30, 0.3, *tokens)

    return at


def test_engines_that_tell_no_tokens_keep_their_replicas_under_load() -> None:
    busy = LoadedModel(lambda _: EngineLoad(0, 30, 0.3), one_gateway(), target=4)
    assert set(busy.run(1800.0)) == {4}


def test_engines_that_tell_no_tokens_grow_by_what_they_hold_and_shrink_when_they_hold_nothing() -> None:
    full = LoadedModel(lambda at_s: EngineLoad(40, 120, 0.3), one_gateway(), target=2)
    assert full.run(120.0)[-1] > 2
    quiet = LoadedModel(lambda at_s: EngineLoad(0, 0, 0.0), lambda _: ({"gw": {}}, {"gw": 0.2}), target=4)
    assert quiet.run(1800.0)[-1] == 1


def test_token_counters_that_vanish_take_no_replica_away() -> None:
    assert set(LoadedModel(tells(3, until_s=900.0), one_gateway(), target=3).run(3600.0)) == {3}


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_requests_whose_clients_leave_are_not_counted_twice(share: float) -> None:
    """They cost the tokens of the others here, so they change nothing."""
    none, some = (LoadedModel(tells(3), one_gateway(cancelled), target=3) for cancelled in (0.0, share))
    none.run(600.0)
    some.run(600.0)
    assert some.need == pytest.approx(none.need, rel=0.02)


@pytest.mark.parametrize("silent_s", [10.0, 30.0, 60.0])
def test_a_gateway_of_two_that_is_late_is_no_jump_of_the_load(silent_s: float) -> None:
    def gateways(at_s: float) -> tuple[dict[str, dict[str, ModelTraffic]], dict[str, float]]:
        silent = 600.0 <= at_s < 600.0 + silent_s
        known = {"a": at_s, "b": 600.0 if silent else at_s}
        traffic = {}
        for name, until_s in known.items():
            half = int(RPS / 2 * until_s)
            traffic[name] = {"m": ModelTraffic(received=half, completed=half)}
        return traffic, {"a": 0.2, "b": at_s - 600.0 + 0.2 if silent else 0.2}

    assert set(LoadedModel(tells(3), gateways, target=3).run(900.0)) == {3}


loads = st.fixed_dictionaries(
    {
        "rps": st.floats(0.0, 60.0),
        "waits_s": st.sampled_from([0.0, 0.2, 20.0]),
        "held": st.integers(0, 3),
        "waiting": st.integers(0, 200),
    }
)


@given(
    start=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    course=st.lists(st.tuples(loads, loads), min_size=2, max_size=20),
    least=st.integers(0, 1),
    gpus=st.integers(2, 8),
)
@settings(max_examples=60)
def test_while_it_warms_up_too_it_never_asks_for_more_gpus_than_there_are(
    start: tuple[int, int],
    course: list[tuple[Mapping[str, float], Mapping[str, float]]],
    least: int,
    gpus: int,
) -> None:
    """Unless so many are asked for already; then for no more."""
    bounds = {"replicas": {"min": least, "max": 8}}
    deployed = config({"warm_up_s": 60}, a=bounds, b={**bounds, "priority": 3})
    targets = dict(zip("ab", start, strict=True))
    decider, came = Decider(), {"a": 0, "b": 0}
    for n, now in enumerate(course):
        traffic, reports = {}, []
        for name, load in zip("ab", now, strict=True):
            came[name] += int(load["rps"] * TICK_S)
            waits = {f"{name}0": load["waits_s"]}
            traffic[name] = ModelTraffic(came[name], held=int(load["held"]), first_byte_wait_s=waits)
            engine = EngineLoad(int(load["waiting"]), 50, 0.5, came[name] * PROMPT, came[name] * OUTPUT)
            reports += [report(f"{name}{k}", name, load=engine) for k in range(targets[name])]
        look = ClusterReading(
            n * TICK_S, snapshot(*reports, gateways={"gw": traffic}), targets, FleetGpus(gpus, "L40S")
        )
        decided = {name: target.replicas for name, target in decider.decide(deployed, look).targets.items()}
        assert sum(decided.values()) <= max(gpus, sum(targets.values()))
        targets = decided
