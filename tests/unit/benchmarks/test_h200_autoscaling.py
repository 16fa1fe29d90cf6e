"""What the autoscaling part of the H200 proof reads off its run."""

import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from raylane.benchmarks.records import RawReply
from raylane.benchmarks.sse import RawBody
from raylane.deployments.directory.reports import ModelTraffic, ReplicaReport, ReplicaState, Snapshot
from raylane.deployments.slo import SloLimits
from studies.h200.course import row
from studies.h200.seen import answers, first_change, grown, missed, open_across, ttft_over, unix_s
from studies.h200.senders import Ended, ended

LIMITS = SloLimits(ttft_s=1.0, ttft_s_per_token=0.00025, tpot_s=0.06)


def request(
    sent: float, end: float, ttft: float | None = 0.1, each: float | None = 0.01, error: str | None = None
) -> Ended:
    return Ended(sent, end, ttft, each, error)


def reply(events: list[bytes], times: list[float], asked: int) -> RawReply:
    ends, data = [], b""
    for event in events:
        data += b"data: " + event + b"\n\n"
        ends.append(len(data))
    return RawReply(10.0, 10.0, times[-1], 200, None, 512, asked, RawBody(data, ends, array("d", times)))


def token(finish: str = "null") -> bytes:
    return f'{{"choices": [{{"text": "a", "finish_reason": {finish}}}]}}'.encode()


def test_a_reply_gives_its_first_token_and_the_time_of_each_further_one() -> None:
    usage = b'{"choices": [], "usage": {"prompt_tokens": 512, "completion_tokens": 3}}'
    events = [token(), token(), token('"length"'), usage, b"[DONE]"]
    found = ended(reply(events, [10.5, 10.6, 10.9, 10.9, 10.9], asked=3))
    assert found.error is None
    assert found.ttft_s == pytest.approx(0.5)
    assert found.per_token_s == pytest.approx(0.2)


def test_a_reply_with_fewer_tokens_than_asked_for_is_no_answer() -> None:
    usage = b'{"choices": [], "usage": {"prompt_tokens": 512, "completion_tokens": 2}}'
    found = ended(reply([token(), token('"stop"'), usage, b"[DONE]"], [10.5, 10.6, 10.6, 10.6], asked=3))
    assert found.error == "2 of 3 tokens came"


def test_open_across_a_moment_are_those_begun_before_and_ended_after() -> None:
    before, across, after = request(1, 2), request(1, 5), request(4, 6)
    assert open_across([before, across, after], 3) == [across]


def test_failed_requests_count_apart_and_say_why() -> None:
    found = answers([request(0, 1, ttft=0.2), request(0, 1, ttft=0.4), request(0, 1, None, None, "HTTP 503")])
    assert (found["requests"], found["failed"], found["errors"]) == (3, 1, ("HTTP 503",))
    assert found["ttft_p50_s"] == pytest.approx(0.3)
    assert found["ttft_max_s"] == 0.4


def test_no_requests_have_no_figures() -> None:
    assert answers([])["ttft_p50_s"] is None


def test_a_request_that_is_late_and_slow_is_one_miss_and_a_failed_one_is_another() -> None:
    ends = [
        request(0, 1),
        request(0, 1, ttft=1.12),  # within the allowance for 512 prompt tokens
        request(0, 1, ttft=1.2),
        request(0, 1, each=0.07),
        request(0, 1, ttft=3.0, each=0.07),
        request(0, 1, None, None, "cut"),
    ]
    found = missed(ends, LIMITS, 512)
    assert (found.requests, found.late, found.slow, found.either) == (6, 2, 2, 4)
    assert (found.ttft_over["1"], found.ttft_over["2.5"]) == (3, 1)


PAGE = """# HELP vllm:time_to_first_token_seconds x
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 10.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="m"} 14.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="2.5",model_name="m"} 20.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 25.0
vllm:e2e_request_latency_seconds_bucket{engine="0",le="1.0",model_name="m"} 99.0
"""


