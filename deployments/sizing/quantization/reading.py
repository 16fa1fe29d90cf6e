"""Values of a checkpoint's quantization config, whatever stands there. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

from raylane.deployments.sizing.quantization.formats import WeightFormat
from raylane.deployments.sizing.quantization.linears import Linear
from raylane.deployments.sizing.quantization.skips import UnsizedError

Resolver = Callable[[Linear], WeightFormat | None]
"""The format a matrix is stored in; None for the model's own dtype. UnsizedError where that is not known."""


def an_object(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object at a key; an empty one where there is none."""
    found = of.get(key)
    return found if isinstance(found, Mapping) else {}


def strings(of: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    """The list of names at the first of the keys that has one that is not empty; () where none has.

    A single name counts as a list of one, lists of lists as one list.
    """
    found = next((of[key] for key in keys if of.get(key)), ())
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list | tuple):
        raise UnsizedError(f"{' or '.join(keys)} is no list of names (got {found!r})")
    flat = [name for item in found for name in (item if isinstance(item, list) else [item])]
    if not all(isinstance(name, str) for name in flat):
        raise UnsizedError(f"{' or '.join(keys)} is no list of names (got {found!r})")
    return tuple(flat)


def block_of(found: object) -> tuple[int, int]:
    """Outputs and inputs of a block of weights."""
    if isinstance(found, list | tuple) and len(found) == 2:
        rows, columns = found
        if all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in (rows, columns)):
            return rows, columns
    raise UnsizedError(f"the block of weights is not two positive whole numbers (got {found!r})")


def whole(of: Mapping[str, Any], key: str, otherwise: int) -> int:
    """The whole number at a key, also where it is written as text; `otherwise` where it is missing or null."""
    found = of.get(key)
    if found is None:
        return otherwise
    try:
        return int(found)
    except (TypeError, ValueError):
        raise UnsizedError(f"{key} is no whole number (got {found!r})") from None
