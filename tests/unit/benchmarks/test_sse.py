from itertools import pairwise

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
