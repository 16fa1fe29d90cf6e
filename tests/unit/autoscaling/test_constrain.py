"""What holds whatever a policy says; and the one way in which GPUs are dealt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seen_models import fleet, model, spec

from raylane.autoscaling.constrain import WatchedFor, constrain, unchanged
from raylane.autoscaling.decision import Reason, Target
from raylane.autoscaling.share import deal, gpus_of

NO_TIME, SHORT, LONG = WatchedFor.NO_TIME, WatchedFor.SHORT, WatchedFor.LONG


@pytest.mark.parametrize(
    ("watched", "target", "have", "held", "expected"),
    [
        pytest.param(LONG, 5, 2, 0, (5, Reason.DEMAND), id="within its bounds a target stays"),
        pytest.param(LONG, 9, 2, 0, (6, Reason.CEILING), id="no more than the maximum"),
        pytest.param(LONG, 0, 2, 0, (1, Reason.FLOOR), id="no fewer than the minimum"),
        pytest.param(NO_TIME, 5, 2, 0, (2, Reason.STEADY), id="at first nothing grows"),
        pytest.param(NO_TIME, 1, 2, 0, (2, Reason.STEADY), id="at first nothing shrinks"),
        pytest.param(NO_TIME, 3, 8, 0, (6, Reason.CEILING), id="at first bounds are repaired"),
        pytest.param(NO_TIME, 5, 0, 3, (1, Reason.WAKE), id="at first held requests wake a model"),
        pytest.param(SHORT, 5, 2, 0, (2, Reason.WARM_UP), id="soon after, what nobody waits for does not grow"),
        pytest.param(SHORT, 5, 2, 1, (5, Reason.DEMAND), id="soon after, what is waited for grows"),
        pytest.param(SHORT, 1, 2, 1, (2, Reason.WARM_UP), id="soon after, nothing shrinks"),
        pytest.param(SHORT, 6, 5, 1, (5, Reason.PENDING), id="soon after, growth is no more than GPUs are left"),
    ],
)
def test_constrain(watched: WatchedFor, target: int, have: int, held: int, expected: tuple[int, Reason]) -> None:
    seen = fleet(model(have, held=held), gpus=5)
    made = constrain({"m": Target(target, Reason.DEMAND, "why")}, {"m": spec(least=1, most=6)}, seen, watched)
    assert made["m"][:2] == expected


def test_what_was_proposed_is_told_where_something_else_came_of_it() -> None:
    seen, specs = fleet(model(2)), {"m": spec(least=1, most=6)}
    proposed = Target(4, Reason.DEMAND, "need 3.2", proposed=4)
    assert constrain({"m": proposed}, specs, seen, SHORT)["m"].words() == "wants 4; need 3.2"
    assert constrain({"m": proposed}, specs, seen, LONG)["m"].words() == "need 3.2"


def test_unchanged_is_what_is_there_and_one_replica_where_requests_wait() -> None:
    found = unchanged(fleet(model(3, name="a"), model(0, name="b", held=2), model(0, name="c")))
    assert {name: target.replicas for name, target in found.items()} == {"a": 3, "b": 1, "c": 0}


deals = st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 5), st.integers(0, 9)), max_size=5)
"""GPUs of a replica, replicas given already, and how many more are wanted, of each model."""


@given(models=deals, gpus=st.integers(-3, 30), order=st.permutations(range(5)))
def test_a_deal_gives_no_gpu_twice_keeps_none_that_is_wanted_and_serves_the_worthier_first(
    models: list[tuple[int, int, int]], gpus: int, order: list[int]
) -> None:
    specs = {str(n): spec(str(n), gpus=size) for n, (size, _, _) in enumerate(models)}
    given_already = {str(n): count for n, (_, count, _) in enumerate(models)}
    wanted = {str(n): count + more for n, (_, count, more) in enumerate(models)}
    dealt = deal(gpus, specs, given_already, wanted, lambda name, count: order[int(name)])
    left = gpus - (gpus_of(dealt, specs) - gpus_of(given_already, specs))
    short = [name for name in specs if dealt[name] < wanted[name]]
    assert left >= min(0, gpus)
    assert all(given_already[name] <= dealt[name] <= wanted[name] for name in specs)
    assert all(specs[name].gpus > left for name in short)
    for name in short:
        behind = [n for n in specs if order[int(n)] < order[int(name)] and specs[n].gpus >= specs[name].gpus]
        assert all(dealt[n] == given_already[n] for n in behind)
    by_order = dict(sorted(wanted.items(), key=lambda item: -order[int(item[0])]))
    assert deal(gpus, specs, given_already, by_order) == dealt
