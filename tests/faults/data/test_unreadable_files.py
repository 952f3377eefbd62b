"""Files that cannot be read, or not wholly: the reader names place and reason of each, and never raises otherwise."""

from __future__ import annotations

import gzip
import io
import json
import re
import sqlite3
import zipfile

import openpyxl
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from tests.faults.data.broken import first_fault
from tunerun.data.read import read_rows
from tunerun.data.rows import Row

GOOD = '{"q": "x", "a": "y"}\n'
ROWS = [{"q": "x" * 99, "a": str(number)} for number in range(50)]
MARK = b"\xef\xbb\xbf"


def zst(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


def parquet(rows=ROWS, **options) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream, **options)
    return stream.getvalue()


def arrow(make=pyarrow.ipc.new_stream) -> bytes:
    stream = io.BytesIO()
    table = pyarrow.Table.from_pylist(ROWS)
    with make(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def twice() -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table([["x"], ["y"]], names=["q", "q"]), stream)
    return stream.getvalue()


def sheets(*rows, **more) -> bytes:
    """Makes a workbook of one sheet S, and of more when they are given by title."""
    book = openpyxl.Workbook()
    book.active.title = "S"
    for row in rows:
        book.active.append(row)
    for title, lines in more.items():
        sheet = book.create_sheet(title)
        for row in lines:
            sheet.append(row)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def error_cell(text: str) -> bytes:
    book = openpyxl.Workbook()
    book.active.title = "S"
    for row in (["q", "a"], ["x", "y"], ["x", text]):
        book.active.append(row)
    book.active["B3"].data_type = "e"
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def changed(part: str, old: bytes, new: bytes) -> bytes:
    """Makes a workbook of two columns and a row whose XML is damaged in one place."""
    source, stream = zipfile.ZipFile(io.BytesIO(sheets(["q", "a"], ["x", 7]))), io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            data = source.read(name)
            if name == part:
                assert old in data, data
                data = data.replace(old, new)
            if name != part or new != b"REMOVED":
                target.writestr(name, data)
    return stream.getvalue()


