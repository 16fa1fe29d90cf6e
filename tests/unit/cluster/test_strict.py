"""What the strict base says about wrong files: the file, the key and the value, one line for each thing."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AfterValidator, Field, PositiveFloat, ValidationError

from raylane.cluster.errors import FailedError, RaylaneError, UsageError
from raylane.cluster.strict import StrictModel


class Inner(StrictModel):
    size: int = Field(1, ge=1)


class Outer(StrictModel):
    name: str
    inner: Inner = Inner()
    rows: tuple[Inner, ...] = ()
    tables: tuple[tuple[Inner, ...], ...] = Field(((Inner(),),), min_length=1)
    rate_rps: PositiveFloat = 1.0
    limit: int | None = None
    either: bool | float = False


def written(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        pytest.param("name: a\nsiez: 3\n", "siez", "3", id="an unknown key at the top"),
        pytest.param("name: a\ninner: {siez: 3}\n", "inner.siez", "3", id="an unknown key further in"),
        pytest.param("name: a\ninner: {size: 0}\n", "inner.size", "0", id="a value out of bounds"),
        pytest.param("name: a\ninner: {size: big}\n", "inner.size", "'big'", id="a value of another type"),
        pytest.param("name: a\nrows: [{size: 2}, {size: -1}]\n", "rows.1.size", "-1", id="an element of a list"),
        pytest.param("name: a\nrate_rps: .inf\n", "rate_rps", "inf", id="an endless number"),
        pytest.param("name: a\nrate_rps: .nan\n", "rate_rps", "nan", id="a number that is none"),
        pytest.param("name: a\nrate_rps: true\n", "rate_rps", "true", id="yes for a number"),
        pytest.param("name: a\ninner: {size: on}\n", "inner.size", "true", id="on for a number further in"),
        pytest.param("name: a\nlimit: yes\n", "limit", "true", id="yes for a number that may be absent"),
        pytest.param("name: 2026-08-17\n", "name", "quotes if it is text (got 2026-08-17)", id="a date for text"),
        pytest.param("name: 405\n", "name", "quotes if it is text (got 405)", id="a number for text"),
    ],
)
def test_a_wrong_file_is_explained_by_file_key_and_value(tmp_path: Path, text: str, key: str, value: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        Outer.from_yaml(path)
    assert str(caught.value).startswith(f"{path}: {key}: ")
    assert value in str(caught.value)


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "inner: {size: 0}\nextra: 1\n")
    with pytest.raises(UsageError) as caught:
        Outer.from_yaml(path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["name", "inner.size", "extra"]
    assert "required key is missing" in lines[0]


@pytest.mark.parametrize(
    ("tables", "keys"),
    [
        pytest.param("[[{size: 0}]]", ["tables.0.0.size"], id="a list whose only entry is wrong is not called empty"),
        pytest.param("[]", ["tables"], id="a list that is empty is"),
    ],
)
def test_lists_that_may_not_be_empty(tmp_path: Path, tables: str, keys: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        Outer.from_yaml(written(tmp_path, f"name: a\ntables: {tables}\n"))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == keys


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("name: [unclosed", "not valid YAML", id="broken YAML"),
        pytest.param("name: 2026-13-45", "'2026-13-45' is no timestamp", id="a date that does not exist"),
        pytest.param("rows: [{size: 2026-02-30}]", "'2026-02-30' is no timestamp", id="such a date further in"),
        pytest.param("rate_rps: 010", "line 1, column 11: rate_rps: '010' is no int", id="8 or 10"),
        pytest.param("rate_rps: 1:30.5", "rate_rps: '1:30.5' is no float", id="a number that YAML counts by 60"),
        pytest.param("rows: !!set [1]", "not valid YAML", id="a tag that its value cannot have"),
        pytest.param("name: !!bool maybe", "'maybe' is no bool", id="a value that is not what its tag says"),
        pytest.param("[" * 5000, "too deeply nested", id="a file without an end to its nesting"),
        pytest.param("", "(top level)", id="an empty file"),
        pytest.param("- a\n- b\n", "(top level)", id="a list where keys are expected"),
    ],
)
def test_a_file_that_is_not_such_a_thing(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=r"some\.yaml") as caught:
        Outer.from_yaml(path)
    assert says in str(caught.value).splitlines()[0]


def test_true_stays_true_where_it_may_stand(tmp_path: Path) -> None:
    assert Outer.from_yaml(written(tmp_path, "name: a\neither: true\n")).either is True


class Engine(StrictModel):
    env: dict[str, str] = Field(default_factory=dict)
    base_url: Annotated[str, AfterValidator(lambda url: fail(f"{url} is no address"))] = ""
    api_key_env: str | None = Field(None, pattern="^[A-Z]+$")


def fail(why: str) -> str:
    raise ValueError(why)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("env: {HF_TOKEN: [word123]}", id="a value of the wrong type under a secret name"),
        pytest.param("env: [{HF_TOKEN: word123}]", id="a value further in"),
        pytest.param("env: {HTTP_PROXY: [http://u:word123@host]}", id="an address"),
        pytest.param("password: word123", id="an unknown key"),
        pytest.param("base_url: http://u:word123@host", id="repeated by the validator"),
        pytest.param("api_key_env: word123-word123", id="the key itself in place of its variable"),
        pytest.param("- env: {HF_TOKEN: word123}", id="the whole file"),
        pytest.param("env: {HF_TOKEN: word123", id="broken YAML"),
        pytest.param("env:\n  HF_TOKEN: word123: word123", id="YAML that is broken in that line"),
    ],
)
def test_a_refused_secret_is_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"some\.yaml") as caught:
        Engine.from_yaml(written(tmp_path, text))
    assert "word123" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml: cannot be read: No such file"):
        Outer.from_yaml(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        Outer.from_yaml(tmp_path)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        Outer.from_yaml(path)


def test_a_key_given_twice_is_an_error_and_not_the_last_one_silently(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name"):
        Outer.from_yaml(written(tmp_path, "name: a\nname: b\n"))


def test_yaml_and_back_is_the_same_value(tmp_path: Path) -> None:
    before = Outer(name="é: 'quoted'", inner=Inner(size=7), rows=(Inner(), Inner(size=3)))
    assert Outer.from_yaml(written(tmp_path, before.to_yaml())) == before


def test_values_do_not_change_after_loading() -> None:
    value = Inner(size=2)
    with pytest.raises(ValidationError, match="frozen"):
        value.size = 3  # type: ignore[misc] # what is refused here too


def test_wrong_use_and_failed_work_end_with_different_statuses() -> None:
    assert (UsageError("").exit_code, FailedError("").exit_code) == (2, 1)
    assert issubclass(UsageError, RaylaneError)
    assert issubclass(FailedError, RaylaneError)
