"""Opens Excel workbooks (.xlsx, ECMA-376) with openpyxl, and tells what its read-only mode does not.

That mode reads no merged ranges, leaves out rows and cells that stand in the wrong order, and cannot tell a formula
that was never computed from an empty cell. A look through the sheet's XML before its rows are read makes up for it.
"""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn, TypeVar
from xml.etree.ElementTree import ParseError

import openpyxl
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import XMLParser
from openpyxl.packaging.relationship import get_dependents, get_rels_path
from openpyxl.utils import get_column_letter, range_boundaries
from openpyxl.utils.cell import coordinate_to_tuple

from tunerun.data.read.source import MAX_LINE_BYTES, fail

Range = tuple[int, int, int, int]
"""First row, first column, last row and last column of merged cells, from 1."""

_Result = TypeVar("_Result")
_CHUNK_BYTES = 1 << 16
_LAST_ROW = 1_048_576
# Unpacked size of what is held in memory; sheets are read as they come.
_MAX_PART_BYTES = 512 << 20
# More is a bomb: the XML of real sheets packs to a tenth, a hundredth at most.
_MAX_RATIO = 500
_RATIO_FROM_BYTES = 64 << 20

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_STRICT = b"http://purl.oclc.org/ooxml/"
# What zipfile and openpyxl raise at damaged files; openpyxl does not check the XML that it takes apart.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error, NotImplementedError, ParseError, ValueError,
    LookupError, OverflowError, TypeError, AttributeError,
)  # fmt: skip


@dataclass(slots=True)
class Extras:
    """What stands in a sheet besides its values."""

    merged: list[Range] = field(default_factory=list)
    """In order."""
    uncomputed: dict[int, str] = field(default_factory=dict)
    """The first cell of each row whose formula was never computed, such as `B7`, by the row's number."""


@contextmanager
def open_workbook(file: BinaryIO, name: str) -> Iterator[Any]:
    """Opens a workbook.

    Args:
        file: At its start; it can seek.
        name: How messages name it.

    Yields:
        The `openpyxl.Workbook`, read-only, of values.

    Raises:
        UserError: It is damaged, protected by a password, a bomb, or no workbook.
    """
    _check_start(file, name)
    _guarded(lambda: _check_archive(file, name), name)
    book = _guarded(lambda: openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False), name)
    try:
        yield book
    finally:
        book.close()


def sheet_rows(sheet: Any, name: str) -> Iterator[tuple[int, list[Any]]]:
    """Yields the rows of a sheet that have a cell, with their numbers, from 1.

    Args:
        sheet: Of an open workbook.
        name: How messages name the workbook.

    Raises:
        UserError: The workbook is damaged.
    """
    # Files declare extents that are too small or missing.
    sheet.reset_dimensions()
    rows = sheet.iter_rows(max_row=_LAST_ROW)
    number = 0
    while (row := _guarded(lambda: next(rows, None), name)) is not None:
        number += 1
        cells = [cell for cell in row if cell.value is not None]
        if row:
            yield number, cells


def extras_of(sheet: Any, name: str) -> Extras:
    """Looks through the XML of a sheet for what openpyxl's read-only mode does not tell.

    Raises:
        UserError: It is damaged, or its rows or cells are out of order; openpyxl would leave some out.
    """
    return _guarded(lambda: _extras(sheet, name), name)


def _extras(sheet: Any, name: str) -> Extras:
    found = _Collector()
    parser = XMLParser(target=found, forbid_dtd=True)
    untagged_bytes = 0
    # No public name leads from a sheet to its part of the archive.
    with sheet._get_source() as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            last = chunk.rfind(b"<")
            untagged_bytes = len(chunk) - last if last >= 0 else untagged_bytes + len(chunk)
            if untagged_bytes > MAX_LINE_BYTES:
                fail(name, None, f"a cell is longer than {MAX_LINE_BYTES >> 20} MiB.")
            parser.feed(chunk)
    parser.close()
    found.extras.merged.sort()
    return found.extras


