"""Who may ask an engine what: its key on every path, and no path that raylane does not use.

`KeyGuard` runs in the engine's own process, around everything that its server has: routes, mounted pages, websockets
(vLLM's `--middleware`, and guarded_serve.py). The simulator asks `refusal` itself. Standard library only, and no
newer than Python 3.10: an engine's interpreter may be another than raylane's.
"""

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name: its check of /v1 and this one ask for the same key
# What the gateway passes on, and what replicas and benchmarks ask. Control paths such as POST /sleep go here with the
# code that calls them.
FORWARDED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
ALLOWED = frozenset(
    {("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models"), *(("POST", path) for path in FORWARDED)}
)
POLICY_VIOLATION = 1008  # RFC 6455: before the handshake it becomes status 403

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refusal(NamedTuple):
    """The answer to a request that goes no further."""

    status: int
    message: str
    kind: str

    def body(self) -> bytes:
        """In OpenAI's shape."""
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.status}
        return json.dumps({"error": error}).encode()


WITHOUT_KEY = Refusal(401, "Unauthorized", "AuthenticationError")
NOT_USED = Refusal(404, "Not Found", "NotFoundError")


def engine_key() -> bytes:
    """This engine's key, out of its environment; empty when it was given none, which opens nothing."""
    return os.environ.get(KEY_VARIABLE, "").encode()


def refusal(method: str, path: str, authorization: Sequence[bytes], key: bytes) -> Refusal | None:
    """Why a request is not answered; None when it may pass. `path` is the decoded one that the server routes by.

    Paths are compared as a whole: another spelling of an allowed path is no allowed path.
    """
    if not _has(key, authorization):
        return WITHOUT_KEY
    return None if (method, path) in ALLOWED else NOT_USED


def _has(key: bytes, authorization: Sequence[bytes]) -> bool:
    if not key or len(authorization) != 1:  # with two of them, two readers may take one each
        return False
    scheme, _, sent = authorization[0].partition(b" ")
    return hmac.compare_digest(sent, key) and scheme.lower() == b"bearer"


class KeyGuard:
    """ASGI middleware: what is refused is answered here and never reaches the engine's server."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = engine_key()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's scope; raylane opens no websocket, so every one is refused."""
        refused = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _answer(refused, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": refused.message})

    def _refusal(self, scope: Scope) -> Refusal | None:
        sent = [bytes(value) for name, value in scope.get("headers", ()) if bytes(name).lower() == b"authorization"]
        method = scope.get("method", "") if scope["type"] == "http" else scope["type"]
        root, path = scope.get("root_path", ""), scope.get("path", "")
        # Below a root path the server routes by what follows it: such a path is not the one that it seems to be.
        below = bool(root) and path.startswith(root)
        return refusal(method, "" if below else path, sent, self._key)


async def _answer(refused: Refusal, send: Send) -> None:
    content = refused.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if refused is WITHOUT_KEY:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
