"""The study's tables for each model by itself."""

from pathlib import Path

import study_values as values

from studies.autoscaling.models import models
from studies.autoscaling.runs import read_study


def test_each_model_is_charged_its_own_gpu_hours_at_its_own_attainment(tmp_path: Path) -> None:
    values.write(tmp_path, seeds=(11,))
    text = models(read_study(tmp_path))
    big, small = (text.split(f"**GPU-hours of {name} at 99 %")[1].split("**")[1] for name in ("big", "small"))
    slo = {
        name: next(line for line in part.splitlines() if line.startswith("| slo "))
        for name, part in (("big", big), ("small", small))
    }
    # big: halfway between 98 % for 7.5 (three quarters of 10) and 100 % for 9; small: always 99.9 %, its cheapest
    assert slo["big"] == "| slo | 8.2 |"
    assert slo["small"] == "| slo | 2.0 |"


def test_a_baseline_that_never_gets_there_is_compared_at_what_both_reach(tmp_path: Path) -> None:
    sweeps = {"slo": values.SWEEPS["slo"], "queue": values.SWEEPS["queue"]}
    values.write(tmp_path, sweeps, seeds=(11, 12))
    big = models(read_study(tmp_path)).split("**GPU-hours of big at 99 %")[1].split("**GPU-hours")[0]
    assert "never (95.0 % for 8.6)" in big
    assert "95.0 % (not 99 %)" in big
