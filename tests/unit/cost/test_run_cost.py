from typing import Any

import pytest

from raylane.benchmarks.declared import Window
from raylane.benchmarks.metrics import CaseFacts, StreamPlan, case_result
from raylane.benchmarks.plan import BenchmarkPlan
from raylane.benchmarks.records import RequestRecord
from raylane.benchmarks.results import RunResults
from raylane.cluster.errors import UsageError
from raylane.cluster.prices import shipped_prices
from raylane.cost.run_cost import run_costs
from raylane.deployments.slo import Slo


def plan_with(cost: dict[str, Any], slo: bool = True) -> BenchmarkPlan:
    load = {"shape": "poisson", "rate_rps": 1}
    base = {"model": "m", "load": load, "input_tokens": 4, "output_tokens": 50}
    streams = [base | {"name": "short"}, base | {"name": "long"}, base | {"model": "free"}]
    if slo:
        streams = [stream | {"slo": {"ttft_ms": 500, "tpot_ms": 100}} for stream in streams]
    data = {"name": "t", "cases": [{"name": "c", "duration_s": 10, "streams": streams}], "cost": cost}
    return BenchmarkPlan.from_data(data, "test")


def results_for(*labels: str, slo: Slo | None) -> RunResults:
    """One 50-token request of 0.2 s for each label, in a window of 10 s."""
    records = [
        RequestRecord("c", label, "m", 1.0, 1.0, 1.2, 4, 50, 200, None, "length", 4, 50, (1.1, 1.2)) for label in labels
    ]
    plans = [StreamPlan("short", "m", slo), StreamPlan("long", "m", slo), StreamPlan("free", "free", slo)]
    facts = CaseFacts("c", Window(0.0, 10.0), complete=True, warmup_timed_out=False, client_cpu_share=None)
    case = case_result(facts, records, plans, None, seed=1)
    return RunResults(run_id="r", plan_name="t", started_at="now", complete=True, simulated=False, cases=(case,))


SLO = Slo(ttft_ms=500, tpot_ms=100)


def test_cost_of_a_run_by_hand() -> None:
    plan = plan_with({"m": {"gpus_per_replica": 2, "replicas": 3, "price": "h200-nebius"}})
    (row,) = run_costs(plan, results_for("short", "long", slo=SLO), shipped_prices())
    # 6 GPUs x 3.50 $; 100 tokens in 10 s are 36,000 an hour; 2 good requests in 10 s are 720 an hour.
    assert (row.case, row.model, row.gpus, row.usd_per_hour) == ("c", "m", 6, 21.0)
    assert row.usd_per_million_output_tokens == pytest.approx(21.0 / 0.036)
    assert row.usd_per_1k_good_requests == pytest.approx(21.0 / 0.72)
    assert row.price_source == "h200-nebius (Nebius, undated, unverified)"


@pytest.mark.parametrize("name", ["price", "usd_per_gpu_hour"])
def test_price_given_in_the_plan(name: str) -> None:
    (row,) = run_costs(plan_with({"m": {name: 1.5}}), results_for("short", slo=SLO), shipped_prices())
    assert (row.usd_per_hour, row.price_source) == (1.5, "given in the plan")


def test_nothing_served_has_no_cost_per_token() -> None:
    (row,) = run_costs(plan_with({"m": {"usd_per_gpu_hour": 1.5}}), results_for(slo=SLO), shipped_prices())
    assert (row.usd_per_million_output_tokens, row.usd_per_1k_good_requests) == (None, None)


def test_without_slo_no_request_can_be_called_good() -> None:
    plan = plan_with({"m": {"usd_per_gpu_hour": 1.5}}, slo=False)
    (row,) = run_costs(plan, results_for("short", slo=None), shipped_prices())
    assert row.usd_per_million_output_tokens is not None
    assert row.usd_per_1k_good_requests is None


def test_unknown_price_of_a_plan() -> None:
    with pytest.raises(UsageError, match="price nowhere"):
        run_costs(plan_with({"m": {"price": "nowhere"}}), results_for("short", slo=SLO), shipped_prices())
