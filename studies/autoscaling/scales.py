"""Set the rates of the study once: `python -m studies.autoscaling.scales [SCENARIO...]` prints the scales.

For each scenario the factor on each model's traffic at which the wanted fixed fleet is just enough.
"""

import sys
from multiprocessing import get_context

from raylane.autoscaling.lab.plan import base_trace, lab_models, make_setup
from raylane.autoscaling.lab.static import scale_for_static
from studies.autoscaling.load import PLAN, the_plan

WANT = {"llama-8b": 4, "llama-70b": 3}  # 10 of the 12 GPUs
ATTAINMENT = 0.99


def scales_of(scenario: str) -> tuple[str, dict[str, float]]:
    """The scale of each model's traffic in a scenario, four digits."""
    plan = the_plan()
    traffic = plan.scenarios[scenario].traffic
    traces = {name: base_trace(item, name, PLAN.parent) for name, item in traffic.items()}
    setup = make_setup(plan, scenario, plan.hosts(PLAN.parent), lab_models(plan), traces)
    factors = scale_for_static(setup, WANT, ATTAINMENT)
    already = {name: item.scale if item.rates else 1.0 for name, item in traffic.items()}
    return scenario, {name: float(f"{factors[name] * already[name]:.4g}") for name in factors}


def main() -> None:
    names = sys.argv[1:] or list(the_plan().scenarios)
    with get_context("fork").Pool(2) as pool:
        for scenario, scales in pool.imap_unordered(scales_of, names):
            print(scenario, scales, flush=True)


if __name__ == "__main__":
    main()
