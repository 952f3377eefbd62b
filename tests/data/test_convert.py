from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from tunerun.data import read
from tunerun.data.convert import KINDS, Reading, as_json, convert
from tunerun.data.detect import format_of
from tunerun.data.normalise import normalise
from tunerun.data.rows import Conversation, Labelled, Row
from tunerun.data.split_file import split_file, targets
from tunerun.errors import UserError

AUTO = Reading()
CALL = {"name": "weather", "arguments": {"town": "Graz"}}
ROWS = [
    {"instruction": "Say hi.", "input": "", "output": "Hi.", "system": "Be brief.", "history": [["a", "b"]]},
    {"question": "你好？", "answer": "007"},
    {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "It is sunny."},
        ],
        "tools": json.dumps([{"name": "weather", "parameters": {}}]),
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a", "weight": 0},
            {"role": "user", "content": "r", "name": "Ann"},
            {"role": "assistant", "content": "b", "reasoning_content": "think"},
        ]
    },
    {"conversation": [{"system": "s", "input": "q", "output": "a"}, {"input": "r", "output": "b"}]},
    {"text": "A document.\n\nWith {{braces}} and \u2028 in it."},
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": False},
]


def rows_of(path: Path, reading: Reading = AUTO) -> list:
    """Reads a file to its rows in their one form."""
    found, form = [], None
    for file in read.find_files([str(path)]):
        form = None
        for row in read.read_file(file, reading.sheet):
            assert isinstance(row, Row)
            form = form or format_of(row, reading.format, reading.columns, KINDS)
            found.append(normalise(row.value, form))
    return found


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def converted(path: Path, target: Path, *, drop: bool = False, **reading):
    return convert(read.find_files([str(path)]), target, Reading(**reading), drop=drop)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row)[:40])
def test_what_is_written_reads_back_as_the_same_row(row, tmp_path):
    source = write(tmp_path / "in.jsonl", row, row)
    target = tmp_path / "out.jsonl"
    assert converted(source, target).rows == 2
    assert rows_of(target) == rows_of(source)
    again = tmp_path / "again.jsonl"
    converted(target, again)
    assert again.read_bytes() == target.read_bytes()


def test_the_written_form_is_that_of_openai(tmp_path):
    converted(write(tmp_path / "in.jsonl", ROWS[2]), tmp_path / "out.jsonl")
    row = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert row.keys() == {"messages", "tools"}
    call = row["messages"][1]["tool_calls"][0]
    assert json.loads(call["function"].pop("arguments")) == {"town": "Graz"}
    assert call == {"id": "call00000", "type": "function", "function": {"name": "weather"}}
    assert row["messages"][2]["tool_call_id"] == "call00000"
    assert row["tools"] == [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def test_pairs_and_labels_are_written_beside_their_prompt(tmp_path):
    converted(write(tmp_path / "in.jsonl", ROWS[6]), tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8")) == {
        "messages": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    messages = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    assert as_json(Labelled(Conversation(messages, None), True)) == {"messages": list(messages), "label": True}


def test_columns_are_taken_as_named(tmp_path):
    (tmp_path / "in.csv").write_text("id,Frage,Antwort\n1,q,a\n2,r,b\n")
    target = tmp_path / "out.jsonl"
    found = converted(tmp_path / "in.csv", target, columns={"user": "Frage", "assistant": "Antwort"})
    assert found.rows == 2
    assert [made.messages[1]["content"] for made in rows_of(target)] == ["a", "b"]


def test_bad_rows_are_all_listed_and_nothing_is_written(tmp_path):
    good, bad = {"question": "q", "answer": "a"}, {"question": "q", "answer": ""}
    source = write(tmp_path / "in.jsonl", good, bad, good, {"question": 7, "answer": "a"})
    target = tmp_path / "out.jsonl"
    with pytest.raises(UserError) as caught:
        converted(source, target)
    assert [problem.where for problem in caught.value.problems] == [f"{source}:2", f"{source}:4", "rows"]
    assert "2 of 4 rows" in str(caught.value)
    assert not target.exists()
    found = converted(source, target, drop=True)
    assert (found.rows, found.dropped, len(rows_of(target))) == (2, 2, 2)
    with pytest.raises(UserError, match="none of 1 rows"):
        converted(write(tmp_path / "bad.jsonl", bad), tmp_path / "none.jsonl", drop=True)


def test_documents_and_conversations_do_not_share_a_file(tmp_path):
    write(tmp_path / "a.jsonl", {"text": "a"})
    write(tmp_path / "b.jsonl", {"question": "q", "answer": "a"})
    with pytest.raises(UserError, match=r"text in .*a\.jsonl, conversations in .*b\.jsonl"):
        converted(tmp_path, tmp_path / "out.jsonl")


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "alpaca_en_demo.json",
        "alpaca_zh_demo.json",
        "identity.json",
        "glaive_toolcall_en_demo.json",
        "dpo_en_demo.json",
        "kto_en_demo.json",
        "c4_demo.jsonl",
        "wiki_demo.txt",
        "gsm8k_train.csv",
    ],
)
def test_public_files_read_back_as_the_same_rows(shared_dir, tmp_path, name):
    source, target = shared_dir / "data" / name, tmp_path / "out.jsonl"
    count = converted(source, target).rows
    assert rows_of(target) == rows_of(source)
    assert count == len(rows_of(target)) > 0


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_lines_are_split_with_the_bytes_they_had(tmp_path):
    rows = [f'{{ "question":"q{number}",  "answer" : "\\u00e9 {number}"}}\n'.encode() for number in range(200)]
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"".join(rows)[:-1] + b"\n\n")
    found = split_file(source, 0.3, 0, AUTO)
    assert (found.train.name, found.evaluated.name) == ("a-train.jsonl", "a-eval.jsonl")
    train, held = lines_of(found.train), lines_of(found.evaluated)
    assert (len(train), len(held)) == (found.train_rows, found.eval_rows)
    assert sorted(train + held) == sorted(rows)
    assert train == [row for row in rows if row in set(train)]
    assert 30 <= len(held) <= 90


