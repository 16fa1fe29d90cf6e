"""Making room for a pair on a whole domain, on the box of six switch pairs."""

from pathlib import Path
from typing import Any

import pytest
from live_values import report, snapshot
from scaler_bench import Bench, bench
from seen_models import fleet, spec

from raylane.autoscaling.decision import Decision, Reason, Target
from raylane.autoscaling.move import make_room
from raylane.autoscaling.observation import ModelObservation, Phase, ReplicaObservation
from raylane.cluster.domains import domains
from raylane.cluster.recording import load_recording
from raylane.deployments.engines.load import EngineLoad

RECORDING = Path(__file__).parents[2] / "fixtures" / "topology" / "l40s-x12-six-switch-pairs.json"
(HOST,) = load_recording(RECORDING)
PAIRS = [domain.uuids for domain in domains(HOST)]
SPECS = {"8b": spec("8b"), "70b": spec("70b", gpus=2)}


def ready(name: str, *gpus: str, waiting: int = 0, phase: Phase = Phase.READY) -> ReplicaObservation:
    return ReplicaObservation(name, phase, waiting, 1, 0.1, gpus=gpus)


def seen(*singles: ReplicaObservation, pairs: int = 4, waiting: int = 0) -> tuple[ModelObservation, ModelObservation]:
    """The singles, and pairs on the last domains."""
    held = [ready(f"p{n}", *PAIRS[5 - n], waiting=waiting) for n in range(pairs)]
    return ModelObservation("8b", len(singles), singles), ModelObservation("70b", pairs, tuple(held))


def planned(models: tuple[ModelObservation, ModelObservation], singles: int | None = None) -> Decision:
    """One pair more is wanted, and as many singles as there are."""
    proposed = {
        "8b": Target(models[0].target if singles is None else singles, Reason.STEADY),
        "70b": Target(models[1].target + 1, Reason.DEMAND),
    }
    return make_room(proposed, SPECS, fleet(*models), (HOST,))


SPLIT = (ready("a", PAIRS[0][0]), ready("b", PAIRS[1][0]))


def test_a_single_moves_to_the_other_half_of_its_neighbour_and_the_pair_waits() -> None:
    decision = planned(seen(*SPLIT))
    (move,) = decision.moves
    stays = {"a": PAIRS[0], "b": PAIRS[1]}.keys() - {move.replica_id}
    assert move.to_gpus == ({"a": PAIRS[0], "b": PAIRS[1]}[stays.pop()][1],)
    assert decision.targets["70b"][:2] == (4, Reason.DOMAIN)
    assert decision.targets["8b"].replicas == 2


def test_the_pair_starts_at_once_on_a_whole_domain() -> None:
    decision = planned(seen(ready("a", PAIRS[0][0]), ready("b", PAIRS[0][1])))
    assert (decision.moves, decision.targets["70b"].replicas) == ((), 5)


@pytest.mark.parametrize(
    "models",
    [
        pytest.param(seen(*SPLIT, waiting=1), id="requests wait for the pair"),
        pytest.param(seen(ready("a", PAIRS[0][0], waiting=2), SPLIT[1]), id="requests wait for the single"),
        pytest.param(
            seen(SPLIT[0], ready("b", PAIRS[1][0], phase=Phase.STARTING)), id="the single's model is still growing"
        ),
    ],
)
def test_the_pair_takes_second_best_links_when_a_move_does_not_pay(
    models: tuple[ModelObservation, ModelObservation],
) -> None:
    decision = planned(models)
    assert (decision.moves, decision.targets["70b"].replicas) == ((), 5)


def test_a_model_that_wants_more_singles_spares_none() -> None:
    assert planned(seen(*SPLIT), singles=3).moves == ()


def test_it_waits_for_a_drain_under_way_and_moves_no_second_one() -> None:
    models = seen(*SPLIT, ready("c", PAIRS[1][1], phase=Phase.DRAINING))
    decision = planned(models)
    assert (decision.moves, decision.targets["70b"][:2]) == ((), (4, Reason.DOMAIN))


def test_hosts_whose_links_are_unknown_are_left_alone() -> None:
    proposed = {"8b": Target(2, Reason.STEADY), "70b": Target(5, Reason.DEMAND)}
    assert make_room(proposed, SPECS, fleet(*seen(*SPLIT)), ()) == Decision(proposed)


def live(moves: bool) -> Bench:
    """Two singles on half a domain each and four pairs; the pairs' model needs one more to keep its minimum."""
    blocks: dict[str, dict[str, Any]] = {
        "small": {"replicas": {"min": 2, "max": 3}},
        "large": {"tensor_parallel": 2, "replicas": {"min": 5, "max": 6}},
    }
    running = bench({"small": 2, "large": 4}, {"moves": moves}, **blocks)
    running.cluster.machines = (HOST,)
    load = EngineLoad(0, 0, 0.0, 0.0, 0.0)
    singles = [report(name, "small", gpus=(PAIRS[n][0],), load=load) for n, name in enumerate("ab")]
    pairs = [report(f"p{n}", "large", gpus=PAIRS[5 - n], load=load) for n in range(4)]
    running.cluster.seen = snapshot(*singles, *pairs)
    return running


async def test_the_live_autoscaler_orders_the_move_only_where_the_config_says_so() -> None:
    for moves in (False, True):
        running = live(moves)
        await running.tick(1)
        running.cluster.counts = {"small": 2, "large": 4}
        await running.tick(1)
        assert [move.replica_id in "ab" for move in running.cluster.moved] == [True] * moves