def test_an_engines_page_tells_how_many_were_above_its_bounds() -> None:
    assert ttft_over(PAGE) == {"0.5": 15.0, "1": 11.0, "2.5": 5.0}


def test_growth_is_what_was_added_to_each_count() -> None:
    assert grown({"1": 11.0}, {"1": 15.0, "2.5": 5.0}) == {"1": 4.0, "2.5": 5.0}


def test_the_first_change_to_a_count_after_a_moment() -> None:
    log: list[dict[str, Any]] = [
        {"time": "2026-11-21T10:00:00.000+00:00", "from": 1, "to": 2},
        {"time": "2026-11-21T10:00:05.000+00:00", "idle": "r1"},
        {"time": "2026-11-21T10:00:10.000+00:00", "from": 2, "to": 2},
        {"time": "2026-11-21T10:00:20.500+00:00", "from": 1, "to": 2},
    ]
    since_s = unix_s("2026-11-21T10:00:01+00:00")
    assert first_change(log, 2, since_s) == log[3]
    assert first_change(log, 2, since_s - 60) == log[0]
    assert first_change(log, 0, since_s) is None
    assert unix_s("2026-11-21T10:00:20.500+00:00") - since_s == 19.5


def test_a_look_counts_the_models_replicas_by_state() -> None:
    states = (ReplicaState.STARTING, ReplicaState.READY, ReplicaState.READY, ReplicaState.DRAINING)
    ours = tuple(ReplicaReport(f"r{n}", "m", state, None, None, "h") for n, state in enumerate(states))
    other = ReplicaReport("r9", "other", ReplicaState.READY, None, None, "h")
    known = Snapshot("e", ("m", "other"), (*ours, other), {}, {"g": {"m": ModelTraffic(held=3)}}, {"g": 0.1})
    found = row(known, "m", 5.0)
    assert (found.at, found.counts, found.held) == (5.0, (1, 2, 1), 3)


RESULTS = Path(__file__).resolve().parents[3] / "docs/results/h200"


def rows_of_the_page() -> dict[str, str]:
    """Two-column rows of the page's section on autoscaling, by their first cell."""
    section = (RESULTS / "README.md").read_text().split("## 8 Autoscaling")[1].split("\n## ")[0]
    rows = (line.strip("|").split("|", 1) for line in section.splitlines() if line.startswith("| "))
    return {first.strip(): rest.strip() for first, rest in rows}


def test_the_page_says_what_the_run_found() -> None:
    run, page = json.loads((RESULTS / "autoscaling.json").read_text()), rows_of_the_page()
    wake, grow, foreign = run["wake"], run["grow"], run["foreign"]
    assert page["first token after"] == f"{wake['first_token_s']:.1f} s"
    assert page["decided after"] == f"{wake['decided_after_s']:.2f} s"
    assert page["of it the replica's start"] == f"{wake['replica_started_s'][0]:.1f} s"
    assert page["cold starts counted by the gateway"] == f"{wake['cold_starts']:.0f}"
    assert page["the second replica decided after"] == f"{grow['decided_s']:.1f} s"
    assert page["both ready after"].startswith(f"{grow['two_ready_s']:.1f} s")
    lost = grow["failed_by_status"]
    assert (lost["HTTP 503"], lost["HTTP 502"]) == (830, 174)
    assert grow["load"]["failed"] == 830 + 174
    assert page["requests, all answered"] == f"{foreign['load']['requests']:,}"
    assert foreign["load"]["failed"] == 0
    assert f"process {foreign['pid']}" in foreign["refusal"]
    assert foreign["refusal"] in page["the second replica"]
    assert run["wrong_gpus"] == []


