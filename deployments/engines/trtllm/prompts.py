"""Calibration prompts: a JSONL file of what users really sent, read and checked."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylane.cluster.errors import UsageError

FEWEST = 64  # below this the ranges of activations are noise
ENOUGH = 512  # TensorRT-LLM's own default number of calibration samples
MOST = 1024  # more change nothing and are padded to one length in memory


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts in the order of the file, at most MOST of them, taken evenly from all."""

    rows: tuple[Mapping[str, Any], ...]
    """Each with `prompt` (text) or `messages` (a chat)."""
    lines: int
    """Prompts in the file, repeated ones included."""
    distinct: int
    sha256: str
    """Of the file."""

    @property
    def warning(self) -> str | None:
        if len(self.rows) >= ENOUGH:
            return None
        return f"{len(self.rows)} distinct prompts are few: {ENOUGH} or more give steadier ranges"


def read_prompts(path: Path) -> Prompts:
    """Read a JSONL file whose lines have `prompt` or `messages`. UsageError with file and line when one is wrong,
    or when there are fewer than FEWEST distinct ones."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read: not UTF-8 text") from error
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = [_row(line, f"{path}:{number}") for number, line in numbered]
    distinct = list({json.dumps(row, sort_keys=True): row for row in rows}.values())
    if len(distinct) < FEWEST:
        raise UsageError(
            f"{path}: {len(distinct)} distinct prompts ({len(rows)} lines); calibration needs at least {FEWEST}, "
            f"better {ENOUGH}"
        )
    return Prompts(_evenly(distinct), len(rows), len(distinct), hashlib.sha256(data).hexdigest())


def _evenly(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    kept = min(len(rows), MOST)
    return tuple(rows[i * len(rows) // kept] for i in range(kept))


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{where}: not an object (got {line[:60]!r})")
    given = [key for key in ("prompt", "messages") if key in data]
    if len(given) != 1:
        raise UsageError(f"{where}: needs one of prompt and messages (has {', '.join(data) or 'no key'})")
    if given == ["prompt"]:
        return {"prompt": _text(data["prompt"], f"{where}: prompt")}
    return {"messages": _messages(data["messages"], f"{where}: messages")}


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: not a list of messages (got {value!r:.60})")
    return [_message(item, f"{where}[{index}]") for index, item in enumerate(value)]


def _message(item: Any, where: str) -> dict[str, str]:
    if not isinstance(item, dict):
        raise UsageError(f"{where}: not an object (got {item!r:.60})")
    return {key: _text(item.get(key), f"{where}.{key}") for key in ("role", "content")}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: not a text with something in it (got {value!r:.60})")
    return value
