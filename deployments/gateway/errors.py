"""Errors in the shape that OpenAI clients understand."""

import json
from collections.abc import Iterable

from aiohttp import web

RETRY_AFTER_S = 5  # within what OpenAI's clients keep to


def error_body(message: str, kind: str, code: str | int | None, param: str | None = None) -> bytes:
    """The JSON body of a failed request."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def error_event(message: str) -> bytes:
    """The last event of a stream that broke, also in the middle of an event: an error instead of [DONE]."""
    return b"\n\ndata: " + error_body(message, "engine_error", 502) + b"\n\n"


def refuse(status: int, message: str, kind: str, code: str | int | None, param: str | None = None) -> web.Response:
    """A whole response that is an error; 503 says when to come again."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    body = error_body(message, kind, code, param)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def unknown_model(model: str, models: Iterable[str]) -> web.Response:
    """The answer to a request for a model that is not deployed."""
    message = f"The model {model!r} does not exist; deployed: {', '.join(models) or 'none yet'}"
    return refuse(404, message, "invalid_request_error", "model_not_found", "model")
