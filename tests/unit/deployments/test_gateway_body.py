"""`model` and `stream` out of bodies of every kind: alike for small and large ones, and no gap in the event loop."""

import asyncio
import codecs
import json
import time
from typing import Any

import pytest

from raylane.deployments.gateway import body as body_module
from raylane.deployments.gateway.body import LARGE_BYTES, MOST_KEYS, Wanted, top_level, wanted

PAD = b'"pad": "' + b"x" * LARGE_BYTES + b'"'


def found(body: bytes) -> dict[str, Any] | None:
    """What the scan of a large body finds; None for what is no object."""
    scan = top_level(body)
    try:
        while True:
            next(scan)
    except StopIteration as end:
        values: dict[str, Any] = end.value
        return values
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b'{"model": "a"}', Wanted("a", False), id="a model"),
        pytest.param(b'{"model": "a", "stream": true}', Wanted("a", True), id="streamed"),
        pytest.param(b'{"stream": 1, "model": "a"}', Wanted("a", True), id="in another order, a number"),
        pytest.param(b'{"model": "a", "stream": null}', Wanted("a", False), id="null is no"),
        pytest.param(b'{"model": "a", "stream": 0.0}', Wanted("a", False), id="zero is no"),
        pytest.param(b'{"model": "a", "stream": []}', Wanted("a", False), id="empty is no"),
        pytest.param(b'{"model": "a", "stream": {"x": 1}}', Wanted("a", True), id="not empty is yes"),
        pytest.param(b'{"model": "a", "model": "b"}', Wanted("b", False), id="the last of two"),
        pytest.param(rb'{"mod\u0065l": "\u0061\n"}', Wanted("a\n", False), id="escapes in key and value"),
        pytest.param(b'{"x": {"model": "no"}, "y": [{"model": "no"}], "model": "a"}', Wanted("a", False), id="nested"),
        pytest.param(rb'{"x": "\"model\": \"no\" \\", "model": "a"}', Wanted("a", False), id="in a string"),
        pytest.param(rb'{"x": ["\\\\", "}\"]"], "model": "a"}', Wanted("a", False), id="brackets in strings"),
        pytest.param(b'{"x": NaN, "y": -Infinity, "model": "a"}', Wanted("a", False), id="not a number"),
        pytest.param('{"x": "\U0001f600é", "model": "é"}'.encode(), Wanted("é", False), id="beyond ASCII"),
        pytest.param(b' \r\n\t{ "model" : "a" , "stream" : true } \n', Wanted("a", True), id="spaces"),
        pytest.param(codecs.BOM_UTF8 + b'{"model": "a"}', Wanted("a", False), id="byte order mark"),
        pytest.param('{"model": "é"}'.encode("utf-16"), Wanted("é", False), id="UTF-16"),
        pytest.param('{"model": "é"}'.encode("utf-32-be"), Wanted("é", False), id="UTF-32"),
        pytest.param(b'{"x": [[[{"y": [1, [2]]}, []], {}], {}], "model": "a"}', Wanted("a", False), id="deep"),
        pytest.param(b'{"model": "a", "model": 5}', None, id="a model that is no string"),
        pytest.param(b'{"model": null}', None, id="null"),
        pytest.param(b'{"model": ["a"]}', None, id="a list"),
        pytest.param(b'{"x": "a"}', None, id="no model"),
        pytest.param(b"{}", None, id="empty"),
        pytest.param(b"[1]", None, id="no object"),
        pytest.param(b'"model"', None, id="a string"),
        pytest.param(b"", None, id="nothing"),
        pytest.param(b'{"model": "a"', None, id="no end"),
        pytest.param(b'{"model": "a', None, id="a string without an end"),
        pytest.param(b'{"model": "a\\', None, id="an escape without an end"),
        pytest.param(b'{"x": [1, "model": "a"}', None, id="a list without an end"),
        pytest.param(b'{"model": "a"} x', None, id="something behind"),
        pytest.param(b'{"model": "a",}', None, id="a comma too many"),
        pytest.param(b'{"x" 1, "model": "a"}', None, id="no colon"),
        pytest.param(b'{"x": , "model": "a"}', None, id="no value"),
        pytest.param(b'{"x": 1 "model": "a"}', None, id="no comma"),
        pytest.param(b'{model: "a"}', None, id="a key without quotes"),
        pytest.param(b'{"x": "\xff", "model": "a"', None, id="neither UTF-8 nor whole"),
    ],
)
async def test_small_and_large_bodies_are_read_alike(
    body: bytes, expected: Wanted | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await wanted(body) == expected
    for slice_bytes in (2, 3, 7, body_module.SLICE_BYTES):  # a slice may end anywhere
        monkeypatch.setattr(body_module, "LARGE_BYTES", -1)
        monkeypatch.setattr(body_module, "SLICE_BYTES", slice_bytes)
        assert await wanted(body) == expected, slice_bytes


def test_the_scan_finds_what_json_finds_in_generated_bodies() -> None:
    nested: Any = {"model": "no", "list": [1, -2.5e3, True, None, ']}"\\', {"stream": {}}]}
    for depth in range(40):
        nested = [nested, {"stream": depth, 'a"b': nested}] if depth < 8 else {"x": nested}
    body = json.dumps({"a": nested, "model": "yes", "stream": True, "z": nested}).encode()
    assert len(body) > 2 * body_module.SLICE_BYTES / 10
    assert found(body) == {"model": "yes", "stream": True}


async def test_a_body_of_very_many_keys_is_refused() -> None:
    many = b"{" + b"".join(b'"%d": 1, ' % number for number in range(MOST_KEYS + 1)) + PAD + b', "model": "a"}'
    assert await wanted(many) is None


MEGABYTES_53 = 53_000_000
LARGE = {
    "one string": b'{"prompt": "' + b"a" * MEGABYTES_53 + b'", "model": "x"}',
    "token ids": b'{"prompt": [' + b"1234, " * (MEGABYTES_53 // 6) + b'1], "model": "x"}',
    "messages": b'{"messages": [' + b'{"role": "user", "content": "x"}, ' * (MEGABYTES_53 // 34) + b'1], "model": "x"}',
    "escapes": b'{"prompt": "' + b'\\"' * (MEGABYTES_53 // 2) + b'", "model": "x"}',
    "spaces": b'{"prompt": ' + b" " * MEGABYTES_53 + b'1, "model": "x"}',
    "UTF-16": ('{"prompt": "' + "a" * (MEGABYTES_53 // 2) + '", "model": "x"}').encode("utf-16"),
}


@pytest.mark.parametrize("kind", LARGE)
async def test_a_body_of_53_mb_does_not_stop_the_event_loop(kind: str) -> None:
    """CPU time of this thread between two turns of the loop, so that a busy machine does not count."""
    turns_s: list[float] = []

    async def heartbeat() -> None:
        last_s = time.thread_time()
        while True:
            await asyncio.sleep(0)
            turns_s.append(time.thread_time() - last_s)
            last_s = time.thread_time()

    beating = asyncio.create_task(heartbeat())
    await asyncio.sleep(0)
    assert await wanted(LARGE[kind]) == Wanted("x", False)
    beating.cancel()
    assert len(turns_s) > 50
    assert max(turns_s) < 0.05  # 2 to 7 ms where measured; json.loads takes up to 800
