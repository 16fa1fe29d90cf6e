"""Calibration prompts: what is read, what is refused, and what the quantizer gets."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.errors import UsageError
from raylane.deployments.engines.trtllm.prompts import ENOUGH, FEWEST, MOST, read_prompts
from raylane.deployments.engines.trtllm.run_quantization import texts

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def many(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {i}", "extra": "ignored"} for i in range(count)]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        pytest.param("{broken", ("prompts.jsonl:2: not JSON",), id="not JSON"),
        pytest.param('"text"', ("prompts.jsonl:2: not an object", '"text"'), id="a text alone"),
        pytest.param({"text": "hi"}, (":2: needs one of prompt and messages (has text)",), id="another key"),
        pytest.param({"prompt": "a", **CHAT}, (":2: needs one of prompt and messages",), id="both"),
        pytest.param({}, ("has no key",), id="an empty object"),
        pytest.param({"prompt": " "}, (":2: prompt: not a text", "' '"), id="only blanks"),
        pytest.param({"prompt": 5}, (":2: prompt: not a text", "5"), id="a number"),
        pytest.param({"messages": []}, (":2: messages: not a list of messages",), id="no messages"),
        pytest.param({"messages": ["hi"]}, (":2: messages[0]: not an object",), id="a message that is a text"),
        pytest.param({"messages": [{"role": "user"}]}, (":2: messages[0].content", "None"), id="no content"),
        pytest.param(
            {"messages": [*CHAT["messages"], {"content": "x"}]}, (":2: messages[1].role", "None"), id="no role"
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        read_prompts(jsonl(tmp_path, {"prompt": "fine"}, row, *many(FEWEST)))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        pytest.param([], ("0 distinct prompts (0 lines)", "at least 64"), id="an empty file"),
        pytest.param(many(FEWEST - 1), ("63 distinct prompts (63 lines)",), id="one too few"),
        pytest.param([{"prompt": "the same"}] * 600, ("1 distinct prompts (600 lines)",), id="one repeated"),
    ],
)
def test_too_few_are_refused(tmp_path: Path, rows: list[Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        read_prompts(jsonl(tmp_path, *rows))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("count", "warns"),
    [(FEWEST, True), (ENOUGH - 1, True), (ENOUGH, False)],
    ids=["just enough to run", "one below enough", "enough"],
)
def test_few_are_warned_of(tmp_path: Path, count: int, warns: bool) -> None:
    found = read_prompts(jsonl(tmp_path, *many(count)))
    assert (len(found.rows), found.distinct, found.lines) == (count, count, count)
    assert (found.warning is not None) == warns
    assert found.warning is None or str(count) in found.warning


def test_very_many_are_thinned_out_evenly_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    path = jsonl(tmp_path, "", *many(3 * MOST), "  ", CHAT)
    found = read_prompts(path)
    assert (len(found.rows), found.distinct, found.lines) == (MOST, 3 * MOST + 1, 3 * MOST + 1)
    assert [row["prompt"] for row in found.rows[:3]] == ["question 0", "question 3", "question 6"]
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_line_separator_inside_a_prompt_does_not_end_its_line(tmp_path: Path) -> None:
    odd = "before\u2028after"
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in [{"prompt": odd}, *many(FEWEST)]))
    assert read_prompts(path).rows[0] == {"prompt": odd}


@pytest.mark.parametrize(
    ("make", "part"),
    [
        pytest.param(lambda path: None, "No such file", id="no file"),
        pytest.param(lambda path: path.mkdir(), "Is a directory", id="a folder"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8", id="another encoding"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, make: Any, part: str) -> None:
    make(tmp_path / "p.jsonl")
    with pytest.raises(UsageError, match=part):
        read_prompts(tmp_path / "p.jsonl")


def test_chats_go_through_the_models_template_and_texts_do_not() -> None:
    class Tokenizer:
        def apply_chat_template(self, messages: list[dict[str, str]], **how: bool) -> str:
            assert how == {"tokenize": False, "add_generation_prompt": True}
            return f"<{messages[0]['content']}>"

    assert texts([{"prompt": "plain"}, CHAT], Tokenizer()) == ["plain", "<hello>"]
