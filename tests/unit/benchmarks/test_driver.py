import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from stub_endpoint import BELOW, StubEndpoint, serving

from raylane.benchmarks import load_run
from raylane.benchmarks.driver import Progress, run_plan
from raylane.benchmarks.plan import BenchmarkPlan
from raylane.benchmarks.run_folder import read_gpu_samples
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.gpu_readings import GpuReading

SLO = {"ttft_ms": 2000, "tpot_ms": 500}
CLOSED = {"shape": "concurrency", "concurrency": 4}


def stream(model: str, load: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"model": model, "load": load, "input_tokens": 6, "output_tokens": 4, "slo": SLO} | changes


def plan_for(url: str, *streams: dict[str, Any], **changes: Any) -> BenchmarkPlan:
    case = {"name": "only", "duration_s": 0.6, "streams": list(streams)}
    return BenchmarkPlan.from_data({"name": "t", "base_url": url, "cases": [case]} | changes, "test")


def folders(out_dir: Path) -> list[Path]:
    return sorted(out_dir.iterdir())


async def test_mixed_run_end_to_end(tmp_path: Path) -> None:
    stub = StubEndpoint(first_s=0.05, each_s=0.01)
    seen: list[Progress] = []
    async with serving(stub) as url:
        plan = plan_for(
            url,
            stream("a", CLOSED),
            stream("b", {"shape": "constant", "rate_rps": 50}, endpoint="chat", input_tokens={"min": 3, "max": 9}),
            warmup={"requests": 8},
        )
        folder = await run_plan(plan, tmp_path, engine_info={"a": "stub"}, on_progress=seen.append)
    run = load_run(folder)
    assert (run.complete, run.simulated, run.plan) == (True, False, plan)
    assert run.environment["engine"] == {"a": "stub"}
    case = run.summary.cases[0]
    assert 0.6 <= case.window_s < 10.0
    for result in case.streams:
        assert result.completed == result.attempted > 0
        assert result.errors == {}
        assert result.ttft_ms is not None
        assert result.tpot_ms is not None
        assert 50 <= result.ttft_ms.p50.value < 5000
        assert 10 <= result.tpot_ms.p50.value < 2000
    due_s = sorted(run.requests.loc[run.requests["stream"] == "b", "t_sched_s"])
    assert [b - a for a, b in pairwise(due_s)] == pytest.approx([0.02] * (len(due_s) - 1))  # 50 a second
    asked = [body["max_tokens"] for body in stub.seen]
    assert set(asked[:2]) == {1}  # the probe
    assert len(run.requests) == len(asked) - 2
    assert (run.requests["completion_tokens"] == 4).all()
    assert len(run.tokens) == 4 * len(run.requests)
    assert run.requests["in_window"].sum() == sum(result.attempted for result in case.streams)
    assert seen[-1].phase == "drain"
    assert seen[-1].run_dir == folder


async def test_warm_up_and_drain_stay_out_of_the_window(tmp_path: Path) -> None:
    async with serving(StubEndpoint(first_s=0.05)) as url:
        run = load_run(await run_plan(plan_for(url, stream("a", CLOSED)), tmp_path))
    case = run.summary.cases[0]
    before = run.requests[run.requests["t_sched_s"] < case.window_start_s]
    assert (before["t_end_s"] < case.window_start_s).sum() >= 8  # twice the concurrency came back first
    assert run.requests["t_sched_s"].max() < case.window_start_s + case.window_s
    assert run.requests["t_end_s"].max() > case.window_start_s + case.window_s


async def test_counted_case_ends_after_its_requests(tmp_path: Path) -> None:
    async with serving(StubEndpoint(first_s=0.01)) as url:
        plan = plan_for(url, cases=[{"name": "n", "requests": 40, "streams": [stream("a", CLOSED)]}])
        run = load_run(await run_plan(plan, tmp_path))
    assert 40 <= run.summary.cases[0].streams[0].attempted <= 60
    assert run.complete


async def test_streams_that_break_count_as_misses(tmp_path: Path) -> None:
    seen: list[Progress] = []
    async with serving(StubEndpoint()) as url:
        plan = plan_for(url, stream("cut", CLOSED))
        run = load_run(await run_plan(plan, tmp_path, on_progress=seen.append))
    result = run.summary.cases[0].streams[0]
    assert 0 < result.attempted <= 4 * 0.6 / 0.1 + 4  # a closed loop waits after a failure
    assert 0 < seen[-1].failed == seen[-1].finished
    assert result.completed == 0
    assert result.attainment is not None
    assert result.attainment.share == 0.0
    assert ["engine died" in text for text in result.errors] == [True]
    assert not run.requests["completed"].any()


async def test_requests_that_outlive_the_drain_are_cut_and_kept(tmp_path: Path) -> None:
    async with serving(StubEndpoint(quick_requests=5)) as url:  # the probe's, and one of each of the four
        case = {"name": "n", "requests": 8, "streams": [stream("a", CLOSED)]}
        plan = plan_for(url, cases=[case], warmup={"requests": 0}, drain_timeout_s=0.1)
        run = load_run(await run_plan(plan, tmp_path))
    result = run.summary.cases[0].streams[0]
    assert (result.attempted, result.completed) == (8, 4)
    assert list(result.errors.values()) == [4]
    assert "stopped waiting" in next(iter(result.errors))


