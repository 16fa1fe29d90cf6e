"""Endpoints whose answers are not to be taken for good: held back, compressed, redirected, cut, too short."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from stub_endpoint import DONE, StubEndpoint, content_event, serving, usage_event
from test_driver import folders, plan_for, stream

from raylane.benchmarks import Run, load_run
from raylane.benchmarks.client import unusable
from raylane.benchmarks.driver import run_plan
from raylane.benchmarks.report import write_report
from raylane.benchmarks.results import StreamResult
from raylane.benchmarks.tables import summary_table
from raylane.cluster.errors import FailedError

LOOP = {"shape": "concurrency", "concurrency": 2}


async def run_of(stub: StubEndpoint, out_dir: Path, **changes: Any) -> Run:
    async with serving(stub) as url:
        case = {"name": "only", "requests": 6, "streams": [stream("a", LOOP, **changes)]}
        return load_run(await run_plan(plan_for(url, cases=[case], warmup={"requests": 0}), out_dir))


def only_stream(run: Run) -> StreamResult:
    (case,) = run.summary.cases
    (result,) = case.streams
    assert result.errors == {}
    return result


def reports(run: Run) -> str:
    files = write_report(run)
    return files.html.read_text() + files.markdown.read_text()


async def test_a_reply_in_one_piece_has_no_tpot_and_misses_the_slo(tmp_path: Path) -> None:
    run = await run_of(StubEndpoint(first_s=0.02, burst=0), tmp_path, output_tokens=64)
    result, case = only_stream(run), run.summary.cases[0]
    assert (result.tpot_ms, result.itl_ms) == (None, None)
    assert run.requests["tpot_ms"].isna().all()
    assert result.in_one_piece == result.completed >= 6
    assert result.attainment is not None
    assert result.attainment.share == 0.0
    assert result.ttft_ms is not None
    assert not case.valid
    assert ["came in one piece" in reason for reason in case.reasons] == [True]
    assert "came in one piece" in reports(run)
    assert summary_table(run.summary, ()).rows[0][4] == "–"


async def test_a_reply_of_one_token_in_one_piece_meets_the_slo(tmp_path: Path) -> None:
    run = await run_of(StubEndpoint(first_s=0.02, burst=0), tmp_path, output_tokens=1)
    result = only_stream(run)
    assert (result.tpot_ms, result.in_one_piece) == (None, 0)
    assert result.attainment is not None
    assert result.attainment.share == 1.0
    assert run.summary.cases[0].valid


async def test_bursts_are_noted(tmp_path: Path) -> None:
    run = await run_of(StubEndpoint(each_s=0.005, burst=16), tmp_path, output_tokens=64)
    result, case = only_stream(run), run.summary.cases[0]
    assert result.tokens_per_arrival is not None
    assert result.tokens_per_arrival > 10  # more than 16 where a busy client reads two bursts at once
    assert result.tpot_ms is not None
    assert any("at once" in note for note in case.notes)
    assert "at once" in reports(run)


async def test_tokens_that_come_one_by_one_have_no_note(tmp_path: Path) -> None:
    run = await run_of(StubEndpoint(each_s=0.02), tmp_path, output_tokens=8)
    assert only_stream(run).in_one_piece == 0
    assert run.summary.cases[0].notes == ()


@pytest.mark.parametrize(("ignore_eos", "noted"), [(True, 1), (False, 0)])
async def test_answers_shorter_than_asked_for_are_noted(tmp_path: Path, ignore_eos: bool, noted: int) -> None:
    stub = StubEndpoint(each_s=0.002, tokens=4)
    run = await run_of(stub, tmp_path, output_tokens=64, ignore_eos=ignore_eos)
    result = only_stream(run)
    assert result.short == (result.completed if ignore_eos else 0)
    assert sum("less than 90% of the tokens" in note for note in run.summary.cases[0].notes) == noted


async def test_tokens_that_nobody_counted_have_no_rate(tmp_path: Path) -> None:
    run = await run_of(StubEndpoint(each_s=0.002, counts_tokens=False), tmp_path)
    assert (only_stream(run).output_tokens_per_s, run.summary.cases[0].output_tokens_per_s) == (None, None)
    assert "– output tok/s in all" in reports(run)


async def test_the_client_offers_no_compression(tmp_path: Path) -> None:
    stub = StubEndpoint(encoding="offered")
    result = only_stream(await run_of(stub, tmp_path))
    assert result.completed == result.attempted > 0
    assert set(stub.offered) == {"identity"}


async def test_a_reply_that_is_compressed_all_the_same_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match=r"model a: the reply is compressed \(content-encoding: gzip\)"):
        await run_of(StubEndpoint(encoding="always"), tmp_path)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_refused_and_its_target_named(tmp_path: Path, status: int) -> None:
    target = StubEndpoint()
    async with serving(target) as other:
        place = other.replace("127.0.0.1", "localhost")
        stub = StubEndpoint(redirect=(status, f"{place}/v1/completions"))
        with pytest.raises(FailedError, match=rf"model a: HTTP {status} redirects to {place}; give that address$"):
            await run_of(stub, tmp_path)
    assert target.seen == []
    assert folders(tmp_path) == []


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://h:1/v1/completions", "HTTP 307 redirects to https://h:1; give that address"),
        ("HTTPS://h/x/v1/completions/?a=b", "HTTP 307 redirects to https://h/x; give that address"),
        (
            "http://u:word123@[::1]:1/v1/completions?key=word123",
            "HTTP 307 redirects to http://[::1]:1; give that address",
        ),
        ("//other/v1/chat/completions", "HTTP 307 redirects to http://other; give that address"),
        ("/v1/completions/", "HTTP 307 redirects to http://a:8/v1/completions/"),
        ("/login?token=word123#word123", "HTTP 307 redirects to http://a:8/login"),
        ("http://[bad/", "HTTP 307 redirects to an address that is none"),
    ],
)
def test_where_a_redirect_leads(location: str, told: str) -> None:
    assert unusable("http://a:8/v1/completions", 307, {"Location": location}) == told


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Encoding": "identity"}, {"Location": "/new"}, {"Content-Encoding": ""}]
)
def test_a_plain_reply_can_be_measured(headers: dict[str, str]) -> None:
    assert unusable("http://a:8/v1/completions", 200, headers) is None


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[str]:
    """A server that answers every request by these bytes and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GOOD = content_event("a") + content_event("b", "stop") + usage_event(4, 2) + DONE


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        pytest.param(
            HEAD + b"Content-Length: %d\r\n\r\n" % (len(GOOD) + 9) + GOOD, "Payload", id="less than its length"
        ),
        pytest.param(CHUNKED + chunk(GOOD), "Payload", id="no last chunk"),
        pytest.param(CHUNKED + chunk(GOOD) + b"zz\r\n", "Encoding|Payload|chunk", id="a chunk that is none"),
        pytest.param(HEAD + b"\r\n" + GOOD[: len(GOOD) // 2], "not JSON|without a finish reason", id="cut short"),
        pytest.param(HEAD + b"\r\n" + b'{"choices":[{"text":"a","finish_reason":"stop"}]}', "finish", id="JSON"),
        pytest.param(HEAD + b"\r\n" + b'{"error":{"message":"full"}}', "full", id="an error under status 200"),
        pytest.param(b"HTTP/1.1 304 Not Modified\r\n\r\n", "HTTP 304", id="a status of redirects without a place"),
        pytest.param(b"garbage\r\n\r\n", "Bad status line|ClientResponseError|Bad", id="no HTTP at all"),
    ],
)
async def test_a_broken_reply_is_an_error(tmp_path: Path, reply: bytes, error: str) -> None:
    async with answering(reply) as url:
        with pytest.raises(FailedError, match=error):
            await run_plan(plan_for(url, stream("a", LOOP)), tmp_path)


async def test_the_same_reply_unbroken_is_none(tmp_path: Path) -> None:
    async with answering(CHUNKED + chunk(GOOD) + b"0\r\n\r\n") as url:
        case = {"name": "n", "requests": 4, "streams": [stream("a", LOOP)]}
        result = only_stream(load_run(await run_plan(plan_for(url, cases=[case], warmup={"requests": 0}), tmp_path)))
    assert result.completed == result.attempted > 0


async def test_a_key_that_the_endpoint_repeats_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "plainword")
    async with serving(StubEndpoint(refuses_keys=True)) as url:
        with pytest.raises(FailedError, match=r"HTTP 401: .*no such key: ") as caught:
            await run_plan(plan_for(url, stream("a", LOOP), api_key_env="SOME_KEY"), tmp_path)
    assert "plainword" not in str(caught.value)
