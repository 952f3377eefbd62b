"""Generated broken files: whatever is done to a file, reading it ends soon, with rows, bad rows or the user's error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import time
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tunerun.data.read import read_rows
from tunerun.data.rows import BadRow, Row
from tunerun.errors import UserError

WORDS = ["007", "NA", "1", "true", "null", "", " x ", 'a "b"\n,;\t', "\u4f60\u597d", "\U0001f600", "\\u00e9", "plain"]
GENERATED = 5000
# A file of a few kB is read in milliseconds; the machine may be busy.
LIMIT_SECONDS = 10


def seeds() -> dict[str, bytes]:
    rng = random.Random(7)
    rows = [{"question": rng.choice(WORDS), "answer": rng.choice(WORDS), "n": str(number)} for number in range(12)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    table = pyarrow.Table.from_pylist([{**row, "messages": [{"role": "user", "content": "x"}]} for row in rows])
    text, parquet, arrow, sheet = io.StringIO(newline=""), io.BytesIO(), io.BytesIO(), io.BytesIO()
    csv.writer(text).writerows([list(rows[0]), *[list(row.values()) for row in rows]])
    pyarrow.parquet.write_table(table, parquet)
    with pyarrow.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table)
    book = openpyxl.Workbook()
    for row in ([*rows[0]], *[[*row.values()] for row in rows]):
        book.active.append(row)
    book.active.append(["=1+1", 45322.5, True])
    book.active.merge_cells("A3:A4")
    book.save(sheet)
    return {
        "a.jsonl": lines, "a.json": json.dumps(rows, indent=1).encode(), "b.json": json.dumps(rows).encode(),
        "a.csv": text.getvalue().encode(), "a.tsv": text.getvalue().replace(",", "\t").encode(), "a.txt": lines,
        "a.jsonl.gz": gzip.compress(lines), "a.jsonl.zst": pyarrow.Codec("zstd").compress(lines, asbytes=True),
        "a.parquet": parquet.getvalue(), "a.arrow": arrow.getvalue(), "a.xlsx": sheet.getvalue(),
    }  # fmt: skip


SEEDS = seeds()
TOKENS = [
    b"\0",
    b"\xff",
    b'"',
    b"\n",
    b"\r",
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\\",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"<",
    b"&",
]
change = st.tuples(
    st.sampled_from(["cut", "flip", "insert", "delete", "repeat"]),
    st.floats(0, 1),
    st.integers(1, 64),
    st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=8),
)


def changed(data: bytes, kind: str, where: float, size: int, token: bytes) -> bytes:
    place = int(where * len(data))
    if kind == "cut":
        return data[:place]
    if kind == "flip":
        return data[:place] + bytes(byte ^ size for byte in data[place : place + 1]) + data[place + 1 :]
    if kind == "insert":
        return data[:place] + token + data[place:]
    if kind == "delete":
        return data[:place] + data[place + size :]
    return data[:place] + data[max(0, place - size) : place] * 3 + data[place:]


def check(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.write_bytes(data)
    started, last = time.monotonic(), 0
    try:
        for row in read_rows(path):
            assert isinstance(row, Row | BadRow)
            assert row.file.startswith(str(path))
            assert row.line >= last
            last = row.line
    except UserError as error:
        for problem in error.problems:
            assert problem.where.startswith(str(path))
            assert problem.what
    assert time.monotonic() - started < LIMIT_SECONDS


@settings(max_examples=200)
@given(st.sampled_from(sorted(SEEDS)), st.lists(change, min_size=1, max_size=4))
def test_a_damaged_file_ends_in_rows_or_the_users_error(tmp_path_factory, name, changes):
    data = SEEDS[name]
    for one in changes:
        data = changed(data, *one)
    check(tmp_path_factory.getbasetemp(), name, data)


@settings(max_examples=60)
@given(st.sampled_from(sorted(SEEDS)), st.binary(max_size=400))
@example("a.xlsx", b"PK\x05\x06" + b"\0" * 18)
def test_noise_ends_in_rows_or_the_users_error(tmp_path_factory, name, data):
    check(tmp_path_factory.getbasetemp(), name, data)


@pytest.mark.slow
@settings(max_examples=GENERATED, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(SEEDS)), st.lists(change, min_size=1, max_size=6))
def test_more_damaged_files_end_in_rows_or_the_users_error(tmp_path_factory, name, changes):
    data = SEEDS[name]
    for one in changes:
        data = changed(data, *one)
    check(tmp_path_factory.getbasetemp(), name, data)
