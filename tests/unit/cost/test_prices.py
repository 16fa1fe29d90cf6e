from pathlib import Path
from typing import Any

import pytest

from raylane.benchmarks.metrics import CaseFacts, StreamPlan, Window, case_result
from raylane.benchmarks.plan import BenchmarkPlan
from raylane.benchmarks.records import RequestRecord
from raylane.benchmarks.results import RunResults
from raylane.cluster.errors import UsageError
from raylane.cost.prices import Price, PriceBook, shipped_prices
from raylane.cost.run_cost import run_costs
from raylane.deployments.slo import Slo


@pytest.mark.parametrize(
    ("key", "usd"),
    [
        ("aws-a100-40", 2.745),
        ("aws-a100-80", 3.431),
        ("aws-h100", 6.88),
        ("aws-l40s", 1.861),
        ("aws-l40s-4x", 2.62),
        ("aws-l4", 0.805),
        ("aws-a10g", 1.006),
        ("h100-nebius", 2.95),
        ("h200-nebius", 3.50),
        ("b200-nebius", 5.50),
        ("l40s-nebius", 1.55),
        ("modal-l40s", 1.95),
    ],
)
def test_shipped_price(key: str, usd: float) -> None:
    assert shipped_prices().get(key).usd_per_gpu_hour == usd


def test_assumptions_say_so() -> None:
    demo = shipped_prices().get("cpu-demo")
    assert demo.label == "ASSUMPTION, undated, unverified"


def test_only_dated_price_lists_count_as_verified() -> None:
    verified = {key for key, price in shipped_prices().prices.items() if price.verified}
    assert verified == {"aws-l40s", "aws-l40s-4x", "aws-l4", "aws-a10g"}


def test_own_file_adds_and_replaces(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(
        "prices:\n"
        "  ours: {gpu: L40S, provider: us, usd_per_gpu_hour: 0.7, source: invoice, as_of: '2026-10'}\n"
        "  aws-l40s: {gpu: L40S, provider: AWS, usd_per_gpu_hour: 1.2, source: contract, as_of: '2026-10'}\n"
    )
    book = shipped_prices().with_file(own)
    assert (book.get("ours").usd_per_gpu_hour, book.get("aws-l40s").usd_per_gpu_hour) == (0.7, 1.2)
    assert book.get("aws-l4").usd_per_gpu_hour == 0.805


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"as_of": "May 2026"}, "YYYY", id="date in words"),
        pytest.param({"as_of": None, "verified": True}, "needs as_of", id="verified without date"),
        pytest.param({"usd_per_gpu_hour": -1}, "usd_per_gpu_hour", id="negative"),
        pytest.param({"usd_per_gpu_hour": float("inf")}, "usd_per_gpu_hour", id="infinite"),
        pytest.param({"usd": 1}, "unknown key", id="misspelled key"),
    ],
)
def test_wrong_price(changes: dict[str, Any], message: str) -> None:
    price = {"gpu": "g", "provider": "p", "usd_per_gpu_hour": 1.0, "source": "s", "as_of": "2026"}
    with pytest.raises(UsageError, match=message):
        PriceBook.from_data({"prices": {"k": price | changes}}, "mine.yaml")


DATED = "prices:\n  ours: {{gpu: L40S, provider: us, usd_per_gpu_hour: {usd}, source: sheet, as_of: {as_of}}}\n"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param("2026", "2026", id="a year, which YAML takes for a number"),
        pytest.param("2026-08", "2026-08", id="a month"),
        pytest.param("2026-08-17", "2026-08-17", id="a day, which YAML takes for a date"),
        pytest.param("'2026'", "2026", id="a year in quotes"),
        pytest.param("'2026-08-17'", "2026-08-17", id="a day in quotes"),
        pytest.param("'2024-02-29'", "2024-02-29", id="the day of a leap year"),
        pytest.param("null", None, id="no date"),
    ],
)
def test_dates_in_quotes_and_without(tmp_path: Path, written: str, read: str | None) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(DATED.format(usd=1.5, as_of=written))
    assert shipped_prices().with_file(path).get("ours").as_of == read


@pytest.mark.parametrize(
    ("written", "value", "why"),
    [
        pytest.param("'2026-13'", "'2026-13'", "no such date: month", id="month 13"),
        pytest.param("2026-13", "'2026-13'", "no such date: month", id="month 13 without quotes"),
        pytest.param("'2026-00'", "'2026-00'", "no such date: month", id="month 0"),
        pytest.param("'2026-02-30'", "'2026-02-30'", "no such date: day", id="30 February"),
        pytest.param("2026-02-30", "'2026-02-30'", "day is out of range", id="30 February without quotes"),
        pytest.param("'2025-02-29'", "'2025-02-29'", "no such date: day", id="no leap year"),
        pytest.param("'0000'", "'0000'", "no such date: year", id="year 0"),
        pytest.param("2026-8-7", "'2026-8-7'", "YYYY-MM-DD", id="single digits"),
        pytest.param("08", "'08'", "YYYY-MM-DD", id="a month alone"),
        pytest.param("20260817", "20260817", "YYYY-MM-DD", id="without dashes"),
        pytest.param("2026.08", "2026.08", "YYYY-MM-DD", id="a point"),
        pytest.param("2026:08", "'2026:08'", "two readings", id="a colon, which YAML counts by 60"),
        pytest.param("true", "True", "YYYY-MM-DD", id="true"),
        pytest.param("2026-08-17T12:00:00+02:00", "2026-08-17T12:00:00+02:00", "YYYY-MM-DD", id="a time of the day"),
        pytest.param("'\u0662\u0660\u0662\u0666'", "'\u0662\u0660\u0662\u0666'", "YYYY-MM-DD", id="other digits"),
    ],
)
def test_dates_that_are_none(tmp_path: Path, written: str, value: str, why: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(DATED.format(usd=1.5, as_of=written), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        shipped_prices().with_file(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert all(words in line for words in ("as_of: ", value, why))
    assert "datetime" not in line


@pytest.mark.parametrize(
    "written", ["-1", ".nan", ".inf", "1e400", "true", "$1.50", "'1,50'", "''", "1.5 USD", "1:30", "010", "2026-08-17"]
)
def test_what_is_no_price(tmp_path: Path, written: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(DATED.format(usd=written, as_of="2026"))
    with pytest.raises(UsageError, match="usd_per_gpu_hour: ") as caught:
        shipped_prices().with_file(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")


def test_a_price_given_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    entry = DATED.format(usd=1.5, as_of="2026")
    path.write_text(entry + entry.removeprefix("prices:\n"))
    with pytest.raises(UsageError, match="key 'ours' is given twice"):
        shipped_prices().with_file(path)


def test_unknown_key_lists_what_there_is() -> None:
    book = PriceBook(prices={"a": Price(gpu="g", provider="p", usd_per_gpu_hour=1, source="s", as_of=None)})
    with pytest.raises(UsageError, match="price b: is not in the price book; it has a"):
        book.get("b")


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


def test_price_given_in_the_plan() -> None:
    (row,) = run_costs(plan_with({"m": {"usd_per_gpu_hour": 1.5}}), results_for("short", slo=SLO), shipped_prices())
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
