"""An OpenAI-like endpoint inside the test's own event loop, with replies that can be torn, cut or refused."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web


def content_event(text: str, finish: str | None = None) -> bytes:
    """One completions event."""
    return f"data: {json.dumps({'choices': [{'index': 0, 'text': text, 'finish_reason': finish}]})}\n\n".encode()


def chat_event(text: str | None, finish: str | None = None) -> bytes:
    """One chat event; text None is the opening event that carries only a role."""
    delta = {"role": "assistant", "content": ""} if text is None else {"content": text}
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n".encode()


def usage_event(prompt: int, completion: int) -> bytes:
    """The last event that stream_options.include_usage asks for."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode()


DONE = b"data: [DONE]\n\n"
BELOW = "/models/x"
"""The endpoint answers below this path too."""


@dataclass
class StubEndpoint:
    """Answers completions and chat. `first_s` and `each_s` are the delays it makes; `seen` holds the request bodies.

    After `quick_requests` of them nobody gets a token for a minute.

    `burst` events go out in one write (0: the whole reply). `encoding` compresses replies: "offered" when the client
    offers gzip, "always" unasked. `redirect` answers every request by that status and place. `tokens` is how many come
    instead of what was asked for. `refuses_keys` answers 401 and repeats the key.
    """

    first_s: float = 0.0
    each_s: float = 0.0
    quick_requests: float = math.inf
    unknown_models: tuple[str, ...] = ("missing",)
    cut_models: tuple[str, ...] = ("cut",)
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    burst: int = 1
    encoding: Literal["", "offered", "always"] = ""
    offered: list[str | None] = field(default_factory=list)
    redirect: tuple[int, str] | None = None
    tokens: int | None = None
    refuses_keys: bool = False
    counts_tokens: bool = True

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.keys.append(request.headers.get("Authorization"))
        self.offered.append(request.headers.get("Accept-Encoding"))
        if self.redirect is not None:
            return web.Response(status=self.redirect[0], headers={"Location": self.redirect[1]})
        if self.refuses_keys:
            return web.json_response({"error": {"message": f"no such key: {self.keys[-1]}"}}, status=401)
        if body["model"] in self.unknown_models:
            return web.json_response({"error": {"message": f"no model {body['model']}"}}, status=404)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"} | self.headers)
        if self.encoding == "always" or (self.encoding == "offered" and "gzip" in (self.offered[-1] or "")):
            response.enable_compression(web.ContentCoding.gzip)
        await response.prepare(request)
        await self._stream(response, body)
        return response

    async def _stream(self, response: web.StreamResponse, body: dict[str, Any]) -> None:
        tokens = self.tokens or body["max_tokens"]
        held: list[bytes] = []
        event = chat_event if "messages" in body else content_event
        prompt = body.get("prompt") or body["messages"][0]["content"].split()
        await asyncio.sleep(self.first_s if len(self.seen) <= self.quick_requests else 60.0)
        for index in range(tokens):
            if index and self.each_s:
                await asyncio.sleep(self.each_s)
            if body["model"] in self.cut_models and index == 2:
                await response.write(b'data: {"error": {"message": "engine died", "code": 500}}\n\n')
                return
            held.append(event("x", "length" if index == tokens - 1 else None))
            if self.burst and len(held) == self.burst:
                await response.write(b"".join(held))
                held.clear()
        usage = usage_event(len(prompt), tokens) if self.counts_tokens else b""
        await response.write(b"".join(held) + usage + DONE)


@asynccontextmanager
async def serving(stub: StubEndpoint) -> AsyncIterator[str]:
    """The stub's base URL, on a free port that the server itself chose."""
    app = web.Application()
    for root in ("", BELOW):
        app.router.add_post(f"{root}/v1/completions", stub.answer)
        app.router.add_post(f"{root}/v1/chat/completions", stub.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