def test_a_number_of_rows_is_split_off(tmp_path):
    source = write(tmp_path / "a.jsonl", *({"text": f"row {number}"} for number in range(50)))
    assert split_file(source, 7, 0, AUTO).eval_rows == 7


def test_a_table_keeps_its_header_its_mark_and_its_quoted_line_ends(tmp_path):
    records = [f'q{number},"a\r\n""{number}"""\r\n'.encode() for number in range(60)]
    source = tmp_path / "a.csv"
    source.write_bytes(b"\xef\xbb\xbfquestion,answer\r\n" + b"".join(records)[:-2])
    found = split_file(source, 0.4, 1, AUTO)
    for path, count in ((found.train, found.train_rows), (found.evaluated, found.eval_rows)):
        data = path.read_bytes()
        assert data.startswith(b"\xef\xbb\xbfquestion,answer\r\n")
        parsed = list(csv.DictReader(data.decode("utf-8-sig").splitlines(keepends=True)))
        assert len(parsed) == count
        assert all(row["answer"] == f'a\r\n"{row["question"][1:]}"' for row in parsed)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_elements_of_an_array_keep_their_bytes(indent, packed, tmp_path):
    rows = [{"instruction": f'q{number} ],{{"', "output": "a", "history": [["x", "y"]]} for number in range(60)]
    text = json.dumps(rows, indent=indent).encode()
    source = tmp_path / ("a.json.gz" if packed else "a.json")
    source.write_bytes(gzip.compress(text) if packed else text)
    found = split_file(source, 20, 0, AUTO)
    opened = gzip.open if packed else open
    halves = []
    for path in (found.train, found.evaluated):
        with opened(path, "rb") as file:
            halves.append(file.read())
    assert [len(json.loads(half)) for half in halves] == [40, 20]
    assert sorted(map(str, json.loads(halves[0]) + json.loads(halves[1]))) == sorted(map(str, rows))
    element = json.dumps(rows[0], indent=indent).replace("\n", "\n  ").encode()
    assert sum(element in half for half in halves) == 1


def test_equal_answers_with_other_columns_stay_on_one_side(tmp_path):
    rows = [{"id": copy, "question": f"q{number}", "answer": "a"} for number in range(40) for copy in range(2)]
    found = split_file(write(tmp_path / "a.jsonl", *rows), 0.5, 0, AUTO)
    sides = [{json.loads(line)["question"] for line in lines_of(path)} for path in (found.train, found.evaluated)]
    assert not sides[0] & sides[1]


def test_rows_of_no_known_format_are_split_all_the_same(tmp_path):
    found = split_file(write(tmp_path / "a.jsonl", *({"x": number} for number in range(40))), 0.5, 0, AUTO)
    assert found.form == "no known format"
    assert found.train_rows + found.eval_rows == 40


def test_what_cannot_be_split_is_said(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        targets(tmp_path, None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"tunerun data convert a\.parquet a\.jsonl"):
        targets(tmp_path / "a.parquet", None)
    same = write(tmp_path / "a.jsonl", *[{"text": "a"}] * 9)
    with pytest.raises(UserError, match="9 rows, which cannot be split"):
        split_file(same, 0.5, 0, AUTO)
    broken = write(tmp_path / "b.jsonl", *({"text": f"{number}"} for number in range(9)))
    broken.write_text(broken.read_text() + '{"text": \n')
    with pytest.raises(UserError, match=r"b\.jsonl:10"):
        split_file(broken, 0.5, 0, AUTO)
    assert [path.name for path in tmp_path.iterdir() if "-train" in path.name] == []
