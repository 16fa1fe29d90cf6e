import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_endpoint import DONE, chat_event, content_event, usage_event

from raylane.benchmarks.sse import RawBody, StreamFacts, has_failed, read_stream


def body_of(*chunks: bytes) -> RawBody:
    """A reply whose first chunk came at 1 s, the second at 2 s and so on."""
    ends = [sum(len(chunk) for chunk in chunks[: index + 1]) for index in range(len(chunks))]
    return RawBody(b"".join(chunks), ends, [float(index + 1) for index in range(len(chunks))])


def read(*chunks: bytes) -> StreamFacts:
    return read_stream(body_of(*chunks))


def chat(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> bytes:
    """A chat event with any delta."""
    return (
        b"data: %s\n\n" % json.dumps({"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}).encode()
    )


A, B, LAST = content_event("a"), content_event("b"), content_event("c", "length")


def test_one_event_a_chunk() -> None:
    facts = read(A, B, LAST, usage_event(7, 3), DONE)
    assert list(facts.content_times_s) == [1.0, 2.0, 3.0]
    assert (facts.prompt_tokens, facts.output_tokens, facts.finish, facts.error) == (7, 3, "length", None)


@pytest.mark.parametrize(
    ("chunks", "times"),
    [
        pytest.param((A + B, LAST), [1.0, 1.0, 2.0], id="two events in one chunk came together"),
        pytest.param((A[:10], A[10:], LAST), [2.0, 3.0], id="a torn event came with its last byte"),
        pytest.param((A[:-1], A[-1:] + LAST), [2.0, 2.0], id="torn inside the blank line"),
        pytest.param((A + B[:5], B[5:] + LAST[:9], LAST[9:]), [1.0, 2.0, 3.0], id="chunks that straddle events"),
        pytest.param((A, content_event(""), LAST), [1.0, 3.0], id="empty content is not content"),
        pytest.param((chat_event(None), chat_event("a"), chat_event("b", "stop")), [2.0, 3.0], id="role comes first"),
        pytest.param((content_event(""), content_event("", "stop")), [2.0], id="no text: answered at the finish"),
        pytest.param(
            (chat({"reasoning_content": "a"}), chat({"reasoning": "b"}), LAST), [1.0, 2.0, 3.0], id="reasoning"
        ),
        pytest.param((chat({"tool_calls": [{"index": 0}]}), chat({}, "tool_calls")), [1.0], id="tool calls"),
        pytest.param((chat({"refusal": "no"}), chat({}, "stop")), [1.0], id="refusals"),
        pytest.param((A, content_event("", "stop"), DONE), [1.0], id="a bare finish after text is no content"),
        pytest.param((b": ping\n\n" + A, LAST), [1.0, 2.0], id="comments are skipped"),
        pytest.param((A.replace(b"\n", b"\r\n"), LAST), [1.0, 2.0], id="carriage returns"),
        pytest.param((A, LAST.rstrip(b"\n")), [1.0, 2.0], id="no blank line after the last event"),
    ],
)
def test_times_of_content(chunks: tuple[bytes, ...], times: list[float]) -> None:
    facts = read(*chunks)
    assert facts.error is None
    assert list(facts.content_times_s) == times


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        pytest.param((A, b'data: {"error": {"message": "engine died"}}\n\n'), "engine died", id="error event"),
        pytest.param((A, B), "without a finish reason after 2 content chunks", id="stream breaks off"),
        pytest.param((A, B[: len(B) // 2]), "not JSON", id="breaks off inside an event"),
        pytest.param((), "without a finish reason without content", id="empty reply"),
        pytest.param((b"<html>busy</html>",), "<html>busy</html>", id="not an event stream"),
        pytest.param((LAST.removeprefix(b"data: "),), "without a finish reason", id="a reply in one piece"),
        pytest.param((A, DONE), "without a finish reason after 1 content chunks", id="over without a finish reason"),
        pytest.param((A, LAST, b'data: {"error": "late"}\n\n'), '"late"', id="an error after the finish reason"),
        pytest.param((b'data: {"choices":[null]}\n\n', DONE), "[null]", id="a choice that is nothing"),
        pytest.param((b'data: {"choices":["x"]}\n\n', DONE), '["x"]', id="a choice that is text"),
        pytest.param((b'data: {"choices":{"a":1}}\n\n', DONE), '{"a":1}', id="choices that are no list"),
        pytest.param((b"data: 7\n\n", DONE), "error in the stream: 7", id="an event that is a number"),
        pytest.param((A, chat({}, "abort"), usage_event(4, 1), DONE), "reason 'abort'", id="aborted"),
        pytest.param((chat({}, "error"), DONE), "finish reason 'error'", id="an error as finish reason"),
        pytest.param((A, LAST.replace(b"length", b"content_filter"), DONE), "'content_filter'", id="filtered"),
        pytest.param((chat({}, "stop"), usage_event(4, 0), DONE), "without a token", id="no token by its usage"),
        pytest.param((chat({}, "stop"), DONE), "without a token", id="nothing that could be a token"),
        pytest.param((A, chat({}, None), DONE), "without a finish reason", id="null to the end"),
        pytest.param(
            (A, chat({}, "stop", 0), chat({"content": "b"}, None, 1), DONE), "without a finish", id="one of two"
        ),
        pytest.param((chat({}, "abort", 1), A, LAST, usage_event(4, 3)), "'abort'", id="the other of two aborted"),
        pytest.param(
            (b'event: error\ndata: {"message": "full"}\n\n', LAST, usage_event(4, 1)), "full", id="named error"
        ),
        pytest.param((A, LAST, usage_event(4, 2), b"event: error\n\n"), "error in the", id="an error without data"),
        pytest.param((b'data: {"object":"error","message":"full"}\n\n', DONE), "full", id="an error object"),
        pytest.param((b'{"error": {"message": "full"}}',), "full", id="an error object in place of a stream"),
        pytest.param((b"data: " + b"[" * 100_000, DONE), "not JSON", id="an event without an end to its nesting"),
    ],
)
def test_failures(chunks: tuple[bytes, ...], error: str) -> None:
    facts = read(*chunks)
    assert facts.error is not None
    assert error in facts.error
    assert has_failed(body_of(*chunks))


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param((A, LAST, usage_event(7, 3), DONE), id="as it should be"),
        pytest.param((b": ping\n\n", A, LAST), id="a comment first"),
        pytest.param((LAST, usage_event(7, 3) + b" " * 5000), id="a finish reason far from the end"),
        pytest.param((A, LAST.replace(b"{", b'{"error": null, ', 1)), id="an error that is none"),
        pytest.param((A, LAST.replace(b": ", b":").replace(b"data:", b"data: ")), id="without spaces"),
        pytest.param((chat({}, "length"), usage_event(4, 16), DONE), id="tokens without text"),
        pytest.param((chat({"tool_calls": [{"index": 0}]}), chat({}, "tool_calls"), DONE), id="a tool call"),
        pytest.param((chat({"function_call": {"name": "f"}}, "function_call"), DONE), id="a function call"),
        pytest.param((A, chat({"content": "b"}, "stop", 1), LAST, usage_event(4, 3)), id="two choices that end well"),
        pytest.param((b"event: message\n" + A, LAST, usage_event(4, 2)), id="events with a name"),
    ],
)
def test_whole_streams_have_not_failed(chunks: tuple[bytes, ...]) -> None:
    assert read(*chunks).error is None
    assert not has_failed(body_of(*chunks))


@pytest.mark.parametrize("usage", ['"none"', "[1]", '{"completion_tokens": "3"}', '{"completion_tokens": 2.5}'])
def test_usage_that_is_no_count_is_no_usage(usage: str) -> None:
    assert read(A, LAST, b'data: {"choices": [], "usage": %s}\n\n' % usage.encode(), DONE).output_tokens is None


@pytest.mark.parametrize("delta", ["null", '"x"', "[]"])
def test_a_delta_that_is_none_is_no_content(delta: str) -> None:
    odd = b'data: {"choices": [{"delta": %s}]}\n\n' % delta.encode()
    assert list(read(odd, LAST).content_times_s) == [2.0]


def test_usage_on_every_event_keeps_the_last() -> None:
    running = (
        b'data: {"choices":[{"text":"a","finish_reason":%s}],"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n'
    )
    facts = read(running % (b"null", 1), running % (b'"stop"', 2), DONE)
    assert (facts.prompt_tokens, facts.output_tokens, len(facts.content_times_s)) == (5, 2, 2)


def test_a_count_of_no_tokens_beside_content_is_no_count() -> None:
    facts = read(A, LAST, usage_event(4, 0), DONE)
    assert (facts.error, facts.output_tokens) == (None, None)


EVENTS = [
    *(A, LAST, DONE, b": ping\n\n", b"event: error\n\n"),
    *(usage_event(4, tokens) for tokens in (0, 3)),
    *(
        chat({"content": "x"}, finish, index)
        for finish in (None, "stop", "abort", "content_filter")
        for index in (0, 1)
    ),
    *(chat({}, finish) for finish in (None, "stop", "tool_calls", "error")),
    chat({"reasoning": "y"}),
]


@given(st.lists(st.sampled_from(EVENTS), max_size=5), st.integers(0, 90))
def test_the_quick_look_finds_what_the_reading_finds(events: list[bytes], cut: int) -> None:
    whole = b"".join(events)
    for data in (whole, whole[: len(whole) - cut]):
        assert has_failed(body_of(data)) is (read(data).error is not None)


STREAM = A + B + LAST + usage_event(4, 3) + DONE


@given(st.sets(st.integers(1, len(STREAM) - 1)))
def test_any_tearing_gives_the_same_content(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    facts = read(*(STREAM[start:end] for start, end in pairwise(edges)))
    assert (len(facts.content_times_s), facts.output_tokens, facts.finish, facts.error) == (3, 3, "length", None)
    assert list(facts.content_times_s) == sorted(facts.content_times_s)
    event_ends = (len(A), len(A + B), len(A + B + LAST))
    arrived_with = [1.0 + sum(edge < end for edge in edges[1:]) for end in event_ends]
    assert list(facts.content_times_s) == arrived_with
