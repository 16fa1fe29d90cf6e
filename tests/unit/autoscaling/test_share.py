"""Sharing a fleet that is too small: floors first, then by what is lost, and no thrash."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_models import fleet, model, spec

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation, Observation
from raylane.autoscaling.share import Sharing, by_loss, in_turn
from raylane.autoscaling.spec import ModelSpec

Case = tuple[ModelSpec, Proposal, int]
"""A model, its proposal, and its target before."""


def share(*cases: Case, gpus: int = 12, sharing: Sharing = by_loss) -> dict[str, tuple[int, Reason]]:
    specs = {of.name: of for of, _, _ in cases}
    proposals = {of.name: proposal for of, proposal, _ in cases}
    seen = fleet(*(model(target, name=of.name) for of, _, target in cases), gpus=gpus)
    targets = sharing(proposals, specs, seen)
    return {name: (target.replicas, target.reason) for name, target in targets.items()}


def want(replicas: int, need: float | None = None) -> Proposal:
    return Proposal(replicas, Reason.DEMAND, need)


A, B = spec("a", least=1), spec("b", least=1)
PAIR = spec("pair", least=1, gpus=2)


@pytest.mark.parametrize(
    ("cases", "gpus", "expected"),
    [
        pytest.param([(A, want(4), 1), (B, want(8), 1)], 12, {"a": 4, "b": 8}, id="proposals that fit are granted"),
        pytest.param([(A, want(12), 1), (B, want(1), 1)], 12, {"a": 11, "b": 1}, id="every model keeps its floor"),
        pytest.param(
            [(A, want(12, 30.0), 12), (PAIR, want(1), 0)], 12, {"a": 10, "pair": 1}, id="a floor is made room for"
        ),
        pytest.param([(A, want(8), 1), (B, want(8), 1)], 12, {"a": 6, "b": 6}, id="two equal models share equally"),
        pytest.param(
            [(A, want(4, 4.0), 1), (B, want(12, 12.0), 1)],
            8,
            {"a": 4, "b": 4},
            id="a replica is worth more to a small model",
        ),
        pytest.param(
            [(A, want(6, 6.0), 6), (PAIR, want(6, 6.0), 3)],
            12,
            {"a": 6, "pair": 3},
            id="a pair is worth half for each GPU",
        ),
        pytest.param(
            [(A, want(7, 6.05), 1), (B, want(6, 6.0), 1)],
            12,
            {"a": 6, "b": 6},
            id="the last part of a replica comes last",
        ),
        pytest.param(
            [(spec("a", least=1, priority=3.0), want(8, 8.0), 1), (B, want(8, 8.0), 1)],
            12,
            {"a": 8, "b": 4},
            id="priority weighs",
        ),
        pytest.param([(PAIR, want(3), 1)], 5, {"pair": 2}, id="an odd GPU is left over"),
        pytest.param(
            [(A, want(3), 0), (B, want(3), 0)], 1, {"a": 1, "b": 0}, id="one GPU for two floors goes to one of them"
        ),
    ],
)
def test_shares(cases: list[Case], gpus: int, expected: dict[str, int]) -> None:
    assert {name: given for name, (given, _) in share(*cases, gpus=gpus).items()} == expected


def test_two_equal_models_do_not_pass_a_gpu_to_and_fro() -> None:
    have = {"a": 7, "b": 5}
    for n in range(20):
        needs = {"a": 8.0 + 0.2 * (n % 2), "b": 8.2 - 0.2 * (n % 2)}
        given = share((A, want(9, needs["a"]), have["a"]), (B, want(9, needs["b"]), have["b"]))
        assert {name: count for name, (count, _) in given.items()} == {"a": 7, "b": 5}


def test_a_gpu_moves_when_the_other_loses_much_more() -> None:
    given = share((A, want(11, 11.0), 11), (B, want(3, 3.0), 1))
    assert given == {"a": (9, Reason.YIELD), "b": (3, Reason.DEMAND)}


REST_A, REST_B = spec("a"), spec("b")


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        pytest.param((0.0, 0.2), {"a": 0, "b": 1}, id="what nobody needs is given up"),
        pytest.param((0.2, 0.0), {"a": 1, "b": 0}, id="what nobody needs is not given"),
        pytest.param((0.0, 0.0), {"a": 1, "b": 0}, id="nobody needs it: it stays where it is"),
        pytest.param((0.1, 0.9), {"a": 1, "b": 0}, id="a small load counts as much as a large one"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_only_replica_of_a_model_that_may_rest(
    needs: tuple[float, float], expected: dict[str, int], turned: bool
) -> None:
    cases: list[Case] = [(REST_A, want(1, needs[0]), 1), (REST_B, want(1, needs[1]), 0)]
    given = share(*(reversed(cases) if turned else cases), gpus=1)
    assert {name: count for name, (count, _) in given.items()} == expected


def test_a_first_replica_of_higher_priority_goes_before_one_that_runs() -> None:
    given = share((REST_A, want(1, 0.1), 1), (spec("b", priority=2.0), want(1, 0.1), 0), gpus=1)
    assert given == {"a": (0, Reason.YIELD), "b": (1, Reason.DEMAND)}


def test_a_replica_that_the_load_no_longer_fills_is_given_up_first() -> None:
    given = share((A, want(9, 3.0), 9), (B, want(6, 5.5), 3))
    assert given == {"a": (6, Reason.YIELD), "b": (6, Reason.DEMAND)}


def test_reasons_say_who_waits_and_who_gives_up() -> None:
    given = share((A, want(12, 12.0), 11), (spec("b", least=3), want(3, 1.0), 1))
    assert given == {"a": (9, Reason.YIELD), "b": (3, Reason.DEMAND)}
    assert share((A, want(13, 13.0), 6), (B, want(6, 1.0), 6))["a"][1] is Reason.SHARE


@st.composite
def crowded(draw: st.DrawFn) -> tuple[list[Case], int]:
    cases = []
    for name in "abcd"[: draw(st.integers(1, 4))]:
        least = draw(st.integers(0, 2))
        of = spec(
            name, least=least, gpus=draw(st.sampled_from([1, 2, 4])), priority=draw(st.sampled_from([0.5, 1.0, 5.0]))
        )
        proposed = draw(st.integers(least, 12))
        need = draw(st.none() | st.floats(0.0, 20.0))
        cases.append((of, want(proposed, need), draw(st.integers(0, 12))))
    return cases, draw(st.integers(0, 24))


@given(crowded())
@settings(max_examples=120)
def test_never_more_gpus_than_there_are_nor_more_than_proposed(given: tuple[list[Case], int]) -> None:
    cases, gpus = given
    shares = share(*cases, gpus=gpus)
    assert sum(shares[of.name][0] * of.gpus for of, _, _ in cases) <= gpus
    for of, proposal, _ in cases:
        assert 0 <= shares[of.name][0] <= proposal.replicas
    assert shares == share(*cases, gpus=gpus)


@given(crowded())
@settings(max_examples=120)
def test_floors_come_first_when_they_fit(given: tuple[list[Case], int]) -> None:
    cases, gpus = given
    if sum(of.min_replicas * of.gpus for of, _, _ in cases) > gpus:
        return
    shares = share(*cases, gpus=gpus)
    assert all(shares[of.name][0] >= of.min_replicas for of, _, _ in cases)


@given(crowded())
@settings(max_examples=120)
def test_no_gpu_is_left_that_a_model_could_use(given: tuple[list[Case], int]) -> None:
    cases, gpus = given
    shares = share(*cases, gpus=gpus)
    left = gpus - sum(shares[of.name][0] * of.gpus for of, _, _ in cases)
    assert not [of for of, proposal, _ in cases if shares[of.name][0] < proposal.replicas and of.gpus <= left]


@given(crowded(), st.integers(1, 12))
@settings(max_examples=100)
def test_sharing_again_what_was_given_changes_nothing(given: tuple[list[Case], int], rounds: int) -> None:
    cases, gpus = given
    first = share(*cases, gpus=gpus)
    again = [(of, proposal, first[of.name][0]) for of, proposal, _ in cases]
    second = share(*again, gpus=gpus)
    settled = [(of, proposal, second[of.name][0]) for of, proposal, _ in cases]
    third = share(*settled, gpus=gpus)
    assert {name: count for name, (count, _) in second.items()} == {name: count for name, (count, _) in third.items()}


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        pytest.param(
            [(A, want(12), 6), (B, want(6), 6)],
            {"a": (6, Reason.PENDING), "b": (6, Reason.DEMAND)},
            id="keeps what models have",
        ),
        pytest.param(
            [(A, want(12), 2), (B, want(6), 2)],
            {"a": (10, Reason.PENDING), "b": (2, Reason.PENDING)},
            id="serves in order",
        ),
        pytest.param(
            [(A, want(2), 6), (B, want(9), 6)],
            {"a": (2, Reason.DEMAND), "b": (9, Reason.DEMAND)},
            id="gives on what another returns",
        ),
        pytest.param(
            [(A, want(6), 6), (PAIR, want(6), 2)],
            {"a": (6, Reason.DEMAND), "pair": (3, Reason.PENDING)},
            id="whole replicas only",
        ),
    ],
)
def test_in_turn(cases: list[Case], expected: dict[str, tuple[int, Reason]]) -> None:
    assert share(*cases, sharing=in_turn) == expected


def _observation(seen: ModelObservation) -> Observation:
    return fleet(seen)


def test_a_model_without_a_proposal_is_left_out() -> None:
    assert list(by_loss({"a": want(2)}, {"a": A}, _observation(model(3, name="other")))) == ["a"]
