from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunerun.data import read
from tunerun.data.convert import Reading
from tunerun.data.questions import Question, read_questions
from tunerun.errors import UserError


def questions(file: Path, content: str, **reading) -> list[Question]:
    file.write_text(content, encoding="utf-8")
    return read_questions(read.find_files([str(file)]), Reading(**reading), "--prompts")


def user(text: str) -> tuple[dict, ...]:
    return ({"role": "user", "content": text},)


def test_columns_may_have_an_answer_in_some_rows_only(tmp_path):
    found = questions(tmp_path / "q.csv", "question,answer\nWho?,Nova\n你是谁？,\n")
    assert found == [Question(user("Who?"), "Nova"), Question(user("你是谁？"), None)]


def test_lines_of_text_are_questions(tmp_path):
    found = questions(tmp_path / "q.txt", "Who are you?\n\n你是谁？\n")
    assert found == [Question(user("Who are you?"), None), Question(user("你是谁？"), None)]


def test_a_first_row_without_an_answer_hides_none_of_the_others(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "b", "response": "c"}]
    found = questions(tmp_path / "q.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [item.reference for item in found] == [None, "c"]


def test_the_last_answer_of_a_conversation_is_its_reference(tmp_path):
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (found,) = questions(tmp_path / "q.json", json.dumps([{"messages": messages}]))
    assert [dict(message) for message in found.messages] == messages[:-1]
    assert found.reference == "d"
    (open_end,) = questions(tmp_path / "q.json", json.dumps([{"messages": messages[:-1]}]))
    assert [dict(message) for message in open_end.messages] == messages[:-1]
    assert open_end.reference is None


def test_columns_can_be_named(tmp_path):
    (found,) = questions(tmp_path / "q.tsv", "x\ty\nWho?\tNova\n", columns={"user": "x", "assistant": "y"})
    assert found == Question(user("Who?"), "Nova")


@pytest.mark.parametrize(("name", "content", "what"), [
    ("q.jsonl", '{"question": "a"}\n{"question": 7}\n', "q.jsonl"),
    ("q.jsonl", '{"color": "red"}\n', "no known format"),
    ("q.txt", "\n", "is empty"),
    ("q.json", "[]", "no question"),
])  # fmt: skip
def test_what_is_no_question_is_told_with_its_place(tmp_path, name, content, what):
    with pytest.raises(UserError, match=what):
        questions(tmp_path / name, content)
