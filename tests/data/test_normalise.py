from __future__ import annotations

import json

import pytest

from tunerun.data.detect import format_of
from tunerun.data.normalise import normalise
from tunerun.data.rows import Row, RowFault, RowKind, Text


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
        ({"instruction": "do", "response": "a", "context": "this"}, [("user", "do\nthis"), ASSISTANT]),
        ({"Instruction": "do", "Input": "this", "Output": "a"}, [("user", "do\nthis"), ASSISTANT]),
        ({"system_prompt": "s", "question": "q", "response": "a"}, [("system", "s"), USER, ASSISTANT]),
        ({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
         [USER, ASSISTANT]),
        ({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
         [USER, ASSISTANT]),
        ({"system": "s", "messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
         [("system", "s"), USER, ASSISTANT]),
        ({"conversation": [{"system": "s", "input": "q", "output": "a"}, {"system": "s", "input": "q", "output": "a"}]},
         [("system", "s"), USER, ASSISTANT, USER, ASSISTANT]),
        ({"问题": "q", "回答": "a"}, [USER, ASSISTANT]),
    ],
)  # fmt: skip
def test_formats_are_found_and_read(value, expected):
    assert talk(read(value)) == expected


def test_columns_are_picked_by_name_before_anything_else():
    value = {"instruction": "no", "output": "no", "A": "q", "D": "a", "S": " "}
    assert talk(read(value, user="A", assistant="D", system="S")) == [USER, ASSISTANT]
    assert read({"body": "x", "text": "y"}, "text", text="body") == Text("x")


def test_plain_text_rows_and_lines():
    assert read("line", "text") == Text("line")
    assert read({"text": "x", "url": "y"}, "text") == Text("x")
    assert read({"conversation": [{"input": "", "output": "x"}, {"input": "", "output": "y"}]}, "text") == Text("x\ny")
    with pytest.raises(RowFault, match="empty"):
        read({"text": " "}, "text")


def test_an_input_that_the_first_row_lacks_is_read_in_later_rows():
    form = format_of(Row("f", 1, {"instruction": "q", "output": "a"}), "auto", {}, ("conversations",))
    assert talk(normalise({"instruction": "q", "input": "x", "output": "a"}, form))[0] == ("user", "q\nx")


def test_a_system_prompt_that_changes_within_a_conversation_is_a_fault():
    turns = [{"system": "s", "input": "q", "output": "a"}, {"system": "other", "input": "q", "output": "a"}]
    with pytest.raises(RowFault, match=r"message 4 \(system\)"):
        read({"conversation": turns})


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
    form = format_of(Row("f", 1, {"messages": []}), "auto", {}, ("conversations",))
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}
    made = normalise(row, form, "be kind")
    assert talk(made) == [("system", "be kind"), USER, ASSISTANT]
    assert made.untrained == {2}
    own = {"messages": [{"role": "system", "content": "mine"}, *row["messages"]]}
    assert talk(normalise(own, form, "be kind"))[0] == ("system", "mine")
    replaced = normalise(own, form, "be kind", override=True)
    assert (talk(replaced)[0], replaced.untrained) == (("system", "be kind"), {2})
    removed = normalise(own, form, "", override=True)
    assert (talk(removed), removed.untrained) == ([USER, ASSISTANT], {1})


USER_TURN, GOOD, BAD = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": "b"},
)


@pytest.mark.parametrize(
    "value",
    [
        {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}},
        {"prompt": [USER_TURN], "chosen": [GOOD], "rejected": [BAD]},
        {"messages": [USER_TURN], "chosen": GOOD, "rejected": BAD},
        {"chosen": [USER_TURN, GOOD], "rejected": [USER_TURN, BAD]},
        {"prompt": "q", "chosen": [USER_TURN, GOOD], "rejected": [USER_TURN, BAD]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ],
)  # fmt: skip
def test_preference_pairs_of_any_form_have_one_prompt_and_two_answers(value):
    made = read(value, "pairs")
    assert talk(made.chosen) == [USER, ASSISTANT]
    assert talk(made.rejected) == [USER, ("assistant", "b")]
    assert made.chosen.untrained == made.rejected.untrained == frozenset()


def test_earlier_answers_of_a_pair_are_not_trained():
    made = read({"chosen": [USER_TURN, BAD, USER_TURN, GOOD], "rejected": [USER_TURN, BAD, USER_TURN, BAD]}, "pairs")
    assert made.chosen.untrained == made.rejected.untrained == {1}
    made = read({"system": "s", "prompt": [USER_TURN, BAD, USER_TURN], "chosen": "a", "rejected": "b"}, "pairs")
    assert made.chosen.untrained == {2}


def test_a_tool_call_and_the_answer_after_it_are_one_side():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    good = [call, {"role": "tool", "content": "1"}, GOOD]
    made = read({"prompt": [USER_TURN], "chosen": good, "rejected": [BAD], "tools": [{"name": "f"}]}, "pairs")
    assert (len(made.chosen.messages), made.chosen.untrained) == (4, frozenset())
    assert made.rejected.tools[0]["function"]["name"] == "f"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "same-answers"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty-answer"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "wrong-type"),
        ({"chosen": [USER_TURN, GOOD], "rejected": [{"role": "user", "content": "other"}, BAD]}, "prompts-differ"),
        ({"prompt": "other", "chosen": [USER_TURN, GOOD], "rejected": [USER_TURN, BAD]}, "prompts-differ"),
        ({"chosen": "a", "rejected": "b"}, "role-order"),
    ],
)
def test_faults_of_pairs_are_named(value, reason):
    with pytest.raises(RowFault) as caught:
        read(value, "pairs")
    assert caught.value.reason == reason


@pytest.mark.parametrize(("label", "expected"), [(True, True), (0, False), ("TRUE ", True), ("0", False)])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "output": "a"},
        {"messages": [USER_TURN, GOOD]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ],
)
def test_labels_of_any_form_are_read(row, label, expected):
    made = read({**row, "label": label}, "labels")
    assert (talk(made.conversation), made.desirable) == ([USER, ASSISTANT], expected)


def test_a_label_judges_the_last_answer_or_the_completion():
    made = read({"messages": [USER_TURN, BAD, USER_TURN, GOOD], "label": True}, "labels")
    assert made.conversation.untrained == {1}
    made = read({"prompt": [USER_TURN, BAD, USER_TURN], "completion": [GOOD], "label": True}, "labels")
    assert made.conversation.untrained == {1}


def test_a_label_that_is_none_is_a_fault():
    form = format_of(Row("f", 1, {"prompt": "q", "completion": "a", "label": 1}), "auto", {}, ("labels",))
    for label in ("maybe", None, 2):
        with pytest.raises(RowFault, match="neither true nor false"):
            normalise({"prompt": "q", "completion": "a", "label": label}, form)


def test_the_advised_columns_imitate_whole_conversations():
    assert talk(read({"chosen": [USER_TURN, GOOD], "rejected": [USER_TURN, BAD]}, assistant="chosen")) == [
        USER,
        ASSISTANT,
    ]
    assert talk(read({"messages": [USER_TURN, GOOD], "label": True}, assistant="messages")) == [USER, ASSISTANT]


def test_openais_own_preference_rows_are_read_with_their_tools():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    value = {
        "input": {"messages": [{"role": "user", "content": "q"}], "tools": [tool], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "a"}],
        "non_preferred_output": [{"role": "assistant", "content": "b"}],
    }
    made = read(value, "pairs")
    assert (talk(made.chosen), talk(made.rejected)) == ([USER, ASSISTANT], [USER, ("assistant", "b")])
    assert made.chosen.tools == (tool,)
