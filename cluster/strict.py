"""One strict, frozen base for everything read from YAML or JSON, and the loader that explains what is wrong."""

import re
from datetime import date
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from raylane.cluster.errors import UsageError
from raylane.cluster.redact import HIDDEN, is_secret_name, redacted, redacted_data

TWO_READINGS = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_.]+)+)")
"""Numbers that YAML 1.1 counts by 8 (010) or by 60 (1:30), which nobody means."""


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML as usual, but a key given twice is an error, not the last one silently, and so is a number that could
    be read in two ways."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._keys: dict[yaml.Node, str] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                self._keys[value_node] = f"{key_node.value}: "
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
        kind = node.tag.rpartition(":")[2]
        try:
            if kind in ("int", "float") and TWO_READINGS.fullmatch(node.value):
                raise ValueError("it has two readings")
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            problem = f"{self._keys.get(node, '')}{node.value!r} is no {kind} ({error}); quote it if it is text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


class StrictModel(BaseModel):
    """Base of every config model: unknown keys, infinite numbers and true for a number are errors, values never change
    after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        """Handed on as text, which is refused in its place."""
        if not isinstance(data, dict) or not any(type(value) is bool for value in data.values()):
            return data
        numbers = {name for name, field in cls.model_fields.items() if _is_number(field.annotation)}
        return {
            name: str(value).lower() if type(value) is bool and name in numbers else value
            for name, value in data.items()
        }

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
        except yaml.MarkedYAMLError as error:
            raise UsageError(f"{path}: not valid YAML: {_yaml_problem(error)}") from error
        except (yaml.YAMLError, TypeError, ValueError) as error:  # the last two of tags like "!!set [1]"
            raise UsageError(f"{path}: not valid YAML: {error}") from error
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
            told = WORDS.get(item["type"], item["msg"].removeprefix("Value error, "))
            told = redacted(told, [str(item["input"])] if given == HIDDEN else ())
            lines.append(f"{origin}: {key}: {told} (got {given})")
    return lines


WORDS = {
    "string_type": "text is expected; put the value in quotes if it is text",
    "dict_type": "keys with values are expected",
    "model_type": "keys with values are expected",
}
"""What is wrong, where pydantic says it in Python's words."""


def _shown(place: tuple[int | str, ...], given: Any) -> str:
    """A refused value as it may be repeated, and as a file has it: 2026-08-17, not datetime.date(2026, 8, 17)."""
    names = [part for part in place if isinstance(part, str)]
    if any(is_secret_name(name) for name in names):
        return HIDDEN
    if isinstance(given, date):
        return given.isoformat()
    return repr(redacted_data(given, names[-1] if names else ""))


def _yaml_problem(error: yaml.MarkedYAMLError) -> str:
    """What is wrong and where, without the line itself: it may hold a secret."""
    mark = error.problem_mark or error.context_mark
    place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return place + ", ".join(words for words in (error.context, error.problem) if words)


def _is_number(annotation: Any) -> bool:
    """Whether values of this type are numbers, and none of them true or false."""
    if annotation in (int, float):
        return True
    inner = get_args(annotation)
    return bool not in inner and Any not in inner and any(_is_number(each) for each in inner if each in (int, float))


def _inside(place: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer
