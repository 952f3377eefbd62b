"""Reads CSV and TSV: the dialect is found, quoted line ends are kept, and every value stays a text."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import BinaryIO

from tunerun.data.read.source import MAX_LINE_BYTES, decode_fault, fail, lines
from tunerun.data.rows import BadRow, Row

_DELIMITERS = (",", "\t", ";", "|")
_SAMPLE_RECORDS = 20

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
    for number, line in lines(file, name):
        if b"\x00" in line:
            fail(name, number, "holds a NUL byte.")
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            fail(name, number, decode_fault(error), "Save the file as UTF-8.")


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
