"""Dollars for a benchmark run: from the cost block of its plan, the price book and the measured rates. Pure."""

from raylane.benchmarks.plan import BenchmarkPlan, ModelCost
from raylane.benchmarks.results import CaseResult, CostFigure, RunResults, StreamResult
from raylane.cluster.prices import PriceBook
from raylane.cost.tco import usd_per_1k_requests, usd_per_million_tokens


def run_costs(plan: BenchmarkPlan, results: RunResults, book: PriceBook) -> tuple[CostFigure, ...]:
    """One row for each case and each of its models that the plan's cost block prices.

    Cost at the load of the run (no spare capacity added): an hour of the model's GPUs over what all of its streams
    brought in that time. A model that brought nothing, or tokens that nobody counted, has no cost per token. Raises
    UsageError for an unknown price.
    """
    return tuple(
        _cost(case, model, entry, book)
        for case in results.cases
        for model, entry in plan.cost.items()
        if any(stream.model == model for stream in case.streams)
    )


def _cost(case: CaseResult, model: str, entry: ModelCost, book: PriceBook) -> CostFigure:
    streams = [stream for stream in case.streams if stream.model == model]
    rates = [stream.output_tokens_per_s for stream in streams]
    output_tokens_per_s = sum(rate for rate in rates if rate is not None) if None not in rates else 0.0
    goodput_rps = _goodput_rps(streams)
    usd_per_gpu_hour, source = _price(entry, book)
    usd_per_hour = usd_per_gpu_hour * entry.gpus
    return CostFigure(
        case=case.case,
        model=model,
        gpus=entry.gpus,
        usd_per_gpu_hour=usd_per_gpu_hour,
        price_source=source,
        usd_per_hour=usd_per_hour,
        usd_per_million_output_tokens=(
            usd_per_million_tokens(usd_per_hour, output_tokens_per_s) if output_tokens_per_s > 0 else None
        ),
        usd_per_1k_good_requests=usd_per_1k_requests(usd_per_hour, goodput_rps) if goodput_rps else None,
    )


def _goodput_rps(streams: list[StreamResult]) -> float | None:
    """None as soon as one stream has no SLO: its requests used the GPUs too, and none of them can be called good."""
    rates = [stream.goodput_rps for stream in streams if stream.goodput_rps is not None]
    return sum(rates) if len(rates) == len(streams) else None


def _price(entry: ModelCost, book: PriceBook) -> tuple[float, str]:
    if isinstance(entry.price, str):
        price = book.get(entry.price)
        return price.usd_per_gpu_hour, f"{entry.price} ({price.label})"
    usd_per_gpu_hour = entry.usd_per_gpu_hour if entry.price is None else entry.price
    if usd_per_gpu_hour is None:
        raise ValueError("a cost entry has either a price key or a price")
    return usd_per_gpu_hour, "given in the plan"
