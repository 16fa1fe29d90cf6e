"""Which matrices a checkpoint's lists leave in 16 bits: the ways vLLM compares a name with a list. Pure.

They follow vllm/model_executor/layers/quantization (utils/quant_utils.py is_layer_skipped and the methods' own).
"""

import re
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from functools import cache

from raylane.deployments.sizing.quantization.linears import Kind, Linear

Match = Callable[[str, Collection[str]], bool]


class UnsizedError(Exception):
    """Why the bytes of a checkpoint's weights are not known."""


def exact(name: str, names: Collection[str]) -> bool:
    """The name is in the list."""
    return name in names


def substring(name: str, names: Collection[str]) -> bool:
    """An entry is a part of the name."""
    return any(entry in name for entry in names)


def suffix(name: str, names: Collection[str]) -> bool:
    """The name ends in an entry."""
    return any(name.endswith(entry) for entry in names)


def component(name: str, names: Collection[str]) -> bool:
    """An entry is one or more whole components of the dotted name."""
    return any(f".{entry}." in f".{name}." for entry in names)


def exact_or_regex(name: str, names: Collection[str]) -> bool:
    """The name is in the list, or begins with what an entry `re:...` describes."""
    return any(begins(entry[3:], name) if entry.startswith("re:") else entry == name for entry in names)


def wildcard(name: str, names: Collection[str]) -> bool:
    """An entry with * and ? describes the whole name."""
    return any(fnmatchcase(name, entry) for entry in names)


def begins(pattern: str, name: str) -> bool:
    """Whether the name begins with what the regular expression describes."""
    return _compiled(pattern).match(name) is not None


def contains(pattern: str, name: str) -> bool:
    """Whether some part of the name is what the regular expression describes."""
    return _compiled(pattern).search(name) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UnsizedError(f"{pattern!r} is no regular expression: {error}") from error


def skipped(linear: Linear, names: Collection[str], match: Match) -> bool:
    """Whether a matrix is left in 16 bits. What vLLM holds as one has to be in the list as a whole or not at all."""
    if match(linear.name, names):
        return True
    found = {match(name, names) for name in linear.names()}
    if len(found) == 2:
        raise UnsizedError(f"some but not all of {', '.join(linear.shards)} of {linear.name} are left in 16 bits")
    return found == {True}


def skipped_exactly(linear: Linear, names: Collection[str]) -> bool:
    """The same by whole names; of experts one that is named stands for all of the layer."""
    if linear.kind is Kind.EXPERTS:
        return any(linear.name in entry for entry in names)
    return skipped(linear, names, exact)
