from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
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


@given(st.lists(objects, min_size=2, max_size=8), st.sampled_from(["\n", "\r\n", "\n\n"]))
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
        ('{"files": ["a"], "file": [1]}', "unknown key 'file'. Did you mean files?"),
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


def zst(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
@pytest.mark.parametrize("pack", [gzip.compress, zst])
def test_every_text_may_be_packed(tmp_path, name, pack):
    content = {"a.json": b'[{"q": 1}]', "a.jsonl": b'{"q": 1}', "a.csv": b"q\n1\n", "a.txt": b"q"}[name]
    packed = f"{name}.{'zst' if pack is zst else 'gz'}"
    assert values(tmp_path, packed, pack(b"\xef\xbb\xbf" + content)) == values(tmp_path, name, content)


@pytest.mark.parametrize("pack", [gzip.compress, zst])
def test_several_packed_frames_are_one_text(tmp_path, pack):
    parts = [b'{"a"', b": 1}\n", b"", b'{"a": 2}\n' + b" " * 200_000]
    assert values(tmp_path, "a.jsonl.zst", b"".join(map(pack, parts))) == [{"a": 1}, {"a": 2}]


def test_packed_files_in_folders_are_found(tmp_path):
    for name in ("a.jsonl.zst", "b.csv.GZ", "c.xlsx", "d.parquet.gz", "e.md"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "f.json").mkdir()
    assert [file.path.name for file in find_files([str(tmp_path)])] == ["a.jsonl.zst", "b.csv.GZ", "c.xlsx"]


def test_a_folder_of_thousands_of_files_is_listed_in_order(tmp_path):
    names = [f"{number:05}.jsonl" for number in range(3000)]
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [file.path.name for file in find_files([str(tmp_path)])] == names


def test_a_list_of_files_says_what_each_needs(tmp_path):
    for name in ("a.jsonl", "b.xlsx"):
        (tmp_path / name).write_text("x")
    entry = {"path": "b.xlsx", "sheet": "DrugQA", "columns": {"user": "A", "assistant": "D"}, "format": "columns"}
    (tmp_path / "dataset.json").write_text(json.dumps({"files": ["a.jsonl", entry]}))
    first, second = find_files([str(tmp_path)])
    assert (first.sheet, first.columns, first.format) == (None, {}, None)
    assert second.path == tmp_path / "b.xlsx"
    assert (second.sheet, second.columns, second.format) == ("DrugQA", entry["columns"], "columns")


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"path": "a.csv", "shet": "x"}, "file 2 has the unknown key 'shet'. Did you mean sheet?"),
        ({"sheet": "x"}, "file 2 needs `path`"),
        ({"path": "a.csv", "sheet": 1}, "`sheet` that is not a text"),
        ({"path": "a.csv", "columns": ["A"]}, "`columns` that are not names by part"),
        ({"path": "a.csv", "format": "column"}, "unknown format 'column'. Did you mean columns?"),
        (7, "file 2 is neither a name nor an object"),
        ("../out.csv", "file 2 is outside of the folder"),
        ("/etc/passwd", "file 2 is outside of the folder"),
        ("link.csv", "file 2 is outside of the folder"),
        ("loop.csv", "file 2 (is outside of the folder|does not exist)"),
        ("sub", "file 2 does not exist"),
        ("", "file 2 has an empty or impossible name"),
        ("a\0b", "file 2 has an empty or impossible name"),
    ],
)
def test_a_wrong_entry_in_a_list_of_files_is_named(tmp_path, entry, what):
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.csv").write_text("q\n")
    (tmp_path / "out.csv").write_text("q\n")
    (folder / "link.csv").symlink_to(tmp_path / "out.csv")
    (folder / "loop.csv").symlink_to(folder / "loop.csv")
    (folder / "dataset.json").write_text(json.dumps({"files": ["a.csv", entry]}))
    with pytest.raises(UserError, match=what) as caught:
        find_files([str(folder)])
    assert caught.value.problems[0].where == str(folder / "dataset.json")


def test_excels_line_that_names_the_delimiter_is_believed(tmp_path):
    rows = rows_of(tmp_path, "a.csv", "\ufeffsep=;\r\nq;a\r\n1,5;x\r\n2,5;y\r\n")
    assert [(row.line, row.value) for row in rows] == [(3, {"q": "1,5", "a": "x"}), (4, {"q": "2,5", "a": "y"})]


def test_decimal_commas_do_not_make_columns(tmp_path):
    assert values(tmp_path, "a.csv", "price;text\n1,5;a\n2,25;b\n")[1] == {"price": "2,25", "text": "b"}


def test_blank_lines_before_a_header_are_skipped(tmp_path):
    rows = rows_of(tmp_path, "a.csv", "\n\nq,a\n\n1,2\n")
    assert [(row.line, row.value) for row in rows] == [(5, {"q": "1", "a": "2"})]


def test_large_whole_numbers_keep_every_digit(tmp_path):
    assert values(tmp_path, "a.jsonl", '{"a": 123456789012345678901234567890}') == [
        {"a": 123456789012345678901234567890}
    ]


json_texts = st.sampled_from(["007", "NA", "1", "true", "null", "", " x ", 'a "b"\n,;\t', "你好", "\U0001f600"]) | texts


@given(st.lists(st.tuples(json_texts, json_texts), min_size=1, max_size=8))
def test_parquet_and_arrow_say_what_was_written(tmp_path_factory, written):
    folder = tmp_path_factory.getbasetemp()
    rows = [{"question": question, "answer": answer} for question, answer in written]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "a.parquet", use_dictionary=len(rows) % 2 == 0)
    for name, make in (("a.arrow", pyarrow.ipc.new_stream), ("b.arrow", pyarrow.ipc.new_file)):
        with make(str(folder / name), table.schema) as writer:
            writer.write_table(table)
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        found = list(read_rows(folder / name))
        assert [row.value for row in found] == rows
        assert [row.line for row in found] == list(range(1, len(rows) + 1))


def test_types_of_parquet_become_json(tmp_path):
    moment = datetime.datetime(2024, 1, 31, 10, tzinfo=datetime.UTC)
    table = pyarrow.table(
        {
            "large": pyarrow.array(["x"], pyarrow.large_string()),
            "coded": pyarrow.array(["007"]).dictionary_encode(),
            "moment": pyarrow.array([moment], pyarrow.timestamp("us", "UTC")),
            "precise": pyarrow.array([1_706_695_200_000_000_001], pyarrow.timestamp("ns")),
            "span": pyarrow.array([1_000_000_001], pyarrow.duration("ns")),
            "price": pyarrow.array([decimal.Decimal("1.50")]),
            "pairs": pyarrow.array([[("k", "v")]], pyarrow.map_(pyarrow.string(), pyarrow.string())),
            "nested": pyarrow.array([[{"a": [{"b": None, "c": "1"}]}]]),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (row,) = read_rows(tmp_path / "a.parquet")
    assert row.value == {
        "large": "x", "coded": "007", "moment": "2024-01-31T10:00:00+00:00", "precise": "2024-01-31T10:00:00.000000001",
        "span": "0 days 00:00:01.000000001", "price": "1.50", "pairs": [["k", "v"]], "nested": [{"a": [{"c": "1"}]}],
    }  # fmt: skip


def test_the_rows_before_a_fault_of_a_table_are_there(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"q,a\n" + b"1,2\n" * 99 + b"3\n\xff,4\n")
    rows = read_rows(tmp_path / "a.csv")
    assert [next(rows).line for _ in range(100)] == list(range(2, 102))
    with pytest.raises(UserError, match=r"a\.csv:102: byte 0xff at position 1"):
        next(rows)
