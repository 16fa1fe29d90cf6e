"""The numbers of a model's config.json, each checked as it is read. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylane.cluster.errors import UsageError


@dataclass(frozen=True)
class ConfigJson:
    """One JSON object of a model's files. What does not fit is a UsageError of `origin` (the file), key and value."""

    values: Mapping[str, Any]
    origin: str

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number; `default` where the key is missing, which is an error without one."""
        if key in self.values:
            return self.positive_whole(key, self.values[key])
        if default is None:
            raise UsageError(f"{self.origin}: {key}: required key is missing")
        return default

    def whole_or_none(self, key: str) -> int | None:
        """The same for a key that may be missing or null."""
        found = self.values.get(key)
        return None if found is None else self.positive_whole(key, found)

    def key_of(self, names: Sequence[str]) -> str:
        """Which of several names of one key is there: files of different ages differ. The first where none is."""
        return next((name for name in names if name in self.values), names[0])

    def number(self, key: str, default: float) -> float:
        """A positive number, not necessarily whole; `default` where it is missing or null."""
        found = self.values.get(key)
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
            raise UsageError(f"{self.origin}: {key}: not a positive number (got {found!r})")
        return float(found)

    def inner(self, key: str) -> "ConfigJson | None":
        """The object at a key; None where it is missing, null or empty."""
        found = self.values.get(key)
        if found is not None and not isinstance(found, Mapping):
            raise UsageError(f"{self.origin}: {key}: not an object (got {found!r})")
        return ConfigJson(found, self.origin) if found else None

    def positive_whole(self, key: str, value: object) -> int:
        """The value itself. Neither 4096.0 nor true is taken for a whole number, as vLLM takes neither."""
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{self.origin}: {key}: not a positive whole number (got {value!r})")
        return value
