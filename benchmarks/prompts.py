"""The bodies of requests: seeded prompts of the length the plan asks for. Pure.

Prompts are random and never repeat, so a prefix cache finds nothing in them: figures are those of cold prompts.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylane.benchmarks.plan import Stream, TokenCount, TokenIds, TokenRange

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}

# Short common words: about one token each in the usual vocabularies.
_WORD_TEXT = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city name team minute idea body back parent face level office
door health person art war history party result change morning reason girl guy moment air teacher force
"""
WORDS = tuple(_WORD_TEXT.split())


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request, ready to send."""

    path: str
    body: bytes
    input_tokens: int
    output_tokens: int


def planned_requests(stream: Stream, ids: TokenIds, seed: int) -> Iterator[PlannedRequest]:
    """Endless requests of one stream; the same seed gives the same bodies."""
    draws = np.random.default_rng(seed)
    while True:
        input_tokens = _draw(stream.input_tokens, draws)
        output_tokens = _draw(stream.output_tokens, draws)
        fields = _prompt(stream, input_tokens, ids, draws) | {
            "model": stream.model,
            "max_tokens": output_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if stream.ignore_eos:
            fields["ignore_eos"] = True
        body = json.dumps(fields, separators=(",", ":")).encode()
        yield PlannedRequest(PATHS[stream.endpoint], body, input_tokens, output_tokens)


def _draw(count: TokenCount, draws: np.random.Generator) -> int:
    if isinstance(count, TokenRange):
        return int(draws.integers(count.min, count.max, endpoint=True))
    return count


def _prompt(stream: Stream, input_tokens: int, ids: TokenIds, draws: np.random.Generator) -> dict[str, Any]:
    if stream.endpoint == "completions":
        return {"prompt": draws.integers(ids.min, ids.max, input_tokens, endpoint=True).tolist()}
    words = " ".join(WORDS[index] for index in draws.integers(0, len(WORDS), input_tokens))
    return {"messages": [{"role": "user", "content": words}]}