class _Collector:
    """Target of an XML parser that takes note of a sheet's extras, and checks the order of its cells."""

    def __init__(self) -> None:
        self.extras = Extras()
        self._row = 0
        self._column = 0
        self._formula = False
        self._valued = False
        self._in_value = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        tag = _local(tag)
        self._in_value = tag == "v"
        if tag == "c":
            self._column = _cell_column(attributes, self._column)
            # The text of a formula may be empty.
            self._formula, self._valued = False, attributes.get("t") == "str"
        elif tag == "f":
            self._formula = True
        elif tag == "row":
            self._row, self._column = _row_number(attributes, self._row), 0
        elif tag == "mergeCell":
            left, top, right, bottom = range_boundaries(attributes["ref"])
            self.extras.merged.append((top, left, bottom, right))

    def data(self, _: str) -> None:
        self._valued = self._valued or self._in_value

    def end(self, tag: str) -> None:
        self._in_value = False
        if self._formula and not self._valued and _local(tag) == "c":
            self.extras.uncomputed.setdefault(self._row, f"{get_column_letter(self._column)}{self._row}")


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _row_number(attributes: Mapping[str, str], last: int) -> int:
    number = int(attributes.get("r", last + 1))
    if number <= last:
        raise ValueError(f"row {number} comes after row {last}")
    if number > _LAST_ROW:
        raise ValueError(f"row {number} is beyond the last that a sheet can have")
    return number


def _cell_column(attributes: Mapping[str, str], last: int) -> int:
    column: int = coordinate_to_tuple(attributes["r"])[1] if attributes.get("r") else last + 1
    if column <= last:
        raise ValueError(f"cell {attributes['r']} comes too late")
    return column


def _check_start(file: BinaryIO, name: str) -> None:
    start = file.read(len(_OLE))
    file.seek(0)
    if not start:
        fail(name, None, "is empty.")
    if start == _OLE:
        fail(name, None, "is protected by a password, or an old .xls file.", "Save it as .xlsx without a password.")
    if not start.startswith(b"PK"):
        fail(name, None, "is not an Excel workbook.", "If it is text, name it .csv; else save it as .xlsx.")


def _check_archive(file: BinaryIO, name: str) -> None:
    with zipfile.ZipFile(file) as archive:
        parts = {info.filename: info for info in archive.infolist()}
        if any(info.flag_bits & 1 for info in parts.values()):
            fail(name, None, "is protected by a password.", "Save it without one.")
        # zipfile unpacks no more than what is declared.
        for info in parts.values():
            ratio = info.file_size / max(1, info.compress_size)
            if info.file_size > _RATIO_FROM_BYTES and ratio > _MAX_RATIO:
                fail(name, None, f"{info.filename} unpacks to {ratio:.0f} times its size: it is a zip bomb.")
            if info.file_size > _MAX_PART_BYTES and "/worksheets/" not in info.filename:
                size = info.file_size >> 20
                fail(name, None, f"{info.filename} unpacks to {size} MiB, more than can be held in memory.")
        if "mimetype" in parts and b"opendocument" in archive.read("mimetype")[:99]:
            fail(name, None, "is an OpenDocument table, not an Excel workbook.", "Save it as .xlsx or CSV.")
        if "xl/workbook.bin" in parts:
            fail(name, None, "is a binary workbook (.xlsb).", "Save it as .xlsx or CSV.")
        main = next((part for part in parts if re.fullmatch(r"xl/workbook\d*\.xml", part)), None)
        if main is None:
            fail(name, None, "is not an Excel workbook, or is damaged: xl/workbook.xml is missing.")
        if _STRICT in archive.read(main):
            what = "is a Strict Open XML workbook, which is not read."
            fail(name, None, what, "Save it as an ordinary Excel workbook (.xlsx).")
        # openpyxl leaves out sheets that are missing.
        for related in get_dependents(archive, get_rels_path(main)):
            if related.Type.endswith("/worksheet") and related.target not in parts:
                fail(name, None, f"the workbook is damaged or cut off: {related.target} is missing.")


def _guarded(step: Callable[[], _Result], name: str) -> _Result:
    """Runs a step of openpyxl without its warnings, which are about charts and styles, and translates its errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return step()
    except _DAMAGED as error:
        _fail_damaged(error, name)


def _fail_damaged(error: Exception, name: str) -> NoReturn:
    # openpyxl wraps what it meets while it opens a workbook.
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(cause, DefusedXmlException):
        fail(name, None, "declares a document type, which no workbook has and entity bombs need.")
    if isinstance(cause, ParseError):
        fail(name, None, f"the workbook is damaged: {cause}.")
    fail(name, None, f"the workbook is damaged or cut off: {str(cause) or type(cause).__name__}.")
