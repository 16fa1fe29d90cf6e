"""What the autoscaler adds up: savings of a shadow, idle GPUs, and both over its own death."""

import json
from pathlib import Path

import pytest
from live_values import report, snapshot
from scaler_bench import HOUR_S, bench

from raylane.autoscaling.live import ray_scaler


async def test_a_shadow_touches_nothing_and_adds_up_what_it_would_have_saved() -> None:
    knobs = {"hold_s": 10, "shrink_every_s": 1}
    scaling = {"mode": "shadow", "usd_per_gpu_hour": 2.0, "knobs": knobs}
    one = bench({"m": 4}, scaling, m={})
    four = tuple(report(f"r{index}", gpus=(f"g{index}",)) for index in range(4))
    await one.loaded(400, 0.2, lambda: four)
    assert one.cluster.asked == []
    status = one.scaler.status
    assert [(model.target, model.wanted) for model in status.models] == [(4, 1)]
    assert status.saved_gpu_hours is not None
    assert status.saved_usd is not None
    assert 3 * 300 < status.saved_gpu_hours * HOUR_S < 3 * 400, "three GPUs for most of 400 s"
    assert status.saved_usd == pytest.approx(2.0 * status.saved_gpu_hours)
    assert all(not entry["applied"] for entry in one.log)
    assert [entry["to"] for entry in one.log] == [4, 3, 2, 1]


async def test_savings_and_idle_times_survive_a_restart() -> None:
    one = bench({"m": 2}, {"mode": "shadow", "knobs": {"hold_s": 10, "shrink_every_s": 1}}, m={})
    both = tuple(report(f"r{index}", gpus=(f"g{index}",)) for index in range(2))
    await one.loaded(200, 0.1, lambda: both)
    await one.tick(1, every_s=61.0)
    await one.tick()
    saved, since = one.scaler.status.saved_gpu_hours, one.scaler.status.shadow_since
    one.scaler = one.start()
    await one.tick()
    assert saved
    assert one.scaler.status.saved_gpu_hours == pytest.approx(saved, abs=2 / HOUR_S)
    assert one.scaler.status.shadow_since == since


@pytest.mark.parametrize(
    ("percents", "problem"),
    [
        pytest.param(
            [3.0] * 13, "GPU utilisation under 10% for 24.0 h on 2 GPUs of 10.0.0.1, $96.00", id="quiet for a day"
        ),
        pytest.param([3.0] * 6 + [60.0] + [3.0] * 6, None, id="one busy moment is enough"),
        pytest.param(
            [None] * 13, "no utilisation check for 24.0 h on 2 GPUs of 10.0.0.1, $96.00", id="never looked at"
        ),
        pytest.param(
            [3.0] * 3 + [None] * 12, "no utilisation check for 24.0 h on 2 GPUs of 10.0.0.1, $96.00", id="not lately"
        ),
        pytest.param(
            [None] * 6 + [3.0] * 13,
            "GPU utilisation under 10% for 24.0 h on 2 GPUs of 10.0.0.1, $96.00",
            id="the day begins with the first check",
        ),
    ],
)
async def test_idle_gpus_are_named_with_their_cost(percents: list[float | None], problem: str | None) -> None:
    one = bench({"m": 1}, {"usd_per_gpu_hour": 2.0}, m={})
    for percent in percents:
        one.cluster.seen = snapshot(report("r", gpus=("a", "b"), used_percent=percent))
        one.cluster.clock_s += 2 * HOUR_S
        await one.tick(every_s=0.0)
    last = one.scaler.status.idle
    assert [idle.problem for idle in last] == ([] if problem is None else [problem])
    assert [entry["idle"] for entry in one.log if "idle" in entry] == ([] if problem is None else ["r"]), "said once"


async def test_an_idle_replica_is_named_also_when_the_autoscaler_dies_every_day() -> None:
    one = bench({"m": 1}, {"idle_after_s": 10 * HOUR_S}, m={})
    for _ in range(12):
        one.cluster.seen = snapshot(report("r", used_percent=1.0))
        await one.tick(every_s=HOUR_S)
        one.scaler = one.start()
    await one.tick()
    assert [idle.replica_id for idle in one.scaler.status.idle] == ["r"]


