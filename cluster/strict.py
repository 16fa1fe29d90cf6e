"""One strict, frozen base for everything read from YAML or JSON, and the loader that explains what is wrong."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from raylane.cluster.errors import UsageError
from raylane.cluster.redact import HIDDEN, is_secret_name, redacted, redacted_data


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML as usual, but a key given twice is an error, not the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As usual; a value that looks like some type and is none (the date 2026-13-45) is an error with its place."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{node.value!r} is no {kind} ({error}); quote it if it is text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


class StrictModel(BaseModel):
    """Base of every config model: unknown keys and infinite numbers are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a YAML file. Raises UsageError naming the file, the key and the value that does not fit."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: cannot be read: not UTF-8 text") from error
        try:
            data = yaml.load(text, UniqueKeyLoader)  # noqa: S506 - a SafeLoader
        except (yaml.YAMLError, TypeError, ValueError) as error:  # the last two of tags like "!!set [1]"
            raise UsageError(f"{path}: not valid YAML: {_yaml_problem(error)}") from error
        except RecursionError as error:
            raise UsageError(f"{path}: not valid YAML: too deeply nested") from error
        return cls.from_data(data, str(path))

    @classmethod
    def from_data(cls, data: Any, origin: str) -> Self:
        """Validate plain data; `origin` (a file name, say) begins every error message."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise UsageError("\n".join(explain(error, origin))) from error

    def to_yaml(self) -> str:
        """The resolved config as YAML, defaults included; `from_yaml` of it gives an equal value."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        return text


def explain(error: ValidationError, origin: str) -> list[str]:
    """One line for each thing wrong: origin, dotted key, what was given (no secret) and what would fit."""
    lines, items = [], error.errors()
    for item in items:
        if item["type"] == "too_short" and any(_inside(other["loc"], item["loc"]) for other in items):
            continue  # an entry that is wrong is left out of the count, and has its own line
        key = ".".join(str(part) for part in item["loc"]) or "(top level)"
        given = _shown(item["loc"], item["input"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{origin}: {key}: unknown key (value {given})")
        elif item["type"] == "missing":
            lines.append(f"{origin}: {key}: required key is missing")
        else:
            told = item["msg"].removeprefix("Value error, ")
            told = redacted(told, [str(item["input"])] if given == HIDDEN else ())
            lines.append(f"{origin}: {key}: {told} (got {given})")
    return lines


def _shown(place: tuple[int | str, ...], given: Any) -> str:
    """A refused value as it may be repeated."""
    names = [part for part in place if isinstance(part, str)]
    if any(is_secret_name(name) for name in names):
        return HIDDEN
    return repr(redacted_data(given, names[-1] if names else ""))


def _yaml_problem(error: Exception) -> str:
    """What is wrong and where, without the line itself: it may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark or error.context_mark
    place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return ": ".join(part for part in (error.context, error.problem) if part) + place


def _inside(place: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer
