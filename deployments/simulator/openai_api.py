"""OpenAI requests in, OpenAI answers out, for an engine that has no tokenizer and writes no sense. Pure.

Text is counted at four bytes a token. Prompts given as token ids are counted exactly.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylane.deployments.simulator.scheduler import BLOCK

BYTES_PER_TOKEN = 4
COMPLETION_TOKENS = 16  # what OpenAI's completions take when max_tokens is absent
CHAT_OVERHEAD_TOKENS = 4  # role and separators of each message
FINGERPRINT = "raylane-simulated"
_WORDS = (" a", " lane", " ray", " of", " light", " the", " queue", " and", " then", " one", " token", " after", " it")
WORDS = tuple(json.dumps(word)[1:-1].encode() for word in _WORDS)


class BadRequestError(ValueError):
    """The request cannot be served; `status` and `kind` are what the answer says."""

    def __init__(self, message: str, status: int = 400, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


@dataclass(frozen=True)
class Asked:
    """One request in the engine's terms."""

    chat: bool
    input_tokens: int
    output_tokens: int
    finish_reason: str
    stream: bool
    include_usage: bool
    block_hashes: tuple[int, ...]


def read_request(body: Any, *, chat: bool, model: str, max_model_len: int, default_output_tokens: int) -> Asked:
    """Check a request body. BadRequestError says what is wrong, in the words and codes OpenAI clients know."""
    if not isinstance(body, Mapping):
        raise BadRequestError("the body must be a JSON object")
    if body.get("model") not in {None, model}:
        raise BadRequestError(f"The model `{body['model']}` does not exist.", 404, "NotFoundError")
    if body.get("n", 1) != 1:
        raise BadRequestError(f"n: the simulator answers once, got {body['n']!r}")
    tokens, hashes = _chat_prompt(body) if chat else _completion_prompt(body)
    wanted = body.get("max_completion_tokens") or body.get("max_tokens")
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1):
        raise BadRequestError(f"max_tokens must be at least 1, got {wanted!r}")
    default = default_output_tokens if chat else COMPLETION_TOKENS
    output = wanted or min(default, max_model_len - tokens)
    if tokens + output > max_model_len or output < 1:
        raise BadRequestError(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{max(output, 1)} output tokens and your prompt contains {tokens} input tokens."
        )
    options = body.get("stream_options") or {}
    return Asked(
        chat=chat,
        input_tokens=tokens,
        output_tokens=output,
        finish_reason="length" if wanted or not chat else "stop",
        stream=bool(body.get("stream", False)),
        include_usage=bool(isinstance(options, Mapping) and options.get("include_usage", False)),
        block_hashes=hashes,
    )


def _completion_prompt(body: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return _count_text(prompt)
    if isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
        return len(prompt), _hashes(prompt, BLOCK)
    raise BadRequestError("prompt must be one non-empty string or one non-empty list of token ids")


def _chat_prompt(body: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, Mapping) for item in messages):
        raise BadRequestError("messages must be a non-empty list of objects")
    texts = [f"{message.get('role', '')}:{_content(message)}" for message in messages]
    tokens, hashes = _count_text("\n".join(texts))
    return tokens + CHAT_OVERHEAD_TOKENS * len(messages), hashes


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    raise BadRequestError(f"content must be a string or a list of parts, got {type(content).__name__}")


def _count_text(text: str) -> tuple[int, tuple[int, ...]]:
    data = text.encode()
    return max(1, -(-len(data) // BYTES_PER_TOKEN)), _hashes(data, BLOCK * BYTES_PER_TOKEN)


def _hashes(items: Sequence[int], size: int) -> tuple[int, ...]:
    """One hash for each full block, over everything up to its end."""
    found: list[int] = []
    before = 0
    for start in range(0, len(items) - size + 1, size):
        before = hash((before, tuple(items[start : start + size])))
        found.append(before)
    return tuple(found)


def words(count: int) -> str:
    """The text of an answer of `count` tokens."""
    return "".join(_WORDS[i % len(_WORDS)] for i in range(count))


def usage(asked: Asked) -> dict[str, int]:
    return {
        "prompt_tokens": asked.input_tokens,
        "completion_tokens": asked.output_tokens,
        "total_tokens": asked.input_tokens + asked.output_tokens,
    }


def answer(asked: Asked, request_id: str, model: str, created: int) -> dict[str, Any]:
    """The whole answer to a request that did not stream."""
    text = words(asked.output_tokens)
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": asked.finish_reason}
    choice |= {"message": {"role": "assistant", "content": text}} if asked.chat else {"text": text}
    return {
        "id": request_id,
        "object": "chat.completion" if asked.chat else "text_completion",
        "created": created,
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [choice],
        "usage": usage(asked),
    }


@dataclass(frozen=True)
class EventText:
    """The bytes around one token of a stream, prepared once for the request."""

    first: bytes
    """Instead of `before` for the token that begins the stream: chats name the role there."""
    before: bytes
    after: bytes
    last: bytes
    """Instead of `after` for the token that ends the stream."""
    end: bytes
    """The usage chunk where it was asked for, and the end mark."""

    @classmethod
    def of(cls, asked: Asked, request_id: str, model: str, created: int) -> "EventText":
        """Prepare a stream: one event per token, as OpenAI's streams are laid out."""
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        head = (
            f'data: {{"id":"{request_id}","object":"{kind}","created":{created},"model":{json.dumps(model)},'
            f'"system_fingerprint":"{FINGERPRINT}","choices":['
        )
        opening = '{"index":0,"delta":{"content":"' if asked.chat else '{"index":0,"text":"'
        closing = '"},"logprobs":null' if asked.chat else '","logprobs":null'
        usage_event = f'{head}],"usage":{json.dumps(usage(asked))}}}\n\n' if asked.include_usage else ""
        role = opening.replace('{"content"', '{"role":"assistant","content"')
        return cls(
            first=(head + role).encode(),
            before=(head + opening).encode(),
            after=f'{closing},"finish_reason":null}}]}}\n\n'.encode(),
            last=f'{closing},"finish_reason":"{asked.finish_reason}"}}]}}\n\n'.encode(),
            end=f"{usage_event}data: [DONE]\n\n".encode(),
        )

    def token(self, index: int, *, last: bool) -> bytes:
        """The event of one token; the last one carries the end of the stream as well."""
        word = WORDS[index % len(WORDS)]
        before = self.before if index else self.first
        return before + word + self.last + self.end if last else before + word + self.after


def error_body(message: str, status: int, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
