import asyncio
import json
import re
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
def endpoint_in_a_thread(stub: StubEndpoint | None = None) -> Iterator[str]:
    """The command runs an event loop of its own, so the endpoint gets another thread."""
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    urls: list[str] = []

    async def serve() -> None:
        async with serving(stub or StubEndpoint()) as url:
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


SECRET = "word123"


@pytest.mark.parametrize(
    "address",
    [
        "http://someone:word123@HOST",
        "http://word123@HOST",
        "http://u:a/word123@HOST",
        "http://HOST/?key=word123",
        "u:word123@HOST",
        "http://u:word123%40HOST",
        "http://a/word123@HOST",
        "ws://u:word123@HOST",
        "HTTP://u:word123@[::1]:9",
    ],
)
@pytest.mark.parametrize("by_option", [True, False])
def test_an_address_with_a_secret_is_refused_without_it(tmp_path: Path, address: str, by_option: bool) -> None:
    plan = tmp_path / "plan.yaml"
    with endpoint_in_a_thread() as url:
        given = address.replace("HOST", url.removeprefix("http://"))
        plan.write_text(PLAN if by_option else PLAN.replace("http://127.0.0.1:9", f'"{given}"'))
        arguments = ["bench", str(plan), "--out", str(tmp_path / "runs"), *(["--url", given] if by_option else [])]
        done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, UsageError)
    said = str(done.exception)
    assert said.startswith("--url: " if by_option else f"{plan}: base_url: ")
    assert SECRET not in said + done.output
    assert "\n" not in said
    assert not (tmp_path / "runs").exists()


def test_a_run_of_old_with_a_secret_in_its_address_is_read_and_shown_without_it(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    with endpoint_in_a_thread() as url:
        arguments = ["bench", str(plan), "--url", url, "--out", str(tmp_path / "runs")]
        folder = Path(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout.strip())
    stored, results = folder / "plan.yaml", folder / "results.json"
    stored.write_text(stored.read_text().replace("http://", "http://someone:word123@"))
    results.write_text(results.read_text().replace('"errors": {}', '"errors": {"http://u:word123@h/?key=word123": 1}'))
    for more in ([], ["--json"]):
        done = CliRunner().invoke(app, ["report", str(folder), *more], catch_exceptions=False)
        assert SECRET not in done.output
    for name in ("report.html", "report.md", "report.csv"):
        assert SECRET not in (folder / name).read_text()
    assert "http://***@127.0.0.1" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("key", "sent", "told"),
    [
        pytest.param("word123\n", "Bearer word123", "", id="a line end"),
        pytest.param(" \tword123\r\n\n", "Bearer word123", "", id="white space around it"),
        pytest.param("word\n123", None, "cannot|no HTTP header can carry", id="a line end inside"),
        pytest.param("word\x7f123", None, "no HTTP header can carry", id="a control character"),
        pytest.param("word123\u20ac", None, "no HTTP header can carry", id="not Latin-1"),
        pytest.param("word123\udcff", None, "no HTTP header can carry", id="bytes that are no text"),
        pytest.param(" \n", None, "is empty", id="nothing but white space"),
        pytest.param("", None, "is empty", id="nothing"),
        pytest.param(None, None, "is not set", id="not there"),
    ],
)
def test_keys_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, sent: str | None, told: str
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SOME_KEY", key)
    plan, stub = tmp_path / "plan.yaml", StubEndpoint()
    plan.write_text(PLAN + "api_key_env: SOME_KEY\n")
    with endpoint_in_a_thread(stub) as url:
        done = CliRunner().invoke(app, ["bench", str(plan), "--url", url, "--out", str(tmp_path / "runs")])
    assert set(stub.keys) == ({sent} if sent else set())
    if told:
        assert isinstance(done.exception, UsageError)
        assert re.search(rf"^api_key_env: the environment variable SOME_KEY .*({told})", str(done.exception))
        assert "123" not in str(done.exception)


def test_report_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