async def test_endpoint_below_a_path(tmp_path: Path) -> None:
    async with serving(StubEndpoint(first_s=0.01)) as url:
        chat = stream("b", {"shape": "constant", "rate_rps": 50}, endpoint="chat")
        run = load_run(await run_plan(plan_for(f"{url}{BELOW}/v1/", stream("a", CLOSED), chat), tmp_path))
    for result in run.summary.cases[0].streams:
        assert result.completed == result.attempted > 0


async def test_address_that_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match=r"http://a\.\.b: model a: UnicodeError"):
        await run_plan(plan_for("http://a..b", stream("a", CLOSED)), tmp_path)


async def test_wrong_model_is_told_before_the_run(tmp_path: Path) -> None:
    async with serving(StubEndpoint()) as url:
        with pytest.raises(FailedError, match=r"HTTP 404.*no model missing"):
            await run_plan(plan_for(url, stream("missing", CLOSED)), tmp_path)
    assert folders(tmp_path) == []


async def test_nobody_listens(tmp_path: Path) -> None:
    async with serving(StubEndpoint()) as url:
        pass
    with pytest.raises(FailedError, match="Cannot connect"):
        await run_plan(plan_for(url, stream("a", CLOSED)), tmp_path)


async def test_key_comes_from_the_environment_and_stays_out_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = StubEndpoint()
    async with serving(stub) as url:
        plan = plan_for(url, stream("a", CLOSED), api_key_env="TEST_KEY")
        with pytest.raises(UsageError, match="TEST_KEY is not set"):
            await run_plan(plan, tmp_path)
        monkeypatch.setenv("TEST_KEY", "sk-very-secret")
        folder = await run_plan(plan, tmp_path)
    assert set(stub.keys) == {"Bearer sk-very-secret"}
    assert not [path for path in folder.iterdir() if b"sk-very-secret" in path.read_bytes()]


async def test_simulator_marks_the_run_by_itself(tmp_path: Path) -> None:
    async with serving(StubEndpoint(headers={"X-Raylane-Simulated": "1"})) as url:
        folder = await run_plan(plan_for(url, stream("a", CLOSED)), tmp_path)
    assert load_run(folder).simulated is True


class SteadyReader:
    """One GPU at 250 W."""

    def read(self) -> list[GpuReading]:
        return [GpuReading("GPU-a", 250.0, None, 40.0, 1 << 30, None)]


async def test_gpu_samples_become_energy(tmp_path: Path) -> None:
    async with serving(StubEndpoint(first_s=0.05)) as url:
        plan = plan_for(url, cases=[{"name": "n", "duration_s": 3, "streams": [stream("a", CLOSED)]}])
        run = load_run(await run_plan(plan, tmp_path, gpu_reader=SteadyReader()))
    case = run.summary.cases[0]
    assert case.energy is not None
    assert case.energy.mean_power_w == pytest.approx(250.0)
    assert case.output_tokens_per_s is not None
    assert case.energy.j_per_output_token == pytest.approx(250.0 / case.output_tokens_per_s)
    assert len(run.gpu) >= 3
    assert read_gpu_samples(run.gpu)[0].reading == SteadyReader().read()[0]


async def test_cancelled_run_leaves_a_readable_folder(tmp_path: Path) -> None:
    in_window = asyncio.Event()

    def watch(now: Progress) -> None:
        if now.phase == "window":
            in_window.set()

    async with serving(StubEndpoint(first_s=0.05)) as url:
        cases = [{"name": name, "duration_s": 30, "streams": [stream("a", CLOSED)]} for name in ("first", "second")]
        task = asyncio.create_task(run_plan(plan_for(url, cases=cases), tmp_path, on_progress=watch))
        await in_window.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    run = load_run(folders(tmp_path)[0])
    assert run.complete is False
    assert [(case.case, case.complete, case.valid) for case in run.summary.cases] == [("first", False, False)]
    assert run.requests["completed"].sum() >= 8
    assert (run.requests["error"].dropna() == "cut: still running when the run stopped waiting").all()
    assert list(run.path.glob("*.spool")) == []


KILLED = """
    import asyncio, sys
    from pathlib import Path
    sys.path.insert(0, {here!r})
    from raylane.benchmarks.driver import run_plan
    from stub_endpoint import StubEndpoint, serving
    from test_driver import CLOSED, plan_for, stream

    async def main():
        async with serving(StubEndpoint()) as url:
            cases = [dict(name="a", duration_s=60, streams=[stream("a", CLOSED)])]
            await run_plan(plan_for(url, cases=cases), Path({out!r}), on_progress=lambda now: print("on", flush=True))

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "spool_left"),
    [
        pytest.param(signal.SIGINT, False, id="Ctrl-C writes the parquet file"),
        pytest.param(signal.SIGKILL, True, id="a kill leaves the spool, which is read"),
    ],
)
def test_ended_process_leaves_a_readable_folder(tmp_path: Path, how: signal.Signals, spool_left: bool) -> None:
    script = textwrap.dedent(KILLED).format(here=str(Path(__file__).parent), out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == b"on\n"
    os.kill(process.pid, how)
    process.communicate(timeout=30)
    run = load_run(folders(tmp_path)[0])
    assert run.complete is False
    assert run.requests["completed"].sum() > 8
    assert bool(list(run.path.glob("*.spool"))) is spool_left
