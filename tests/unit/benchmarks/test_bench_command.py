import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from stub_endpoint import StubEndpoint, serving
from typer.testing import CliRunner

from raylane.benchmarks import load_run
from raylane.cli.bench import bench
from raylane.cli.report import report
from raylane.cluster.errors import FailedError, UsageError

app = typer.Typer()
app.command()(bench)
app.command()(report)

PLAN = """
name: small
base_url: http://127.0.0.1:9
cases:
  - name: one
    duration_s: 0.3
    streams:
      - {model: m, load: {shape: concurrency, concurrency: 2}, input_tokens: 4, output_tokens: 3}
cost: {m: {price: cpu-demo}}
"""


@contextmanager
def endpoint_in_a_thread() -> Iterator[str]:
    """The command runs an event loop of its own, so the endpoint gets another thread."""
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    urls: list[str] = []

    async def serve() -> None:
        async with serving(StubEndpoint()) as url:
            urls.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(10)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def test_bench_then_report(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    with endpoint_in_a_thread() as url:
        arguments = ["bench", str(plan), "--url", url, "--out", str(tmp_path / "runs")]
        folder = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout.strip()
        as_json = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout
    assert load_run(folder).complete
    assert json.loads(as_json)["plan_name"] == "small"
    shown = CliRunner().invoke(app, ["report", folder, "--json"], catch_exceptions=False).stdout
    (cost,) = json.loads(shown)[0]["cost"]
    assert (cost["model"], cost["usd_per_hour"]) == ("m", 0.05)
    assert {"report.html", "report.md", "report.csv"} <= {path.name for path in Path(folder).iterdir()}
    tables = CliRunner().invoke(app, ["report", folder], catch_exceptions=False).stdout
    assert "TTFT ms" in tables
    assert "TPOT ms" in tables


OWN_PRICES = """
prices:
  ours: {gpu: L40S, provider: "us [/red]", usd_per_gpu_hour: 0.7, source: invoice, as_of: "2026-10"}
"""


def test_names_with_brackets_and_prices_of_ones_own(tmp_path: Path) -> None:
    plan, prices = tmp_path / "plan.yaml", tmp_path / "mine.yaml"
    plan.write_text(
        PLAN.replace("cpu-demo", "ours")
        .replace("name: one", 'name: "c [/b] [fp8]"')
        .replace("{model", '{name: "s [/x]", model')
    )
    prices.write_text(OWN_PRICES)
    with endpoint_in_a_thread() as url:
        arguments = ["bench", str(plan), "--url", url, "--out", str(tmp_path / "[runs]"), "--prices", str(prices)]
        folder = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout.strip()
    done = CliRunner().invoke(app, ["report", folder, "--prices", str(prices)], catch_exceptions=False)
    for words in ("c [/b] [fp8]", "s [/x]", "us [/red]"):
        assert words in done.stdout
    assert "[runs]" in done.stderr.replace("\n", "")


def test_out_that_is_a_file_is_told_before_the_load(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "afile"
    plan.write_text(PLAN)
    out.touch()
    with endpoint_in_a_thread() as url, pytest.raises(UsageError, match=r"--out .*afile: .*File exists"):
        CliRunner().invoke(app, ["bench", str(plan), "--url", url, "--out", str(out)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        pytest.param(
            PLAN.replace("cpu-demo", "nowhere"), UsageError, "price nowhere", id="unknown price, before the run"
        ),
        pytest.param(PLAN.replace("duration_s", "duration"), UsageError, "duration: unknown key", id="misspelled key"),
        pytest.param(PLAN, FailedError, "Cannot connect", id="nobody listens"),
    ],
)
def test_bench_that_cannot_run(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(text)
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, ["bench", str(plan), "--out", str(tmp_path / "runs")], catch_exceptions=False)
    assert not (tmp_path / "runs").exists()


def test_report_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