LOOKS_EVERY_S = 540.0  # for a long day in few steps


@pytest.mark.parametrize(
    ("hosts", "named"),
    [
        pytest.param([{"10.0.0.9": 4}] * 174, ["10.0.0.9"], id="never used"),
        pytest.param([{"10.0.0.1": 4}] * 174, [], id="a replica is on one of its GPUs"),
        pytest.param([{"10.0.0.9": 0}] * 174, [], id="without GPUs"),
        pytest.param([{"10.0.0.9": 4}] * 107 + [{}] + [{"10.0.0.9": 4}] * 107, [], id="was away in between"),
    ],
)
async def test_hosts_that_no_replica_uses_are_named_with_their_cost(
    hosts: list[dict[str, int]], named: list[str]
) -> None:
    one = bench({"m": 1}, {"usd_per_gpu_hour": 2.0}, m={})
    one.cluster.seen = snapshot(report("r", used_percent=60.0))
    for gpus_of in hosts:
        one.cluster.gpus_of = gpus_of
        await one.tick(every_s=LOOKS_EVERY_S)
        one.scaler = one.start()
    await one.tick()
    await one.tick()
    assert [idle.host for idle in one.scaler.status.idle_hosts] == named
    if named:
        (idle,) = one.scaler.status.idle_hosts
        assert idle.problem == "no replica on any of 4 GPUs for 26.1 h, $208.80"
        assert idle.usd == pytest.approx(208.8, rel=1e-4)
        assert [entry["idle_host"] for entry in one.log[-1:]] == named


async def test_a_host_that_nobody_watched_for_a_while_begins_anew() -> None:
    """A replica may have been there while no autoscaler was."""
    one = bench({"m": 1}, m={})
    one.cluster.gpus_of = {"10.0.0.9": 4}
    await one.tick(120, every_s=LOOKS_EVERY_S)
    one.cluster.clock_s += 48 * HOUR_S
    one.scaler = one.start()
    await one.tick(2)
    assert one.scaler.status.idle_hosts == ()


async def test_an_idle_host_is_logged_once() -> None:
    one = bench({"m": 1}, m={})
    one.cluster.gpus_of = {"10.0.0.9": 4}
    await one.tick(180, every_s=LOOKS_EVERY_S)
    assert [entry["idle_host"] for entry in one.log if "idle_host" in entry] == ["10.0.0.9"]


async def test_what_is_scaled_no_more_is_measured_as_none_wanted() -> None:
    one = bench({"m": 1, "n": 2}, m={}, n={})
    await one.tick()
    both = one.measured[-1].wanted(())
    one.cluster.deployed = None
    await one.tick()
    assert both == {"m": 1, "n": 2}
    assert one.measured[-1].wanted(both) == {"m": 0, "n": 0}
    assert not one.measured[-1].blind, "there is nothing to decide"


async def test_what_an_older_version_kept_is_left_alone() -> None:
    one = bench({"m": 1}, m={"replicas": {"min": 2, "max": 3}})
    one.cluster.text = json.dumps({"watches": {"r": {"other": 1}}})
    await one.tick()
    assert one.cluster.asked == [("m", 2)]


def test_the_log_keeps_what_it_last_held_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_scaler, "MOST_LOG_BYTES", 100)
    path = tmp_path / "scaling.jsonl"
    write = ray_scaler.log_writer(path)
    for number in range(100):
        write({"number": number})
    kept = [json.loads(line)["number"] for file in (tmp_path / "scaling.jsonl.1", path) for line in file.open()]
    assert kept == list(range(kept[0], 100))
    assert 5 < len(kept) < 30
    assert {file.name for file in tmp_path.iterdir()} == {"scaling.jsonl", "scaling.jsonl.1"}


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ray_scaler.log_writer(tmp_path / "none" / "scaling.jsonl")({"number": 1})
    assert "cannot be written" in caplog.text
