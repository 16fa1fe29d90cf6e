"""Names in TensorRT-LLM 1.2.1's interface: flags, options and architectures, without TensorRT-LLM installed.

names.json is made by tests/fixtures/trtllm/extract.py, out of the sources that the manifest beside it names.
"""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("names.json")


@cache
def _names() -> Mapping[str, Any]:
    names: Mapping[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return names


def version() -> str:
    return str(_names()["version"])


def serve_flags() -> tuple[str, ...]:
    """Every flag of `trtllm-serve serve`."""
    return tuple(_names()["serve_flags"])


def llm_api_options(backend: str) -> tuple[str, ...]:
    """Keys of the options file on this backend."""
    return tuple(_names()["llm_api_options"][backend])


def nested_options() -> Mapping[str, tuple[str, ...]]:
    """Keys inside the blocks of the options file that are checked too."""
    return {block: tuple(keys) for block, keys in _names()["nested"].items()}


def served_by(architecture: str, backend: str) -> bool:
    """Whether the backend has this `architectures` entry of a config.json."""
    return architecture in _names()["architectures"][backend]


def architectures(backend: str) -> tuple[str, ...]:
    return tuple(_names()["architectures"][backend])


def quantizable(architecture: str) -> bool:
    """Whether the quantizer knows this architecture: one of its names is inside this one, whatever the case."""
    return any(name.lower() in architecture.lower() for name in _names()["quantization_architectures"])


def closest(name: str, known: Iterable[str]) -> str:
    """A hint at the name that was meant; empty without a near one."""
    found = get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
