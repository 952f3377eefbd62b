"""Hand-made broken files: each is refused with the right file, line and reason, and nothing is written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tunerun.base_model import BaseModel, write_base
from tunerun.config.schema import DataConfig, ObjectiveConfig
from tunerun.data import stage
from tunerun.errors import UserError
from tunerun.plan.steps import DataStep

GOOD = '{"instruction": "q", "output": "a"}\n'
CALL = '{"name": "f", "arguments": {}}'


def row(**fields) -> str:
    return json.dumps(fields) + "\n"


def alpaca(**fields) -> str:
    return GOOD + row(**{"instruction": "q", "output": "a", **fields})


def sharegpt(*turns: tuple[str, object], **fields) -> str:
    talk = [{"from": speaker, "value": value} for speaker, value in turns]
    return row(conversations=[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]) + row(
        conversations=talk, **fields
    )


def messages(*items: object, **fields) -> str:
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return row(messages=good) + row(messages=list(items), **fields)


def said(role: str, content: object = "x", **fields) -> dict:
    return {"role": role, "content": content, **fields}


# Name, content, line (None: the file), and what the message says.
FILES: list[tuple[str, str | bytes, int | None, str]] = [
    ("empty.json", "", None, "is empty"),
    ("blank.jsonl", " \n\n", None, "is empty"),
    ("mark_only.csv", b"\xef\xbb\xbf", None, "is empty"),
    ("no_rows.json", "[]", None, "holds no rows"),
    ("header_only.csv", "question,answer\n", None, "holds no rows"),
    ("utf16.jsonl", GOOD.encode("utf-16"), None, "UTF-16"),
    ("utf16_big.csv", b"\xfe\xff" + "q,a\n".encode("utf-16-be"), None, "UTF-16"),
    ("utf16_unmarked.jsonl", GOOD.encode("utf-16-le"), 1, "NUL byte"),
    ("utf32.jsonl", GOOD.encode("utf-32"), None, "UTF-32"),
    ("zip.json", b"PK\x03\x04rest", None, "a zip archive"),
    ("parquet.json", b"PAR1rest", None, "Parquet"),
    ("arrow.json", b"ARROW1rest", None, "Arrow"),
    ("zstd.jsonl", b"\x28\xb5\x2f\xfdrest", None, "zstd"),
    ("pdf.txt", b"%PDF-1.4", None, "a PDF"),
    ("cut.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-12], None, "damaged or cut off"),
    ("bad.jsonl.gz", b"\x1f\x8b\x08\x00rest of no gzip file", None, "damaged or cut off"),
    ("latin1.jsonl", GOOD.encode() + '{"instruction": "é", "output": "a"}\n'.encode("latin-1"), 2, "byte 0xe9"),
    ("latin1.json", b'[\n{"instruction": "\xe9", "output": "a"}]', 2, "byte 0xe9"),
    ("latin1.csv", b"question,answer\na,b\n\xe9,c\n", 3, "byte 0xe9"),
    ("cut_utf8.txt", "é".encode()[:1], 1, "not UTF-8"),
    ("nul.jsonl", GOOD + '{"instruction": "\0", "output": "a"}\n', 2, "NUL byte"),
    ("nul_late.csv", "question,answer\n" + f"{'q' * 99},a\n" * 700 + "q,\0\n", 702, "NUL byte"),
    ("cut.jsonl", GOOD + '{"instruction": "q", "out', 2, "Unterminated string"),
    ("quotes.jsonl", GOOD + "{'instruction': 'q'}\n", 2, "double quotes"),
    ("comma.jsonl", GOOD + '{"instruction": "q",}\n', 2, "column 20|column 21"),
    ("nan.jsonl", GOOD + '{"instruction": NaN}\n', 2, "NaN is not JSON"),
    ("twice.jsonl", GOOD + '{"output": "a", "output": "b"}\n', 2, "'output' is there twice"),
    ("two_values.jsonl", GOOD + GOOD.strip() + GOOD, 2, "Extra data"),
    ("number.jsonl", GOOD + "1" * 5000 + "\n", 2, "Exceeds the limit"),
    ("deep.jsonl", GOOD + "[" * 100_000 + "]" * 100_000, 2, "nested too deeply"),
    ("deep.json", "[\n" + "[" * 100_000 + "]" * 100_000 + "]", 2, "nested too deeply"),
    ("scalar.jsonl", GOOD + "7\n", 2, "the row is a number, not an object"),
    ("null.jsonl", GOOD + "null\n", 2, "the row is null"),
    ("cut.json", '[{"instruction": "q", "output": "a"},\n{"instruction": "q"', 2, "cut off"),
    ("cut_after.json", '[{"instruction": "q", "output": "a"}\n', 2, "cut off"),
    ("comma.json", '[{"instruction": "q", "output": "a"}\n{"a": 1}]', 2, "comma is missing"),
    ("trailing.json", '[{"instruction": "q", "output": "a"},\n]', 2, "Expecting value"),
    ("more.json", '[{"instruction": "q", "output": "a"}]\n[]', 2, "more text after the end"),
    ("pretty.jsonl", '{\n"instruction": "q", "output": "a"\n}\n{\n}\n', 4, "more text after the first value"),
    ("unclosed.csv", 'question,answer\na,b\n"c,d\ne,f\n', 3, "never closed"),
    ("quote.csv", 'question,answer\n"a"x,b\n', 2, "expected after"),
    ("columns.csv", "question,answer\na,b\nc,d,e\nf\n", 3, "3 columns where the header has 2"),
    ("same_header.csv", "question,question\na,b\n", 1, "'question' is there twice"),
    ("no_title.csv", "question,,answer\na,b,c\n", 1, "column 2 of the header has no name"),
    ("unknown.csv", "colour,size\nred,1\n", 2, "no known format has the keys `colour`, `size`"),
    ("unknown.jsonl", row(x=1), 1, "no known format has the keys `x`"),
    ("pairs.jsonl", row(prompt="q", chosen="a", rejected="b"), 1, "pairs of a better and a worse answer"),
    ("labels.jsonl", row(messages=[], label=True), 1, "labelled good or bad"),
    ("text.txt", "just text\n", 1, "plain text"),
    ("missing.jsonl", GOOD + row(instruction="q"), 2, "`output` is missing"),
    ("type.jsonl", alpaca(output=3), 2, "`output` is a number, not a text"),
    ("list.jsonl", alpaca(input=["a"]), 2, "`input` is a list, not a text"),
    ("blank_answer.jsonl", alpaca(output=" \n"), 2, "assistant's, is empty"),
    ("blank_prompt.jsonl", alpaca(instruction=" "), 2, "user's, is empty"),
    ("history.jsonl", alpaca(history=[["q"]]), 2, "not a pair"),
    ("placeholder.jsonl", alpaca(output="I am {{name}}."), 2, "{{name}} has no value"),
    ("surrogate.jsonl", GOOD + '{"instruction": "\\ud83d", "output": "a"}\n', 2, "half a surrogate pair"),
    ("speaker.jsonl", sharegpt(("alien", "x")), 2, "'alien'"),
    ("answer_first.jsonl", sharegpt(("gpt", "x")), 2, "starts the conversation"),
    ("two_answers.jsonl", sharegpt(("human", "q"), ("gpt", "a"), ("gpt", "b")), 2, "follows an assistant message"),
    ("ends_with_user.jsonl", sharegpt(("human", "q"), ("gpt", "a"), ("human", "r")), 2, "ends with the assistant"),
    ("no_turns.jsonl", sharegpt(), 2, "there is no message"),
    ("turn_text.jsonl", sharegpt(("human", None)), 2, "`value` of turn 1 is null"),
    ("call_json.jsonl", sharegpt(("human", "q"), ("function_call", "{f}"), ("observation", "1")), 2, "is not JSON"),
    ("call_name.jsonl", sharegpt(("human", "q"), ("function_call", "{}"), ("observation", "1")), 2, "needs `name`"),
    ("no_result.jsonl", sharegpt(("human", "q"), ("function_call", CALL), ("gpt", "a")), 2, "follows a tool call"),
    ("result_only.jsonl", sharegpt(("human", "q"), ("observation", "1"), ("gpt", "a")), 2, "tool. follows a user"),
    ("tools.jsonl", sharegpt(("human", "q"), ("gpt", "a"), tools="[{]"), 2, "`tools` is not JSON"),
    ("tool_name.jsonl", sharegpt(("human", "q"), ("gpt", "a"), tools=[{}]), 2, "a tool has no name"),
    ("role.jsonl", messages(said("bot")), 2, "'bot'"),
    ("no_role.jsonl", messages({"content": "x"}), 2, "is missing"),
    ("late_system.jsonl", messages(said("user"), said("system"), said("assistant")), 2, "system. follows a user"),
    ("image.jsonl", messages(said("user", [{"type": "image_url", "image_url": "x"}])), 2, "not text"),
    ("weight.jsonl", messages(said("user"), said("assistant", weight=0.5)), 2, "neither 0 nor 1"),
    ("arguments.jsonl", messages(said("user"), said("assistant", None, tool_calls=[
        {"function": {"name": "f", "arguments": "[1]"}}])), 2, "not an object"),
    ("half_argument.jsonl", messages(said("user"), said("assistant", None, tool_calls=[
        {"function": {"name": "f", "arguments": {"x": "\ud83d"}}}])), 2, "half a surrogate pair"),
    ("half_tool.jsonl", messages(said("user"), said("assistant"), tools=[{"name": "f", "description": "\udc00"}]), 2,
     "half a surrogate pair"),
    ("nested.jsonl", GOOD + '{"instruction": "q", "output": "a", "x": ' + "[" * 900 + "]" * 900 + "}\n", 2,
     "nested too deeply"),
    ("nested_tool.jsonl", messages(said("user"), said("assistant"), tools="[" * 400 + "]" * 400), 2, "not an object"),
    ("user_call.jsonl", messages(said("user", tool_calls=[json.loads(CALL)])), 2, "not the assistant's"),
]  # fmt: skip


@pytest.fixture
def run(tmp_path, chat_folder):
    def call(*files: Path, kind: str = "sft", **settings) -> None:
        write_base(tmp_path, BaseModel(folder=chat_folder, path="small", revision=None, sha256=""))
        data = DataConfig(path=tuple(map(str, files)), **settings)
        step = DataStep(data=data, objective=ObjectiveConfig(kind=kind), chat_template=None, seed=0)
        stage.run(step, tmp_path)

    return call


@pytest.mark.parametrize(("name", "content", "line", "what"), FILES, ids=[file[0] for file in FILES])
def test_a_broken_file_is_refused_at_its_line(tmp_path, run, name, content, line, what):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=what) as caught:
        run(path)
    assert caught.value.problems[0].where == (f"{path}:{line}" if line else str(path))
    left = {item.name for item in tmp_path.iterdir()} - {"data.failed"}
    assert left == {name, "model.json"}


def test_every_fault_of_every_file_is_listed_at_once(tmp_path, run):
    (tmp_path / "a.jsonl").write_text(alpaca(output="") + "{\n")
    (tmp_path / "b.csv").write_text('question,answer\n"a,b\n')
    (tmp_path / "c.json").write_text("")
    with pytest.raises(UserError) as caught:
        run(tmp_path / "a.jsonl", tmp_path / "b.csv", tmp_path / "c.json")
    places = {problem.where.removeprefix(f"{tmp_path}/") for problem in caught.value.problems}
    assert places == {"a.jsonl:2", "a.jsonl:3", "b.csv:2", "c.json", "data.on_bad_rows"}


def test_a_line_that_never_ends_is_refused_with_bounded_memory(tmp_path, run, monkeypatch):
    from tunerun.data.read import json_rows, source

    for module in (json_rows, source):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 1 << 20)
    for name, content, what in (
        ("long.jsonl", '{"instruction": "' + "x" * (2 << 20), "longer than 1 MiB"),
        ("long.json", '[{"instruction": "' + "x" * (4 << 20), "longer than 1 MiB"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=what) as caught:
            run(tmp_path / name)
        assert caught.value.problems[0].where == f"{tmp_path / name}:1"


def test_a_field_of_a_megabyte_is_only_a_long_row(tmp_path, run):
    (tmp_path / "a.csv").write_text("question,answer\n" + "q " * (1 << 19) + ",a\n")
    run(tmp_path / "a.csv", max_length=64)
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    assert report["truncated"] == 1
    assert report["truncated_answers"] == 0


def test_paths_that_cannot_be_read(tmp_path, run):
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for path, what in (
        (tmp_path / "loop.json", "leads to no file"),
        (tmp_path / "none.json", "does not exist"),
        (tmp_path / "model.bin", "not a kind of file"),
    ):
        if path.suffix == ".bin":
            path.write_bytes(b"x")
        with pytest.raises(UserError, match=what):
            run(path)
