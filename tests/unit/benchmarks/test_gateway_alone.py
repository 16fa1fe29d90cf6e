"""The script that measures the gateway alone: its parts, each for about a second."""

import json
from collections.abc import Iterator

import pytest

from raylane.benchmarks.sse import RawBody, read_stream
from raylane.cluster.errors import FailedError
from studies.performance import gateway_alone as script
from studies.performance.gateway_alone import FirstChunk, Rate, WrkLoad
from studies.performance.gateway_routes import Route, nginx_proxy, program_path, raylane_worker
from studies.performance.stub import reply, stub_engine

A_RUN_OF_WRK = """Running 1s test @ http://127.0.0.1:1/v1/completions
  1 threads and 32 connections
Requests/sec:   1415.00

{"requests": 3000, "duration_us": 2000000, "p50_us": 640.5, "failed": 0}
"""


@pytest.fixture(scope="module")
def stub() -> Iterator[Route]:
    with stub_engine() as ports:
        yield Route("stub directly", ports.apart)


def need(*programs: str) -> None:
    for program in programs:
        if program_path(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize("tokens", [1, 2, 128])
def test_a_reply_of_the_stub_is_a_complete_stream_of_that_many_chunks(tokens: int) -> None:
    writes = reply(tokens)
    assert len(writes) == tokens
    body = b"".join(writes).partition(b"\r\n\r\n")[2]
    facts = read_stream(RawBody(_unchunked(body), [len(_unchunked(body))], [0.0]))
    assert facts.error is None
    assert len(facts.content_times_s) == tokens


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        length, _, rest = body.partition(b"\r\n")
        whole, body = whole + rest[: int(length, 16)], rest[int(length, 16) + 2 :]
    return whole


def test_first_chunks_come_through_the_worker_later_than_directly(stub: Route) -> None:
    with raylane_worker(stub.port) as worker:
        found = script.measure_first_chunks([stub, worker], rounds=1, requests=20)
    for by_route in found.values():
        (direct,), (through,) = by_route[stub.name], by_route[worker.name]
        assert direct.added_us == 0
        assert direct.requests == through.requests == 20
        assert 0 < direct.p50_us < through.p50_us < 1e6


def test_wrk_drives_all_three_routes(stub: Route) -> None:
    need("wrk", "nginx")
    load = WrkLoad(8, concurrency=4)
    with raylane_worker(stub.port) as worker, nginx_proxy(stub.port) as nginx:
        rates = script.measure_rates([stub, worker, nginx], [load], rounds=1, seconds=1)
    (direct,), (through,), (by_nginx,) = (rates[load][route.name] for route in (stub, worker, nginx))
    assert direct.proxy_us_per_request is None
    for rate in (direct, through, by_nginx):
        assert rate.requests_per_s > 50
        assert 0 < rate.p50_ms < 1000
    for rate in (through, by_nginx):
        assert rate.proxy_us_per_request is not None
        assert 0 < rate.proxy_us_per_request < 1e6 / rate.requests_per_s * 1.2  # one process has one core


def test_figures_of_wrk_are_read_with_their_units() -> None:
    assert script.read_wrk(A_RUN_OF_WRK, "x", cpu_us=600_000.0) == Rate(1500.0, 0.6405, 200.0)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param('{"requests": 9, "duration_us": 1000000, "p50_us": 1, "failed": 2}', id="some failed"),
        pytest.param('{"requests": 0, "duration_us": 1000000, "p50_us": 0, "failed": 0}', id="none came back"),
    ],
)
def test_a_run_with_failures_has_no_figures(line: str) -> None:
    with pytest.raises(FailedError, match="raylane"):
        script.read_wrk(line, "raylane", None)


def test_tables_show_medians_and_ranges() -> None:
    rates = {
        WrkLoad(128, 32): {"nginx, 1 worker": [Rate(900.0, 2.0, 500.0), Rate(1100.0, 3.0, 520.0), Rate(1e3, 2.5, None)]}
    }
    row = script.rate_table(rates).splitlines()[2]
    assert row == ("| 128 chunks | 32 | nginx, 1 worker | 1,000 (900 to 1,100) | 2.5 (2 to 3) | 510 (500 to 520) |")
    chunks = {1: {"stub directly": [FirstChunk(40.0, 0.0, 150), FirstChunk(44.0, 0.0, 150)]}}
    assert script.first_chunk_table(chunks).splitlines()[2].endswith("| 42 (40 to 44) | 0 (0 to 0) | 300 |")


def test_every_run_is_kept_as_json() -> None:
    kept = script.to_json(
        {WrkLoad(1, 32): {"stub directly": [Rate(5.0, 2.0, None)]}},
        {1: {"stub directly": [FirstChunk(40.0, 0.0, 9)]}},
        [],
    )
    read = json.loads(json.dumps(kept))
    (rate,), (first,) = read["rates"], read["first_chunks"]
    assert (rate["chunks"], rate["concurrency"], rate["route"]) == (1, 32, "stub directly")
    assert rate["runs"] == [{"requests_per_s": 5.0, "p50_ms": 2.0, "proxy_us_per_request": None}]
    assert (first["route"], first["rounds"][0]["p50_us"]) == ("stub directly", 40.0)


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "program_path", lambda name: None)
    missing = script.missing_programs()
    assert [what for what in missing if "apt-get install wrk" in what]
    assert [what for what in missing if "apt-get install nginx-light" in what]


def test_routes_take_turns() -> None:
    routes = [Route("a", 1), Route("b", 2), Route("c", 3)]
    orders = ["".join(route.name for route in script.turned(routes, number)) for number in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]
