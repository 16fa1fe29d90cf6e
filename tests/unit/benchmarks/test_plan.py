import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylane.benchmarks.arrivals import arrival_times_s
from raylane.benchmarks.plan import BenchmarkPlan, ConstantLoad, PoissonLoad, Stream, TokenIds
from raylane.benchmarks.prompts import WORDS, planned_requests
from raylane.cluster.errors import UsageError

PLANS = Path(__file__).parents[3] / "benchmarks" / "plans"
STREAM: dict[str, Any] = {
    "model": "m",
    "load": {"shape": "concurrency", "concurrency": 4},
    "input_tokens": 8,
    "output_tokens": 4,
}


def plan_data(**changes: Any) -> dict[str, Any]:
    return {"name": "t", "cases": [{"name": "a", "duration_s": 1, "streams": [STREAM]}]} | changes


def case(**changes: Any) -> dict[str, Any]:
    return plan_data(cases=[{"name": "a", "streams": [STREAM]} | changes])


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_plan_loads_and_survives_the_round_trip(path: Path, tmp_path: Path) -> None:
    plan = BenchmarkPlan.from_yaml(path)
    copy = tmp_path / "plan.yaml"
    copy.write_text(plan.to_yaml())
    assert BenchmarkPlan.from_yaml(copy) == plan


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(plan_data(api_key="secret"), "api_key: unknown key", id="a key never enters a plan"),
        pytest.param(plan_data(base_url="127.0.0.1:8000"), "base_url", id="address without scheme"),
        pytest.param(plan_data(base_url="http://"), "must name a host", id="address without host"),
        pytest.param(plan_data(base_url="http://[bad"), "base_url", id="address that is none"),
        pytest.param(plan_data(base_url="http://h:99999"), "base_url: Port out of range", id="port out of range"),
        pytest.param(plan_data(base_url="http://h:0"), "port from 1", id="port 0"),
        pytest.param(plan_data(base_url="http://h/?key=x"), "end before ?", id="address with a query"),
        pytest.param(plan_data(base_url="http://h/v1/chat/completions"), "root", id="address of a call"),
        pytest.param(case(duration_s=float("inf")), "cases.0.duration_s", id="endless window"),
        pytest.param(plan_data(drain_timeout_s=float("inf")), "drain_timeout_s", id="endless drain"),
        pytest.param(plan_data(name="a/b"), "name", id="name must fit a folder"),
        pytest.param(case(), "duration_s or requests", id="no end"),
        pytest.param(case(duration_s=1, requests=9), "duration_s or requests", id="two ends"),
        pytest.param(case(requests=7), "twice the concurrency 4", id="over before the first replies"),
        pytest.param(case(duration_s=1, streams=[STREAM, STREAM]), "m appears more than once", id="equal labels"),
        pytest.param(
            case(duration_s=1, streams=[STREAM | {"load": {"shape": "burst", "rate_rps": 1}}]), "burst", id="load shape"
        ),
        pytest.param(
            case(duration_s=1, streams=[STREAM | {"input_tokens": {"min": 5, "max": 4}}]), "min 5", id="empty range"
        ),
        pytest.param(plan_data(cost={"other": {"price": "p"}}), "cost names other", id="cost of an unused model"),
        pytest.param(plan_data(cost={"m": {}}), "cost.m: give price", id="cost without a price"),
        pytest.param(
            plan_data(cost={"m": {"price": "aws-l4", "usd_per_gpu_hour": 1}}), "one of them", id="cost with two prices"
        ),
        pytest.param(plan_data(cost={"m": {"price": -1}}), "cost.m.price: a price is a key", id="a price under 0"),
        pytest.param(plan_data(cost={"m": {"price": ["a"]}}), "cost.m.price: a price is a key", id="a list of prices"),
    ],
)
def test_wrong_plans_say_what_is_wrong(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=r"plan\.yaml") as caught:
        BenchmarkPlan.from_data(data, "plan.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("root", ["http://h:1", "https://[::1]:1", "http://v1", "http://h/models/x"])
def test_base_url_with_or_without_v1(root: str, end: str) -> None:
    assert BenchmarkPlan.from_data(plan_data(base_url=root + end), "x").base_url == root


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        pytest.param({"shape": "concurrency", "concurrency": 8}, 16, id="twice the concurrency"),
        pytest.param({"shape": "poisson", "rate_rps": 10}, 50, id="five seconds of an open loop"),
        pytest.param({"shape": "constant", "rate_rps": 0.1}, 10, id="at least ten"),
    ],
)
def test_warmup_length(load: dict[str, Any], expected: int) -> None:
    plan = BenchmarkPlan.from_data(case(duration_s=1, streams=[STREAM | {"load": load}]), "x")
    assert plan.warmup.requests_for(plan.cases[0].streams[0]) == expected


def test_constant_arrivals() -> None:
    assert list(islice(arrival_times_s(ConstantLoad(rate_rps=4), seed=9), 4)) == [0.0, 0.25, 0.5, 0.75]


def test_poisson_arrivals_have_the_rate_and_the_spread_of_independent_users() -> None:
    times = np.array(list(islice(arrival_times_s(PoissonLoad(rate_rps=50), seed=3), 20_000)))
    gaps = np.diff(times, prepend=0.0)
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)  # an exponential gap spreads as much as its mean
    assert (gaps > 2 / 50).mean() == pytest.approx(np.exp(-2), abs=0.01)


def test_arrivals_repeat_with_the_seed() -> None:
    load = PoissonLoad(rate_rps=5)
    first, again, other = (list(islice(arrival_times_s(load, seed), 2000)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def requests_of(seed: int, **changes: Any) -> list[dict[str, Any]]:
    stream = Stream.model_validate(STREAM | changes)
    return [json.loads(each.body) for each in islice(planned_requests(stream, TokenIds(min=10, max=12), seed), 200)]


def test_completions_prompts_are_token_ids_of_exact_length() -> None:
    bodies = requests_of(1, input_tokens={"min": 3, "max": 5}, output_tokens={"min": 1, "max": 2})
    assert {len(body["prompt"]) for body in bodies} == {3, 4, 5}
    assert {body["max_tokens"] for body in bodies} == {1, 2}
    assert {token for body in bodies for token in body["prompt"]} == {10, 11, 12}
    assert bodies[0]["stream_options"] == {"include_usage": True}
    assert bodies[0]["ignore_eos"] is True
    assert bodies == requests_of(1, input_tokens={"min": 3, "max": 5}, output_tokens={"min": 1, "max": 2})


def test_chat_prompts_are_words() -> None:
    body = requests_of(1, endpoint="chat", ignore_eos=False)[0]
    words = body["messages"][0]["content"].split()
    assert len(words) == 8
    assert set(words) <= set(WORDS)
    assert "ignore_eos" not in body
