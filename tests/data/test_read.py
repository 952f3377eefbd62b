from __future__ import annotations

import csv
import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunerun.data.read import find_files, read_rows
from tunerun.data.rows import BadRow, Row
from tunerun.errors import UserError


def rows_of(folder, name: str, content: bytes | str) -> list[Row | BadRow]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_rows(path))


def values(folder, name: str, content: bytes | str) -> list:
    found = rows_of(folder, name, content)
    assert all(isinstance(row, Row) for row in found), found
    return [row.value for row in found]


def places(folder, name: str, content: str) -> list[int]:
    return [row.line for row in rows_of(folder, name, content)]


texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(texts, json_values, max_size=5)


@given(st.lists(objects, min_size=1, max_size=8), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_a_json_array_says_what_was_written(tmp_path_factory, written, indent, ascii_only):
    folder = tmp_path_factory.getbasetemp()
    assert values(folder, "a.json", json.dumps(written, indent=indent, ensure_ascii=ascii_only)) == written


@given(st.lists(objects, min_size=1, max_size=8), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_json_lines_say_what_was_written(tmp_path_factory, written, newline):
    folder = tmp_path_factory.getbasetemp()
    content = newline.join(json.dumps(value, ensure_ascii=False) for value in written)
    assert values(folder, "a.jsonl", content) == written


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(
    st.lists(st.tuples(cells, cells, cells).filter(any), min_size=1, max_size=8),
    st.sampled_from(",\t;|"),
    st.sampled_from(["\r\n", "\n"]),
)
def test_csv_says_what_was_written(tmp_path_factory, written, delimiter, newline):
    folder = tmp_path_factory.getbasetemp()
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=newline, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "question", "answer"), *written])
    expected = [dict(zip(("id", "question", "answer"), row, strict=True)) for row in written]
    assert values(folder, "a.csv", file.getvalue()) == expected


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\ufeff")).filter(str.strip)


@given(st.lists(lines, min_size=1))
def test_text_lines_say_what_was_written(tmp_path_factory, written):
    folder = tmp_path_factory.getbasetemp()
    assert values(folder, "a.txt", "\n".join(written)) == written


def test_nothing_is_guessed_about_csv_values(tmp_path):
    content = "a,b,c\n007,NA,1e3\n,null,True\n 1 ,2024-01-01,1\n"
    assert values(tmp_path, "a.csv", content) == [
        {"a": "007", "b": "NA", "c": "1e3"},
        {"a": "", "b": "null", "c": "True"},
        {"a": " 1 ", "b": "2024-01-01", "c": "1"},
    ]


def test_json_types_stay(tmp_path):
    assert values(tmp_path, "a.jsonl", '{"a": "1"}\n{"a": 2}\n{"a": [1, "x", null]}\n') == [
        {"a": "1"},
        {"a": 2},
        {"a": [1, "x", None]},
    ]


def test_lines_are_where_rows_start(tmp_path):
    assert places(tmp_path, "a.jsonl", '\n{"a": 1}\n\n{"a": 2}\n') == [2, 4]
    assert places(tmp_path, "a.json", '[\n\n  {"a": 1}, {"a":\n 2},\n{"a": 3}]\n') == [3, 3, 5]
    assert places(tmp_path, "a.csv", 'q,a\n"x\ny\r\nz",1\n\nb,2\n') == [2, 6]
    assert places(tmp_path, "a.txt", "one\n\n \nfour\n") == [1, 4]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_though_others_are_in_the_text(tmp_path, delimiter):
    lines = [("question", "answer"), ("a, b; c | d", "e"), ("f", "g, h, i"), ("j;k", "l")]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(lines)
    assert values(tmp_path, "a.csv", file.getvalue())[1] == {"question": "f", "answer": "g, h, i"}


def test_a_file_of_one_column_is_read(tmp_path):
    assert values(tmp_path, "a.csv", "text\nhello\n") == [{"text": "hello"}]


def test_the_content_of_json_files_decides_not_their_name(tmp_path):
    assert values(tmp_path, "a.jsonL", '[{"a": 1}, {"a": 2}]') == [{"a": 1}, {"a": 2}]
    assert values(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]
    assert values(tmp_path, "b.json", '{\n  "a": 1\n}\n') == [{"a": 1}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_the_mark_of_utf8_is_skipped(tmp_path, name):
    content = {"a.json": '[{"q": 1}]', "a.jsonl": '{"q": 1}', "a.csv": "q\n1\n", "a.txt": "q"}[name]
    expected = {"a.csv": {"q": "1"}, "a.txt": "q"}.get(name, {"q": 1})
    assert values(tmp_path, name, b"\xef\xbb\xbf" + content.encode()) == [expected]


def test_gzip_is_found_by_content(tmp_path):
    packed = gzip.compress(b'{"a": 1}\n')
    assert values(tmp_path, "a.jsonl.gz", packed) == values(tmp_path, "b.jsonl", packed) == [{"a": 1}]


def test_values_longer_than_a_chunk_are_read(tmp_path):
    written = [{"a": "x" * 200_000 + "\\\u4f60" * 50_000}, {"b": list(range(60_000))}, {"c": 1}]
    assert values(tmp_path, "a.json", json.dumps(written)) == written
    assert values(tmp_path, "b.json", json.dumps(written, ensure_ascii=False)) == written


@pytest.mark.parametrize("padding", range(65_500, 65_545, 4))
def test_a_chunk_may_end_anywhere_in_a_value(tmp_path, padding):
    written = [{"p": "x" * padding}, {"k": [1234567, True, None, -1.5e3, "\u4f60\n"]}, {"last": "\U0001f600"}]
    assert values(tmp_path, "a.json", json.dumps(written)) == written


def test_rows_are_streamed(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" + '{"a": 1},' * 50_000 + "broken")
    rows = read_rows(path)
    assert next(rows).value == {"a": 1}
    with pytest.raises(UserError, match="Expecting value"):
        list(rows)


def test_folders_stand_for_their_data_files_in_order(tmp_path):
    for name in ("b.jsonl", "a.csv", "c.txt.gz", "notes.md", ".hidden.json"):
        (tmp_path / name).write_text("x")
    assert [file.path.name for file in find_files([str(tmp_path)])] == ["a.csv", "b.jsonl", "c.txt.gz"]


def test_a_folder_may_list_its_files(tmp_path):
    for name in ("b.jsonl", "a.csv", "other.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "dataset.json").write_text('{"files": ["b.jsonl", "a.csv"]}')
    assert [file.path.name for file in find_files([str(tmp_path)])] == ["b.jsonl", "a.csv"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "is not valid JSON"),
        ("[]", "does not list"),
        ('{"files": []}', "does not list"),
        ('{"files": ["a"], "file": [1]}', "unknown key 'file'. Did you mean 'files'"),
        ('{"files": ["a.csv"]}', r"file 1 does not exist: a\.csv"),
    ],
)
def test_a_wrong_list_of_files_is_named(tmp_path, content, what):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=what) as caught:
        find_files([str(tmp_path)])
    assert caught.value.problems[0].where == str(tmp_path / "dataset.json")


def test_all_missing_paths_are_reported_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        find_files([str(tmp_path / "no.json"), str(tmp_path / "empty"), str(tmp_path / "nor.csv")])
    assert len(caught.value.problems) == 3
