from __future__ import annotations

import pytest

from tunerun.data.detect import format_of
from tunerun.data.rows import Row
from tunerun.errors import UserError

TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ANSWERS = {"chosen": "a", "rejected": "b"}


def found(value: object, *wanted: str, name: str = "auto", columns: dict | None = None, letters: dict | None = None):
    return format_of(Row("f", 1, value, letters), name, columns or {}, wanted or ("conversations",))


@pytest.mark.parametrize(
    ("value", "kind", "name", "columns"),
    [
        ("a line", "text", "text", {}),
        ({"text": "t", "url": "u"}, "text", "text", {"text": "text"}),
        ({"text": "t", "question": "q", "answer": "a"}, "text", "text", {"text": "text"}),
        ({"conversation": [{"input": "", "output": "t"}]}, "text", "xtuner", {}),
        ({"messages": MESSAGES}, "conversations", "messages", {}),
        ({"conversations": TURNS, "tools": "[]"}, "conversations", "sharegpt", {}),
        ({"conversation": [{"input": "q", "output": "a"}]}, "conversations", "xtuner", {}),
        ({"instruction": "q", "output": "a"}, "conversations", "alpaca",
         {"user": "instruction", "assistant": "output"}),
        ({"Question": "q", "Answer": "a"}, "conversations", "columns", {"user": "Question", "assistant": "Answer"}),
        ({"text": "t", "question": "q", "answer": "a"}, "conversations", "columns",
         {"user": "question", "assistant": "answer"}),
        ({"question": "q", "answer": "a", "label": 3}, "conversations", "columns",
         {"user": "question", "assistant": "answer"}),
        ({"messages": MESSAGES, **ANSWERS}, "conversations", "messages", {}),
        ({"instruction": "q", **ANSWERS}, "pairs", "alpaca", {"user": "instruction", **{k: k for k in ANSWERS}}),
        ({"conversations": TURNS[:1], **ANSWERS}, "pairs", "sharegpt", {k: k for k in ANSWERS}),
        ({"question": "q", "system": "s", **ANSWERS}, "pairs", "columns",
         {"user": "question", "system": "system", **{k: k for k in ANSWERS}}),
        ({"chosen": MESSAGES, "rejected": MESSAGES}, "pairs", "columns", {k: k for k in ANSWERS}),
        ({"messages": MESSAGES, "label": True}, "labels", "messages", {"label": "label"}),
        ({"conversations": TURNS, "kto_tag": False}, "labels", "sharegpt", {"label": "kto_tag"}),
        ({"prompt": "q", "completion": "a", "label": 0}, "labels", "columns",
         {"user": "prompt", "assistant": "completion", "label": "label"}),
        ({"instruction": "q", "output": "a", "kto_tag": "true"}, "labels", "alpaca",
         {"user": "instruction", "assistant": "output", "label": "kto_tag"}),
    ],
)  # fmt: skip
def test_a_row_is_read_as_what_the_objective_learns_from(value, kind, name, columns):
    form = found(value, kind)
    assert (form.kind, form.name, dict(form.columns)) == (kind, name, columns)


@pytest.mark.parametrize(
    ("value", "wanted", "what", "fix"),
    [
        ({"text": "t"}, "conversations", r"plain text \(key text\)", "objective=pretrain"),
        ({"messages": MESSAGES}, "text", "conversations to imitate", "objective=sft"),
        ({"conversations": TURNS[:1], **ANSWERS}, "conversations", "pairs of a better and a worse answer",
         "objective=dpo, or imitate the better answers: data.columns.assistant=chosen"),
        ({"prompt": "q", **ANSWERS}, "text", "pairs of a better", "objective=dpo"),
        ({"messages": MESSAGES, "label": False}, "conversations", "labelled good or bad",
         "objective=kto, or imitate all answers, bad ones too: data.columns.assistant=messages"),
        ({"prompt": "q", "completion": "a", "label": "False"}, "conversations", "labelled good or bad",
         "data.columns.assistant=completion"),
        ({"prompt": "q", "completion": "a", "label": True}, "pairs", "labelled good or bad", "objective=kto"),
        ({"question": "q", "answer": "a"}, "pairs", r"imitate \(columns question, answer\)", "`chosen` and `rejected`"),
        ({"question": "q", "answer": "a"}, "labels", "conversations to imitate", "`label`, true for a good answer"),
    ],
)  # fmt: skip
def test_rows_that_another_objective_learns_from_are_refused_with_the_way_out(value, wanted, what, fix):
    with pytest.raises(UserError, match=what) as caught:
        found(value, wanted)
    (problem,) = caught.value.problems
    assert problem.where == "f:1"
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ({"conversations": TURNS[:1], **ANSWERS}, "chosen"),
        ({"chosen": MESSAGES, "rejected": MESSAGES}, "chosen"),
        ({"messages": MESSAGES, "label": True}, "messages"),
        ({"prompt": "q", "completion": "a", "label": True}, "completion"),
    ],
)
def test_the_advised_column_makes_conversations_of_other_rows(value, answer):
    assert found(value, columns={"assistant": answer}).kind == "conversations"


