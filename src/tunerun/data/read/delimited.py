"""Reads CSV and TSV: the dialect is found, quoted line ends are kept, and every value stays a text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import BinaryIO

from tunerun.data.read.source import MAX_LINE_BYTES, OLD_MAC, OLD_MAC_FIX, fail
from tunerun.data.rows import BadRow, Row

_DELIMITERS = (",", "\t", ";", "|")
_SAMPLE_RECORDS = 20
_BLOCK_BYTES = 1 << 18

# Excel writes and reads this line in front of the header.
_NAMED_DELIMITER = re.compile(r"sep=([,;|\t])[\r\n]*")


def delimited(file: BinaryIO, name: str) -> Iterator[Row | BadRow]:
    """Yields the records of a CSV or TSV file as dicts of texts by column name.

    The first record names the columns. The delimiter is the one of comma, tab, semicolon and bar that splits the first
    records into the same number of columns. Blank lines are skipped.

    Raises:
        UserError: The header is unusable or a quote is never closed; the rest of the file cannot be told apart.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    texts = _texts(file, name)
    sample = list(islice(texts, 4 * _SAMPLE_RECORDS))
    named = _NAMED_DELIMITER.fullmatch(sample[0])
    skipped = 0 if named is None else 1
    delimiter = _delimiter(sample) if named is None else named[1]
    records = _records(chain(sample[skipped:], texts), delimiter, name, skipped)
    line, header = next((record for record in records if record[1]), (1, []))
    _check_header(header, name, line)
    for line, fields in records:
        if not fields:
            continue
        if len(fields) != len(header):
            detail = f"{len(fields)} columns where the header has {len(header)}."
            yield BadRow(name, line, "wrong-columns", detail)
            continue
        yield Row(name, line, dict(zip(header, fields, strict=False)))


def _texts(file: BinaryIO, name: str) -> Iterator[str]:
    """Yields each line with its end, decoded many at a time, which one by one takes twice as long.

    Raises:
        UserError: A line is too long, is not UTF-8, or ends as on old Macs.
    """
    done, size = 0, 0
    parts: list[bytes] = []
    while block := file.read(_BLOCK_BYTES):
        end = block.rfind(b"\n") + 1
        parts.append(block[:end] if end else block)
        if end:
            whole = b"".join(parts)
            yield from _decoded(whole, done, name)
            done += whole.count(b"\n")
            parts = [block[end:]]
        size = len(block) - end if end else size + len(block)
        if size > MAX_LINE_BYTES:
            fail(name, done + 1, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB.", "Write one row per line.")
    last = b"".join(parts)
    if not done and b"\r" in last.rstrip():
        fail(name, 1, OLD_MAC, OLD_MAC_FIX)
    yield from _decoded(last, done, name)


def _decoded(data: bytes, done: int, name: str) -> Iterator[str]:
    fault, fix, place = "holds a NUL byte.", "", data.find(b"\x00")
    good = data if place < 0 else data[: data.rfind(b"\n", 0, place) + 1]
    try:
        text = good.decode("utf-8")
    except UnicodeDecodeError as error:
        place, fix = error.start, "Save the file as UTF-8."
        start = data.rfind(b"\n", 0, place) + 1
        fault = f"byte 0x{data[place]:02x} at position {place - start + 1} is not UTF-8."
        text = data[:start].decode("utf-8")
    # Splits at line feeds only, as csv wants it.
    yield from io.StringIO(text, newline="\n")
    if place >= 0:
        fail(name, done + data.count(b"\n", 0, place) + 1, fault, fix)


def _records(texts: Iterator[str], delimiter: str, name: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1 + skipped
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = ""
            if "end of data" in str(error) or "field larger" in str(error):
                hint = "A quote that is opened here is never closed."
            fail(name, line, f"{error}.", hint)
        yield line, fields


def _delimiter(sample: list[str]) -> str:
    return max(_DELIMITERS, key=lambda delimiter: _agreement(sample, delimiter))


def _agreement(sample: list[str], delimiter: str) -> tuple[int, int]:
    """Returns how many of the first records have as many columns as the header, and how many columns that is."""
    reader = csv.reader(iter(sample), delimiter=delimiter, strict=True)
    counts: list[int] = []
    try:
        for fields in reader:
            if fields:
                counts.append(len(fields))
            if len(counts) == _SAMPLE_RECORDS:
                break
    except csv.Error:
        # The sample may end within a quoted field, or this delimiter makes no sense of the quotes.
        pass
    if not counts or counts[0] < 2:
        return (0, 0)
    return (counts.count(counts[0]), counts[0])


def _check_header(header: list[str], name: str, line: int) -> None:
    if not header:
        fail(name, line, "there is no header.")
    for column, title in enumerate(header, start=1):
        if not title.strip():
            fail(name, line, f"column {column} of the header has no name.")
        if header.count(title) > 1:
            fail(name, line, f"the column {title!r} is there twice.")
