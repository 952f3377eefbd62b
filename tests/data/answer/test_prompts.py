from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunerun.config.schema import AnswerConfig
from tunerun.data.answer.prompts import read_prompts
from tunerun.errors import UserError
from tunerun.plan.steps import AnswerStep


def read(path: Path, *, variables: dict | None = None, **settings) -> list[list[str]]:
    answer = AnswerConfig(url="http://localhost/v1", model="x", prompts=(str(path),), **settings)
    found = read_prompts(AnswerStep(answer=answer, vars=variables or {}, on_bad_rows="fail", hub="hf", seed=0))
    return [[f"{message['role'][0]}:{message['content']}" for message in item.prompt.messages] for item in found.asked]


CHAT = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}]
ROWS = {
    "question": ({"question": "A"}, ["u:A", "a:"]),
    "question-and-answer": ({"question": "A", "answer": "B"}, ["u:A", "a:"]),
    "alpaca": ({"instruction": "A", "input": "B", "output": "C", "system": "S"}, ["s:S", "u:A\nB", "a:"]),
    "instruction": ({"instruction": "A"}, ["u:A", "a:"]),
    "messages": ({"messages": CHAT}, ["u:A", "a:", "u:C", "a:"]),
    "answered": ({"messages": CHAT[:2]}, ["u:A", "a:"]),
    "sharegpt": ({"conversations": [{"from": "human", "value": "A"}]}, ["u:A", "a:"]),
    "turns": ({"prompt": [{"role": "system", "content": "S"}, CHAT[0]]}, ["s:S", "u:A", "a:"]),
    "xtuner": ({"conversation": [{"input": "A", "output": "B"}]}, ["u:A", "a:"]),
    "text": ({"text": "A"}, ["u:A", "a:"]),
}


@pytest.mark.parametrize("name", ROWS)
def test_any_row_with_a_prompt_becomes_a_conversation_to_answer(tmp_path, name):
    row, expected = ROWS[name]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert read(tmp_path / "rows.jsonl") == [expected]


def test_lines_of_text_and_tables_are_prompts(tmp_path):
    (tmp_path / "a.txt").write_text("One?\n\nTwo?\n")
    (tmp_path / "b.csv").write_text("Frage,x\n007,1\n")
    assert read(tmp_path / "a.txt") == [["u:One?", "a:"], ["u:Two?", "a:"]]
    assert read(tmp_path / "b.csv", columns={"user": "Frage"}) == [["u:007", "a:"]]


def test_a_system_prompt_is_for_those_that_have_none(tmp_path):
    rows = [{"question": "A"}, {"question": "B", "system": "Own."}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "rows.jsonl", system="Ours.") == [["s:Ours.", "u:A", "a:"], ["s:Own.", "u:B", "a:"]]


def test_placeholders_count_in_what_is_asked_and_not_in_what_is_replaced(tmp_path):
    rows = [{"question": "Who is {{name}}?", "answer": "I am {{other}}."}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "rows.jsonl", variables={"name": "Ada"}) == [["u:Who is Ada?", "a:"]]
    with pytest.raises(UserError, match=r"\{\{name\}\} has no value"):
        read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "A", "tools": [{"name": "f"}]}, "has tools"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}, "weight 0, which keeps it"),
        ({"question": " "}, "is empty"),
        ({"chosen": "A", "rejected": "B"}, r"and prompts are wanted\. Name .*answer\.columns\.user=PROMPT_COLUMN"),
        ({"a": "A"}, r"no known format has the keys `a`\. Name them: answer\.columns\.user=PROMPT_COLUMN"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(tmp_path, row, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "rows.jsonl")