def test_kto_learns_from_pairs_too_but_from_labels_first():
    assert found({"prompt": "q", **ANSWERS}, "labels", "pairs").kind == "pairs"
    assert found({"prompt": "q", "completion": "a", "label": True, **ANSWERS}, "labels", "pairs").kind == "labels"


def test_columns_are_found_by_a_workbooks_letters():
    form = found({"Frage": "q", "Antwort": "a"}, columns={"user": "A", "assistant": "b"},
                 letters={"A": "Frage", "B": "Antwort"})  # fmt: skip
    assert form.columns == {"user": "Frage", "assistant": "Antwort"}


def test_columns_that_are_not_named_are_found():
    assert found({"body": "q", "answer": "a"}, columns={"user": "body"}).columns["assistant"] == "answer"


@pytest.mark.parametrize(
    ("name", "columns", "where", "what"),
    [
        ("auto", {"prompt": "q"}, "data.columns.prompt", "is not a part"),
        ("auto", {"user": "q"}, "data.columns", "names too few columns for conversations"),
        ("columns", {}, "data.columns", "names too few columns"),
        ("auto", {"user": "q", "assistant": "b"}, "data.columns.assistant", "has no column 'b'; it has `q`, `a`"),
        ("alpaca", {"user": "q"}, "data.columns.user", "is not used by data.format=alpaca"),
        ("auto", {}, "f:1", "no known format has the keys `q`, `a`"),
    ],
)
def test_wrong_columns_are_named(name, columns, where, what):
    with pytest.raises(UserError, match=what) as caught:
        found({"q": "x", "a": "y"}, name=name, columns=columns)
    assert caught.value.problems[0].where == where


def test_columns_of_a_source_are_named_as_its_own():
    with pytest.raises(UserError) as caught:
        format_of(Row("f", 1, {"q": "x"}), "auto", {"user": "z"}, ("conversations",), "data.sources.mine")
    assert caught.value.problems[0].where == "data.sources.mine.columns.user"


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("data", "Name them: data.columns.user=PROMPT_COLUMN data.columns.assistant=ANSWER_COLUMN"),
        ("data.sources.mine", "Name them: data.sources.mine.columns.user=PROMPT_COLUMN data.sources.mine.columns."),
        ("--", "Name them: --columns user=PROMPT_COLUMN,assistant=ANSWER_COLUMN"),
        ("dataset.json", 'Name them: "columns": {"user": "PROMPT_COLUMN", "assistant": "ANSWER_COLUMN"}'),
    ],
)
def test_the_fix_names_columns_as_one_would_type_them_there(key, fix):
    with pytest.raises(UserError) as caught:
        format_of(Row("f", 1, {"q": "x"}), "auto", {}, ("conversations",), key)
    assert caught.value.problems[0].fix.startswith(fix)


def test_a_column_with_a_blank_is_quoted_for_the_shell():
    row = {"prompt": "q", "my chosen": "a", "rejected": "b"}
    with pytest.raises(UserError) as caught:
        found(row, columns={"chosen": "my chosen"})
    assert caught.value.problems[0].fix.endswith(" 'data.columns.assistant=my chosen'")


def test_a_mistyped_column_is_guessed():
    with pytest.raises(UserError) as caught:
        found({"Question": "x", "a": "y"}, columns={"user": "question", "assistant": "zz"})
    assert [problem.fix for problem in caught.value.problems] == ["Did you mean `Question`?", ""]


def test_the_reason_for_a_format_is_told():
    assert found({"question": "q", "answer": "a"}).why == "columns question, answer"
    assert found({}, name="alpaca").why == "data.format names it"
    assert found({"body": "q", "answer": "a"}, columns={"user": "body"}).why == (
        "data.columns names body; column answer"
    )


def test_a_named_format_is_believed():
    form = found({"instruction": "q", "output": "a", "messages": []}, name="alpaca")
    assert (form.name, form.kind) == ("alpaca", "conversations")
    assert found({"instruction": "q", **ANSWERS}, "pairs", name="alpaca").kind == "pairs"
    assert found({"body": 1}, name="sharegpt").name == "sharegpt"
    assert found({"text": "t"}, "text", name="text").columns == {"text": "text"}


def test_rows_of_no_kind_are_refused():
    with pytest.raises(UserError, match="neither an object nor a line"):
        found(["a"])
