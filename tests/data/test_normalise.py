from __future__ import annotations

import json

import pytest

from tunerun.data.detect import format_of
from tunerun.data.normalise import normalise
from tunerun.data.placeholders import fill
from tunerun.data.rows import Row, RowFault, RowKind, Text
from tunerun.errors import UserError


def read(value: object, wanted: RowKind = "conversations", **columns: str):
    form = format_of(Row("f", 1, value), "auto", columns, (wanted,))
    return normalise(value, form)


def talk(made) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in made.messages]


USER, ASSISTANT = ("user", "q"), ("assistant", "a")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"instruction": "q", "output": "a"}, [USER, ASSISTANT]),
        ({"instruction": "q", "input": "", "output": "a", "system": ""}, [USER, ASSISTANT]),
        ({"instruction": "do", "input": "this", "output": "a"}, [("user", "do\nthis"), ASSISTANT]),
        ({"instruction": "", "input": "q", "output": "a", "system": "s"}, [("system", "s"), USER, ASSISTANT]),
        ({"instruction": "q", "output": "a", "history": [["h", "i"]]},
         [("user", "h"), ("assistant", "i"), USER, ASSISTANT]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [USER, ASSISTANT]),
        ({"system": "s", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
         [("system", "s"), USER, ASSISTANT]),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                            {"from": "gpt", "value": "a"}]},
         [("system", "s"), USER, ASSISTANT]),
        ({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"},
                       {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
         [("system", "s"), USER, ASSISTANT]),
        ({"conversation": [{"system": "s", "input": "q", "output": "a"}, {"input": "q", "output": "a"}]},
         [("system", "s"), USER, ASSISTANT, USER, ASSISTANT]),
        ({"question": "q", "answer": "a"}, [USER, ASSISTANT]),
        ({"Prompt": "q", "Completion": "a", "System": "s"}, [("system", "s"), USER, ASSISTANT]),
        ({"instruction": "q", "response": "a", "context": "ignored"}, [USER, ASSISTANT]),
        ({"问题": "q", "回答": "a"}, [USER, ASSISTANT]),
    ],
)  # fmt: skip
def test_formats_are_found_and_read(value, expected):
    assert talk(read(value)) == expected


def test_columns_are_picked_by_name_before_anything_else():
    value = {"instruction": "no", "output": "no", "A": "q", "D": "a", "S": " "}
    assert talk(read(value, user="A", assistant="D", system="S")) == [USER, ASSISTANT]
    assert read({"body": "x", "text": "y"}, text="body") == Text("x")


def test_plain_text_rows_and_lines():
    assert read("line") == Text("line")
    assert read({"text": "x", "url": "y"}) == Text("x")
    with pytest.raises(RowFault, match="empty"):
        normalise({"text": " "}, "text", {})


def test_sharegpt_tool_calls_become_openai_ones():
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": '{"y": "2"}'}]
    turns = [
        ("human", "q"),
        ("function_call", json.dumps(calls)),
        ("observation", "1"),
        ("observation", "2"),
        ("gpt", "a"),
    ]
    tools = json.dumps([{"name": "f"}, {"type": "function", "function": {"name": "g"}}])
    made = read({"conversations": [{"from": who, "value": text} for who, text in turns], "tools": tools})
    assert made.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"x": 1}}},
            {"type": "function", "id": "call00001", "function": {"name": "g", "arguments": {"y": "2"}}},
        ],
    }
    assert [made.messages[index]["tool_call_id"] for index in (2, 3)] == ["call00000", "call00001"]
    assert [tool["function"]["name"] for tool in made.tools] == ["f", "g"]


@pytest.mark.parametrize("tools", [None, "", "[]", []])
def test_no_tools_are_none(tools):
    assert (
        read({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": tools}).tools
        is None
    )


def test_openai_ids_weights_and_legacy_calls_are_kept():
    call = {"id": "mine", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    made = read({"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "a", "weight": 1, "reasoning_content": "r"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "function_call": {"name": "g", "arguments": ""}},
    ]})  # fmt: skip
    assert made.untrained == {1}
    assert made.messages[1]["tool_calls"][0]["id"] == made.messages[2]["tool_call_id"] == "mine"
    assert made.messages[3] == {"role": "assistant", "content": "a", "reasoning_content": "r"}
    assert made.messages[5]["tool_calls"][0]["function"] == {"name": "g", "arguments": {}}


def test_a_system_prompt_for_rows_that_have_none():
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}
    made = normalise(row, "messages", {}, "be kind")
    assert talk(made) == [("system", "be kind"), USER, ASSISTANT]
    assert made.untrained == {2}
    own = {"instruction": "q", "output": "a", "system": "mine"}
    assert talk(normalise(own, "alpaca", {}, "be kind"))[0] == ("system", "mine")


def test_placeholders_are_filled_in_every_text():
    value = {"a": ["I am {{name}}.", {"b": "{{name}} {{author}}"}], "n": 1}
    assert fill(value, {"name": "N", "author": "A"}, strict=True) == {"a": ["I am N.", {"b": "N A"}], "n": 1}


def test_an_unfilled_placeholder_is_a_fault_only_in_chats():
    with pytest.raises(RowFault, match=r"\{\{author\}\} has no value"):
        fill("{{name}} {{author}}", {"name": "N"}, strict=True)
    assert fill("{{name}} {{author}}", {"name": "N"}, strict=False) == "N {{author}}"
    assert fill("{{ spaced }} {{}} {{1}} {name}", {}, strict=True) == "{{ spaced }} {{}} {{1}} {name}"


def test_a_value_that_looks_like_a_placeholder_is_not_filled_again():
    assert fill("{{a}}", {"a": "{{b}}"}, strict=True) == "{{b}}"


@pytest.mark.parametrize(
    ("name", "columns", "what"),
    [
        ("auto", {"prompt": "q"}, "is not a part"),
        ("auto", {"user": "q"}, "needs `user` and `assistant`"),
        ("columns", {}, "needs `user` and `assistant`"),
        ("auto", {"user": "q", "assistant": "b"}, "has no column 'b'; it has `q`, `a`"),
        ("alpaca", {"user": "q", "assistant": "a"}, "is not used by data.format=alpaca"),
    ],
)
def test_wrong_columns_are_named(name, columns, what):
    with pytest.raises(UserError, match=what):
        format_of(Row("f", 1, {"q": "x", "a": "y"}), name, columns)


def test_the_reason_for_a_format_is_told():
    assert detect(Row("f", 1, {"question": "q", "answer": "a"})).why == "columns question, answer"
    assert format_of(Row("f", 1, {}), "alpaca", {}).why == "data.format names it"