def zipped(**parts: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return stream.getvalue()


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table t (q)")
        return connection.serialize()


def encrypted(content: bytes) -> bytes:
    """Sets the flag of a password on each part, in the parts' own headers and in the directory."""
    data = bytearray(content)
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(magic)
        while start >= 0:
            data[start + place] |= 1
            start = data.find(magic, start + 4)
    return bytes(data)


SHEET = "xl/worksheets/sheet1.xml"
WORKBOOK = "xl/workbook.xml"

# Name, content, where (a line; None: the file; a text: what follows the file's name), and what the message says.
FILES: list[tuple[str, str | bytes, int | str | None, str]] = [
    # What is no text.
    ("empty.jsonl", b"", None, "is empty"),
    ("empty.csv", b"", None, "is empty"),
    ("empty.txt", b"\n\n", None, "is empty"),
    ("empty.jsonl.gz", gzip.compress(b""), None, "is empty"),
    ("empty.jsonl.zst", zst(b""), None, "is empty"),
    ("blank.json", b" " * 70_000, None, "starts with 65536 blank bytes"),
    ("mark.json", MARK, None, "is empty"),
    ("utf16le.csv", "q,a\nx,y\n".encode("utf-16"), None, "UTF-16"),
    ("utf16be.jsonl", b"\xfe\xff" + GOOD.encode("utf-16-be"), None, "UTF-16"),
    ("utf16le_unmarked.csv", "q,a\n".encode("utf-16-le"), 1, "UTF-16 without a mark"),
    ("utf16be_unmarked.json", "[{}]".encode("utf-16-be"), 1, "UTF-16 without a mark"),
    ("utf16.txt", "text\n".encode("utf-16"), None, "UTF-16"),
    ("utf32le.json", "[]".encode("utf-32"), None, "UTF-32"),
    ("utf32be.json", b"\x00\x00\xfe\xff" + "[]".encode("utf-32-be"), None, "UTF-32"),
    ("utf32_unmarked.jsonl", GOOD.encode("utf-32-be"), 1, "NUL byte"),
    ("utf16.jsonl.gz", gzip.compress(GOOD.encode("utf-16")), None, "UTF-16"),
    ("zip.json", zipped(a="x"), None, "a zip archive"),
    ("zip.csv", zipped(a="x"), None, "a zip archive"),
    ("empty_zip.jsonl", zipped(), None, "an empty zip archive"),
    ("book.csv", sheets(["q"], ["x"]), None, "name a workbook .xlsx"),
    ("old_book.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, None, "an old Office file"),
    ("parquet.jsonl", parquet(), None, "a Parquet file"),
    ("arrow.jsonl", arrow(pyarrow.ipc.new_file), None, "an Arrow file"),
    ("arrow_stream.jsonl", arrow(), 1, "NUL byte"),
    ("bzip2.jsonl", b"BZh91AY&SY", None, "bzip2"),
    ("xz.jsonl", b"\xfd7zXZ\x00\x00", None, "xz"),
    ("seven.jsonl", b"7z\xbc\xaf\x27\x1c\x00", None, "a 7-Zip archive"),
    ("rar.jsonl", b"Rar!\x1a\x07\x01", None, "a RAR archive"),
    ("pdf.jsonl", b"%PDF-1.7\n%\xe2\xe3", None, "a PDF file"),
    ("png.json", b"\x89PNG\r\n\x1a\n\0\0", None, "a PNG picture"),
    ("jpeg.json", b"\xff\xd8\xff\xe0\0", None, "a JPEG picture"),
    ("gif.json", b"GIF89a\1\0", None, "a GIF picture"),
    ("program.txt", b"\x7fELF\2\1\1\0", None, "a program"),
    ("database.json", database(), None, "an SQLite database"),
    ("pickle.json", b"\x80\x04\x95\x0b\0", None, "a Python pickle"),
    ("pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", None, "git lfs pull"),
    ("page.json", b"<!DOCTYPE html><html></html>", None, "a web page"),
    ("page.csv", b"<html><body>Log in</body></html>", None, "a web page"),
    ("noise.jsonl", bytes(range(1, 9)) + b"\x80\xff\n", 1, "not UTF-8"),
    ("late_nul.jsonl", GOOD * 9000 + "\0\n", 9001, "Expecting value"),
    ("late_nul.json", "[" + GOOD.strip() + ",\n" * 1 + "{" + " " * 70_000 + "\0}]", 2, "property name"),
    ("late_nul.txt", "text\n" * 20_000 + "a\0b\n", 20_001, "NUL byte"),
    ("late_nul.tsv", "q\ta\n" * 20_000 + "a\0\tb\n", 20_001, "NUL byte"),
    ("gb18030.jsonl", GOOD.encode() + '{"q": "你好"}\n'.encode("gb18030"), 2, "byte 0xc4 at position 8 is not UTF-8"),
    ("big5.csv", b"q,a\nx,y\n" + "你,好\n".encode("big5"), 3, "is not UTF-8"),
    ("shift_jis.txt", b"ok\n" + "日本\n".encode("shift_jis"), 2, "is not UTF-8"),
    ("latin1.tsv", b"q\ta\nx\ty\n\xfc\tz\n", 3, "byte 0xfc at position 1"),
    ("cp1252.json", b'[{"q": "x"},\n\n{"q": "\x93"}]', 3, "byte 0x93"),
    ("overlong.jsonl", GOOD.encode() * 2 + b'{"q": "\xc0\x80"}\n', 3, "byte 0xc0"),
    ("encoded_surrogate.jsonl", GOOD.encode() + b'{"q": "\xed\xa0\xbd"}\n', 2, "byte 0xed"),
    ("beyond.jsonl", GOOD.encode() + b'{"q": "\xf5\x80\x80\x80"}\n', 2, "byte 0xf5"),
    ("cut_character.jsonl", GOOD.encode() + '{"q": "你'.encode()[:-1], 2, "is not UTF-8"),
    ("cut_character.json", '[{"q": "你'.encode()[:-1], 1, "byte 0xe4 is not UTF-8"),
    # Packed files.
    ("cut.json.gz", gzip.compress(json.dumps(ROWS).encode())[:-20], None, "gzip file is damaged or cut off"),
    ("cut_header.csv.gz", b"\x1f\x8b\x08", None, "gzip file is damaged or cut off"),
    ("tail.jsonl.gz", gzip.compress(GOOD.encode()) + b"garbage", None, "gzip file is damaged"),
    ("sum.jsonl.gz", gzip.compress(GOOD.encode())[:-8] + b"\0" * 8, None, "gzip file is damaged"),
    ("method.jsonl.gz", b"\x1f\x8b\x07\x00" + b"\0" * 20, None, "gzip file is damaged"),
    ("twice.jsonl.gz", gzip.compress(gzip.compress(GOOD.encode())), None, "compressed twice"),
    ("twice.jsonl.zst", zst(gzip.compress(GOOD.encode())), None, "compressed twice"),
    ("cut.jsonl.zst", zst(GOOD.encode() * 999)[:-5], None, "zst file is damaged or cut off"),
    ("cut_header.jsonl.zst", b"\x28\xb5\x2f\xfd", None, "zst file is damaged or cut off"),
    ("tail.jsonl.zst", zst(GOOD.encode()) + b"garbage", None, "zst file is damaged"),
    ("tail_nul.jsonl.zst", zst(GOOD.encode()) + b"\0", None, "zst file is damaged"),
    ("cut_second.csv.zst", zst(b"q,a\n") + zst(b"x,y\n")[:-3], None, "zst file is damaged or cut off"),
    ("noise.jsonl.zst", b"\x28\xb5\x2f\xfdrest of no frame", None, "zst file is damaged"),
    ("window.jsonl.zst", b"\x28\xb5\x2f\xfd\x00\xa0" + zst(GOOD.encode())[6:], None, "too much memory"),
    ("line.jsonl.gz", gzip.compress((GOOD + "{\n").encode()), 2, "property name"),
    ("line.csv.zst", zst(b"q,a\nx,y\nz\n"), 3, "1 columns where the header has 2"),
    ("name_only.jsonl.gz", '{"q": 1}\n{\n', 2, "property name"),
    # JSON lines.
    ("text.jsonl", GOOD + "hello\n", 2, "Expecting value at column 1"),
    ("cut_key.jsonl", GOOD + '{"q": "x", "a', 2, "Is the line cut off"),
    ("cut_colon.jsonl", GOOD + '{"q":', 2, "Is the line cut off"),
    ("cut_open.jsonl", GOOD + "{", 2, "Is the line cut off"),
    ("cut_list.jsonl", GOOD + '{"q": ["a", ', 2, "Is the line cut off"),
    ("cut_word.jsonl", GOOD + '{"q": tru', 2, "Expecting value at column 7"),
    ("single.jsonl", GOOD + "{'q': 'x'}\n", 2, "JSON texts stand in double quotes"),
    ("single_value.jsonl", GOOD + "{\"q\": 'x'}\n", 2, "JSON texts stand in double quotes"),
    ("bare_key.jsonl", GOOD + '{q: "x"}\n', 2, "double quotes"),
    ("comma_object.jsonl", GOOD + '{"q": "x",}\n', 2, "no comma after the last item"),
    ("comma_list.jsonl", GOOD + '{"q": ["x",]}\n', 2, "no comma after the last item"),
    ("two_commas.jsonl", GOOD + '{"q": "x",, "a": "y"}\n', 2, "property name"),
    ("no_comma.jsonl", GOOD + '{"q": "x" "a": "y"}\n', 2, "',' delimiter"),
    ("no_colon.jsonl", GOOD + '{"q" "x"}\n', 2, "':' delimiter"),
    ("comment.jsonl", GOOD + '{"q": "x" // note\n', 2, "JSON has no comments"),
    ("comment_line.jsonl", GOOD + "# note\n", 2, "JSON has no comments"),
    ("comment_block.jsonl", GOOD + '/* note */ {"q": "x"}\n', 2, "JSON has no comments"),
    ("comma_after.jsonl", GOOD + GOOD.strip() + ",\n", 2, "Extra data"),
    ("one_line.jsonl", GOOD.strip() + GOOD, 1, "Write one row per line"),
    ("spaced.jsonl", GOOD + GOOD.strip() + "  " + GOOD, 2, "Write one row per line"),
    ("python.jsonl", GOOD + '{"q": None}\n', 2, "null, true and false"),
    ("python_true.jsonl", GOOD + '{"q": True}\n', 2, "null, true and false"),
    ("infinity.jsonl", GOOD + '{"q": Infinity}\n', 2, "Infinity is not JSON"),
    ("minus_infinity.jsonl", GOOD + '{"q": -Infinity}\n', 2, "-Infinity is not JSON"),
    ("nan.json", '[{"q": 1},\n{"q": NaN}]', 2, "NaN is not JSON"),
    ("huge_float.jsonl", GOOD + '{"q": 1e999}\n', 2, "the number 1e999 is too large"),
    ("huge_float.json", '[\n{"q": -1e999}]', 2, "the number -1e999 is too large"),
    ("huge_integer.json", "[\n" + "9" * 5000 + "]", 2, "Exceeds the limit"),
    ("hex.jsonl", GOOD + '{"q": 0x1f}\n', 2, "delimiter"),
    ("leading_zero.jsonl", GOOD + '{"q": 007}\n', 2, "delimiter"),
    ("plus.jsonl", GOOD + '{"q": +1}\n', 2, "Expecting value"),
    ("escape.jsonl", GOOD + '{"q": "\\x41"}\n', 2, "Invalid \\\\escape"),
    ("unicode_escape.jsonl", GOOD + '{"q": "\\u12"}\n', 2, "escape"),
    ("raw_tab.jsonl", GOOD + '{"q": "a\tb"}\n', 2, "Invalid control character at column 9"),
    ("broken_line.jsonl", GOOD + '{"q": "a\nb"}\n', 2, "Is the line cut off|control character"),
    ("mark_inside.jsonl", GOOD + "\ufeff" + GOOD, 2, "a byte order mark stands at column 1"),
    ("mark_in_line.jsonl", GOOD + GOOD.strip() + "\ufeff" + GOOD, 2, "a byte order mark stands at column"),
    ("twice_nested.jsonl", GOOD + '{"q": [{"a": 1, "b": 2, "a": 3}]}\n', 2, "'a' is there twice"),
    ("deep_object.jsonl", GOOD + '{"a":' * 50_000 + "1" + "}" * 50_000, 2, "nested too deeply"),
    ("mac.jsonl", GOOD.replace("\n", "\r") * 3, 1, "as on old Macs"),
    ("crlf.jsonl", (GOOD + "{\n").replace("\n", "\r\n"), 2, "property name"),
    ("columns.json", json.dumps({"q": ["a", "b"], "a": ["c", "d"]}), 1, r"holds columns \(q, a\), not rows"),
    ("columns_indented.json", json.dumps({"q": ["a", "b"], "a": ["c", "d"]}, indent=1), 1, "holds columns"),
    ("numbered.json", json.dumps({"q": {"0": "a", "1": "b"}, "a": {"0": "c", "1": "d"}}), 1, "holds columns"),
    # JSON arrays.
    ("cut_value.json", '[{"q": "x"},\n{"q": "y', 2, "is the file cut off"),
    ("cut_comma.json", '[{"q": "x"},\n', 2, "is the file cut off"),
    ("cut_open.json", "[", 1, "is the file cut off"),
    ("two_arrays.json", "[1]\n[2]", 2, "more text after the end"),
    ("no_comma.json", '[{"q": 1}\n\n{"q": 2}]', 3, "a comma is missing"),
    ("comma_end.json", '[{"q": 1},\n]', 2, "Expecting value"),
    ("comma_first.json", '[\n,{"q": 1}]', 2, "Expecting value"),
    ("comment.json", '[\n// note\n{"q": 1}]', 2, "Expecting value"),
    ("brace.json", '[{"q": 1}\n}', 2, "a comma is missing"),
    ("single.json", "[\n{'q': 1}]", 2, "double quotes"),
    ("twice.json", '[\n{"q": 1, "q": 2}]', 2, "'q' is there twice"),
    ("mark_inside.json", '[{"q": 1},\n\ufeff{"q": 2}]', 2, "Expecting value"),
    ("far.json", "[" + '{"q": "x"},\n' * 20_000 + "{]", 20_001, "property name"),
    ("two_objects.json", '{\n"q": 1\n}\n{\n"q": 2\n}', 4, "more text after the first value"),
    ("cut_object.json", '{\n"q": 1,\n"a"', 3, "cut off"),
    # CSV and TSV.
    ("ragged.csv", "q,a\nx,y\nz\n", 3, "1 columns where the header has 2"),
    ("wide.tsv", "q\ta\nx\ty\nx\ty\tz\n", 3, "3 columns where the header has 2"),
    ("unquoted.csv", "q,a\nx,y\nhello, world,z\n", 3, "3 columns"),
    ("ragged_after_text.csv", 'q,a\n"x\ny",z\nw\n', 4, "1 columns"),
    ("twice.csv", "q,a,q\n1,2,3\n", 1, "'q' is there twice"),
    ("twice_later.csv", "\n\nq,q\n1,2\n", 3, "'q' is there twice"),
    ("no_title.tsv", "q\t\n1\t2\n", 1, "column 2 of the header has no name"),
    ("blank_title.csv", "q,  ,a\n1,2,3\n", 1, "column 2 of the header has no name"),
    ("only_blank.csv", "sep=;\n", 1, "there is no header"),
    ("unclosed.tsv", 'q\ta\nx\ty\n"z\tw\n' + "v\tu\n" * 9, 3, "never closed"),
    ("unclosed_header.csv", '"q,a\n1,2\n', 1, "never closed"),
    ("quote_inside.csv", 'q,a\n"x"y,z\n', 2, "expected after"),
    ("quote_inside.tsv", 'q\ta\nx\ty\n"Hi" he said\tz\n', 3, "expected after"),
    ("nul.csv", "q,a\n" + "x,y\n" * 20_000 + "\0,z\n", 20_002, "NUL byte"),
    ("mac.csv", "q,a\rx,y\r", 1, "as on old Macs"),
    ("mac.txt", "one\rtwo\r", 1, "as on old Macs"),
    # Parquet and Arrow.
    ("empty.parquet", b"", None, "cannot be read"),
    ("cut.parquet", parquet()[:-9], None, "cannot be read after row 0"),
    ("head.parquet", parquet()[:100], None, "cannot be read after row 0"),
    ("text.parquet", GOOD, None, "cannot be read after row 0"),
    ("damaged.parquet", b"PAR1" + b"\xff" * 200 + parquet(compression="none")[204:], None, "cannot be read"),
    ("no_rows.parquet", parquet(ROWS[:1])[:0] + parquet([]), None, "is empty"),
    ("empty.arrow", b"", None, "cannot be read"),
    ("cut.arrow", arrow()[: len(arrow()) // 2], None, "cannot be read after row 0"),
    ("cut_file.arrow", arrow(pyarrow.ipc.new_file)[:-40], None, "cannot be read after row 0"),
    ("twice.parquet", twice(), None, "two columns called 'q'"),
    ("text.arrow", GOOD, None, "cannot be read after row 0"),
    ("packed.parquet.gz", gzip.compress(parquet()), None, "is not a kind of file that is read"),
    # Workbooks.
    ("empty.xlsx", b"", None, "is empty"),
    ("text.xlsx", "q,a\nx,y\n", None, "is not an Excel workbook"),
    ("old.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, None, "protected by a password, or an old .xls"),
    ("old.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, None, "Save it as .xlsx or CSV"),
    ("open.ods", zipped(mimetype="application/vnd.oasis.opendocument.spreadsheet"), None, "Save it as .xlsx or CSV"),
    ("open.xlsx", zipped(mimetype="application/vnd.oasis.opendocument.spreadsheet"), None, "OpenDocument"),
    ("zip.xlsx", zipped(a="x"), None, "not an Excel workbook"),
    ("password.xlsx", encrypted(sheets(["q"], ["x"])), None, "protected by a password"),
    ("cut.xlsx", sheets(["q"], ["x"])[:-30], None, "damaged or cut off"),
    ("half.xlsx", sheets(["q"], ["x"])[:3000], None, "damaged or cut off"),
    ("no_sheet.xlsx", changed(SHEET, b"<", b"REMOVED"), None, "damaged"),
    ("no_book.xlsx", changed(WORKBOOK, b"<", b"REMOVED"), None, "damaged"),
    ("xml.xlsx", changed(SHEET, b"</row>", b"</raw>"), None, "the workbook is damaged: mismatched tag"),
    ("bomb.xlsx", changed(SHEET, b"<worksheet", b'<!DOCTYPE x [<!ENTITY a "b">]><worksheet'), None, "document type"),
    ("rows_back.xlsx", changed(SHEET, b'<row r="2"', b'<row r="1"'), None, "row 1 comes after row 1"),
    ("cells_back.xlsx", changed(SHEET, b'r="B2"', b'r="A2"'), None, "A2 comes too late"),
    ("reference.xlsx", changed(SHEET, b'r="B2"', b'r="2B"'), None, "damaged or cut off: .*'2B'"),
    ("number.xlsx", changed(SHEET, b"<v>7</v>", b"<v>seven</v>"), None, "damaged or cut off: .*'seven'"),
    ("style.xlsx", changed(SHEET, b'r="B2"', b'r="B2" s="77"'), "[S]:2", "cell B2 is damaged"),
    ("row.xlsx", changed(SHEET, b'<row r="2"', b'<row r="2000000000"'), None, "row 2000000000 is beyond"),
    ("strict.xlsx", changed(WORKBOOK, b"http://schemas.openxmlformats.org/spreadsheetml/2006/main",
                            b"http://purl.oclc.org/ooxml/spreadsheetml/main"), None, "Strict Open XML"),
    ("no_rows.xlsx", sheets(), None, "holds no rows"),
    ("two_sheets.xlsx", sheets(["q"], T=[["q"]]), None, "several sheets have rows: S, T"),
    ("twice.xlsx", sheets(["q", "a", "q"], ["x", "y", "z"]), "[S]:1", "'q' is there twice"),
    ("formula.xlsx", sheets(["q", "a"], ["x", "=1+1"]), "[S]:2", "cell B2 holds a formula that was never computed"),
    ("formula_title.xlsx", sheets(["q", "=1+1"], ["x", "y"]), "[S]:1", "in the header, cell B1 holds a formula"),
    ("late_formula.xlsx", sheets(["q", "a"], *[["x", "y"]] * 99, ["=A1", "z"]), "[S]:101", "cell A101"),
    *((f"error{number}.xlsx", error_cell(text), "[S]:3", f"cell B3 holds the error {text}") for number, text in
      enumerate(("#REF!", "#N/A", "#DIV/0!", "#VALUE!"))),
    # Other kinds.
    ("data.yaml", "q: x\n", None, "is not a kind of file that is read"),
    ("data.pkl", b"\x80\x04\x95", None, "pickles can run code"),
    ("data.zip", zipped(a="x"), None, "Unpack it"),
    ("data", "q\n", None, "is not a kind of file that is read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "where", "what"), FILES, ids=[file[0] for file in FILES])
def test_a_file_names_its_first_fault(tmp_path, name, content, where, what):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    place = f"{path}{where}" if isinstance(where, str) else f"{path}:{where}" if where else str(path)
    found = first_fault(path)
    assert found is not None, "the file was read"
    assert found[0] == place, found
    assert re.search(what, found[1]), found


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_fault_does_not_hide_the_rows_around_it(tmp_path, end):
    path = tmp_path / "a.jsonl"
    path.write_text(end.join(['{"q": 1}', "{", '{"q": 2}', "[", '{"q": 3}']), newline="")
    assert [(row.line, isinstance(row, Row)) for row in read_rows(path)] == [
        (1, True), (2, False), (3, True), (4, False), (5, True),
    ]  # fmt: skip
