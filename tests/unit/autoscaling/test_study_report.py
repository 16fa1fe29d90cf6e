"""The study's other tables, the markers of its page, and its figure."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from study_values import SWEEPS, outcome, rows, write

from raylane.cluster.errors import UsageError
from studies.autoscaling.job import Conditions, Job, Records
from studies.autoscaling.jobs import study_jobs, week_jobs
from studies.autoscaling.markdown import filled
from studies.autoscaling.report import PARTS, write_report
from studies.autoscaling.runs import read_study
from studies.autoscaling.tables import ablation, comparable, conditions, detail, knobs, week
from studies.autoscaling.tune import TUNED

SLOW = Conditions(service_time=1.2)


def test_detail_has_only_the_tuned_setting_of_each_rule(tmp_path: Path) -> None:
    write(tmp_path, {"slo": SWEEPS["slo"]})
    assert rows(detail(read_study(tmp_path)))["step"] == [
        *("slo", "10.5", "98.0 %", "98.0 %", "50.0 %", "60 % / 50.0 %", "6", "1.5", "2.25"),
    ]


def test_an_ablation_is_the_difference_to_the_full_rule_seed_by_seed(tmp_path: Path) -> None:
    write(tmp_path, {"slo": SWEEPS["slo"]})
    for seed, gpu_hours in ((11, 12.0), (12, 13.0)):
        job = Job("step", "slo-no-band", "slo-no-band", {}, seed)
        Records(tmp_path / "test").add(job, outcome(gpu_hours, 0.97))
    cells = rows(ablation(read_study(tmp_path)))["step"]
    assert cells[:2] == ["slo-no-band", "2"]
    assert cells[2].startswith("+19.0 % [")  # 2 of 10.5
    assert cells[3] == "-1.0 pp [-1.0, -1.0]"
    assert cells[5] == "1.5 against 1.5"


def test_conditions_compare_the_same_settings_and_seeds_as_normal(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, {"slo": ("burst_margin", ((1.0, 12.0, 0.99),)), "kpa": SWEEPS["kpa"]}, seeds=(11,), conditions=SLOW)
    study = read_study(tmp_path)
    normal = comparable(study.runs, "step", Conditions())
    assert sorted((run.policy, run.seed, run.knobs) for run in normal) == [
        ("kpa", 11, '{"target_share": 0.4}'),
        ("kpa", 11, '{"target_share": 0.7}'),
        ("slo", 11, '{"burst_margin": 1.0}'),
    ]
    slow = next(line for line in conditions(study).splitlines() if "service_time x1.2" in line)
    assert "slo 12.0, kpa 19.5" in slow
    assert "+38.5 % (one seed)" in slow


def test_the_week_stands_apart_from_the_scenarios_best_attainment_first(tmp_path: Path) -> None:
    write(tmp_path, {"slo": SWEEPS["slo"]})
    for name, gpu_hours, worst in (("kpa", 1050.4, 0.92), ("slo", 1332.0, 0.98)):
        Records(tmp_path / "week").add(Job("week", name, name, {}, 11), outcome(gpu_hours, worst))
    study = read_study(tmp_path)
    assert study.scenarios() == ["step"]
    assert week(study).splitlines()[0] == "| policy | GPU-hours | big | small | worst 10 min | reversals/h |"
    assert week(study).splitlines()[2:] == [
        "| slo | 1,332 | 98.0 % | 99.9 % | 50.0 % | 1.5 |",
        "| kpa | 1,050 | 92.0 % | 99.9 % | 50.0 % | 1.5 |",
    ]


def test_the_week_is_run_once_for_each_tuned_rule_and_no_seed_of_the_test_has_it() -> None:
    jobs = week_jobs()
    assert {job.scenario for job in jobs} == {"week"}
    assert len({job.policy for job in jobs}) == len(jobs) == len(TUNED) + 4
    assert "week" not in {job.scenario for job in study_jobs()}


def test_knobs_are_listed_best_score_first(tmp_path: Path) -> None:
    write(tmp_path)
    found = rows(knobs(read_study(tmp_path)))
    assert list(found)[-2:] == ["slo", "kpa"]
    assert found["slo"] == ["`burst_margin` 1.0", "1.000", "30"]
    assert found["kpa"] == ["its defaults", "1.500", "–"]


def test_only_what_is_between_markers_changes() -> None:
    page = "before\n<!-- study:a -->\nold\n<!-- /study:a -->\nafter \\1\n"
    once = filled(page, {"a": "new \\1", "b": "unused"})
    assert once == "before\n<!-- study:a -->\nnew \\1\n<!-- /study:a -->\nafter \\1\n"
    assert filled(once, {"a": "new \\1"}) == once


@pytest.mark.parametrize(
    ("page", "message"),
    [
        pytest.param("<!-- study:nope -->\n<!-- /study:nope -->", "no such part; there are a", id="an unknown part"),
        pytest.param("<!-- study:a -->\n", "is not closed", id="a marker left open"),
    ],
)
def test_a_wrong_marker_is_refused(page: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        filled(page, {"a": "new"})


def test_the_report_fills_every_part_and_draws_a_small_figure(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, scenario="lull", seeds=(11,))
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- study:{name} -->\n<!-- /study:{name} -->\n" for name in PARTS), encoding="utf-8")
    figure = write_report(tmp_path, page)
    first = page.read_text(encoding="utf-8")
    assert all(f"<!-- study:{name} -->\n<!-- /study" not in first for name in PARTS)
    drawn = figure.read_text(encoding="utf-8")
    assert ElementTree.fromstring(drawn).tag.endswith("svg")  # noqa: S314 - written here
    assert all(f">{text}</text>" in drawn for text in ("step", "lull", "slo", "kpa", "queue"))
    assert len(drawn) < 200_000
    write_report(tmp_path, page)
    assert (page.read_text(encoding="utf-8"), figure.read_text(encoding="utf-8")) == (first, drawn)


def test_a_job_is_not_run_again_once_it_is_recorded(tmp_path: Path) -> None:
    records = Records(tmp_path)
    jobs = [Job("step", "slo", "slo", {"burst_margin": margin}, 1) for margin in (1.0, 2.0)]
    jobs.append(replace(jobs[0], conditions=SLOW))
    records.add(jobs[0], {"gpu_hours": 1.0})
    assert Records(tmp_path).missing(jobs) == jobs[1:]
    (record,) = Records(tmp_path).read()
    assert Job.from_json(record) == jobs[0]
    assert record["key"] == Job.from_json(record).key
