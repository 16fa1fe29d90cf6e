"""Errors in the shape that OpenAI clients understand."""

import json


def error_body(message: str, kind: str, code: str | int | None, param: str | None = None) -> bytes:
    """The JSON body of a failed request."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def error_event(message: str) -> bytes:
    """The last event of a stream that broke, also in the middle of an event: an error instead of [DONE]."""
    return b"\n\ndata: " + error_body(message, "engine_error", 502) + b"\n\n"