def test_clients_and_engine_agree_on_the_misses() -> None:
    foreign, page = json.loads((RESULTS / "autoscaling.json").read_text())["foreign"], rows_of_the_page()
    also = foreign["also_running"]
    late = foreign["client"]["late"] + also["late"]
    before, after = foreign["engine_missed_total"]
    assert page["the SLO's 1.128 s"].startswith(f"{late:,} | {after - before:,.1f}")
    assert after - before == pytest.approx(late, rel=0.01)
    assert foreign["directory_missed_total"] == pytest.approx([before, after], rel=1e-6)
    for bound in ("0.5", "1", "2.5", "5", "10"):
        clients = foreign["client"]["ttft_over"][bound] + also["ttft_over"][bound]
        assert page[f"{bound} s"] == f"{clients:,} | {foreign['engine_ttft_over'][bound]:,.0f}"


def test_the_page_says_what_the_second_run_found() -> None:
    run, page = json.loads((RESULTS / "autoscaling-2.json").read_text()), rows_of_the_page()
    move, grow, shrink = run["move"], run["grow"], run["shrink"]
    assert page["drains after the order"].startswith(f"{move['drains_after_s']:.1f} s")
    assert page["ready on the other GPU after the order"] == (
        f"{move['order_to_ready_s']:.1f} s (the engine's start there: {move['started_s']:.1f} s)"
    )
    meanwhile = move["sent_meanwhile"]
    assert page["requests sent meanwhile, all answered"].startswith(
        f"{meanwhile['requests']}; the longest waited {meanwhile['ttft_max_s']:.1f} s"
    )
    assert page["growth to two decided after"] == f"{grow['decided_s']:.1f} s"
    assert page["two ready after"] == f"{grow['two_ready_s']:.1f} s (start of {grow['started_s'][1]:.1f} s)"
    assert page["sent, all within the SLO"].startswith(f"{grow['load']['requests']:,}")
    assert page["shrink to one decided after"] == f"{shrink['decided_s']:.1f} s"
    assert page["one left after"] == f"{shrink['one_left_s']:.1f} s ({shrink['drained_s']:.1f} s of draining)"
    assert page["streams in all, all whole"] == str(shrink["streams"]["requests"])
    assert grow["client"]["either"] == 0


def test_the_second_run_moved_and_shrank_with_open_streams_and_lost_none() -> None:
    run = json.loads((RESULTS / "autoscaling-2.json").read_text())
    move, shrink = run["move"], run["shrink"]
    sets = (move["open_when_drained"], move["sent_meanwhile"], run["grow"]["load"], shrink["streams"])
    assert [found["failed"] for found in sets] == [0, 0, 0, 0]
    assert (move["open_when_drained"]["requests"], shrink["open_when_decided"]["requests"]) == (8, 8)
    after = move["after"]
    assert after["leased"] == after["held"] == after["by_nvidia_smi"] != move["before"]["leased"]
    assert (move["same_replica"], after["problem"], run["wrong_gpus"]) == (True, None, [])
    assert [(change["from"], change["to"]) for change in run["log"]] == [(1, 1), (1, 2), (2, 1)]


def test_the_page_says_what_the_third_run_found() -> None:
    run, page = json.loads((RESULTS / "autoscaling-3.json").read_text()), rows_of_the_page()
    wake, crowd = run["wake"], run["crowd"]
    at_once, later = crowd["let_go_at_once"], crowd["load"]["requests"] - crowd["let_go_at_once"]["requests"]
    assert page["first token after, third run"] == (
        f"{wake['first_token_s']:.1f} s (start of {wake['replica_started_s'][0]:.1f} s)"
    )
    assert page["at zero again after the answer"] == f"{crowd['at_zero_after_s']:.1f} s"
    assert page["the replica ready after"] == f"{crowd['ready_s']:.1f} s"
    assert page["sent until then"] == f"{at_once['requests']:,}"
    assert page["refused at the gateway's limit of 1,000 held a worker (503), third run"] == str(at_once["failed"])
    assert page["let go at once, all answered"] == f"{at_once['requests'] - at_once['failed']:,}"
    assert page["sent in the 5 s after, all answered"] == str(later)
    assert crowd["load"]["failed"] == at_once["failed"]
    assert all("1000 requests wait for one already" in error for error in crowd["load"]["errors"])
