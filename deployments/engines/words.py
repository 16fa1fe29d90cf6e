"""Refusals in the words of their engine: sizing speaks vLLM's, and some formats need a checkpoint of their own."""

from dataclasses import replace

from raylane.deployments.engines.base import kind_of
from raylane.deployments.sizing.fit import Fits, Refusal


def in_words_of(kind: str, found: Fits | Refusal) -> Fits | Refusal:
    """The same result; a refusal names the settings of this kind of engine and what else they need."""
    if isinstance(found, Fits):
        return found
    nearest = tuple(replace(item, change=_translated(kind, item.change)) for item in found.nearest)
    return replace(found, reason=_translated(kind, found.reason), nearest=nearest)


def _translated(kind: str, text: str) -> str:
    for sizings, engines in kind_of(kind).words.items():
        text = text.replace(sizings, engines)
    return text
