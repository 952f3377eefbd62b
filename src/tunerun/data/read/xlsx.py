"""Reads the parts of an Excel workbook (.xlsx, ECMA-376): its sheets, shared texts and cells.

It is a reader of our own because openpyxl believes the extent a sheet declares and leaves out rows beyond it, drops
text escapes, and cannot tell a formula that was never computed from an empty cell. A declared document type, which
entity bombs need and no workbook has, is refused.
"""

from __future__ import annotations

import posixpath
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple
from xml.parsers import expat

from tunerun.data.read.cells import Style, style_of
from tunerun.data.read.source import MAX_LINE_BYTES, fail

Event = tuple[str, dict[str, str] | str]
"""An element's name, and its attributes where it starts or the text in it where it ends."""

_CHUNK_BYTES = 1 << 16
# Unpacked size of what is held in memory; sheets are read as they come.
_MAX_PART_BYTES = 512 << 20
# More is a bomb: the XML of real sheets packs to a tenth, a hundredth at most.
_MAX_SHEET_RATIO = 500
_RATIO_FROM_BYTES = 64 << 20

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
_REFERENCE = re.compile(r"([A-Z]{1,3})([0-9]{1,7})", re.ASCII)
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, ValueError, LookupError, OverflowError,
)  # fmt: skip


class Cell(NamedTuple):
    """A cell as the file has it."""

    column: int
    """From 1."""
    kind: str
    """Attribute `t`: `n` number, `s` shared text, `str` text of a formula, `inlineStr`, `b`, `d`, `e` error."""
    style: int
    formula: bool
    raw: str | None
    """Text of the value; None when the cell has none."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One worksheet."""

    title: str
    part: str
    hidden: bool


@dataclass(frozen=True, slots=True)
class Workbook:
    """An open workbook."""

    archive: zipfile.ZipFile
    name: str
    """How messages name it."""
    sheets: tuple[Sheet, ...]
    texts: tuple[str, ...]
    """The texts that cells share."""
    styles: tuple[Style, ...]
    """How numbers are shown, by style."""
    from_1904: bool
    """Whether days are counted from 1904, as on old Macs."""


@contextmanager
def open_workbook(file: BinaryIO, name: str) -> Iterator[Workbook]:
    """Opens a workbook.

    Args:
        file: At its start; it can seek.
        name: How messages name it.

    Raises:
        UserError: It is damaged, protected by a password, a bomb, or no workbook; also while it is read on.
    """
    try:
        _check_start(file, name)
        with zipfile.ZipFile(file) as archive:
            yield _workbook(archive, name)
    except expat.ExpatError as error:
        fail(name, None, f"the workbook is damaged: {error}.")
    except _DAMAGED as error:
        fail(name, None, f"the workbook is damaged or cut off: {str(error) or type(error).__name__}.")


def sheet_rows(book: Workbook, sheet: Sheet) -> Iterator[tuple[int, list[Cell]]]:
    """Yields the rows of a sheet that the file has, with their numbers, which are increasing.

    Raises:
        UserError: As `open_workbook`.
    """
    row, column, attributes = 0, 0, {}
    cells: list[Cell] = []
    formula, phonetic = False, False
    raw: str | None = None
    for tag, value in _events(book.archive, sheet.part, book.name):
        if isinstance(value, dict):
            if tag == "c":
                column, attributes = _column(value, column), value
                formula, raw = False, None
            elif tag == "f":
                formula = True
            elif tag == "rPh":
                phonetic = True
            elif tag == "row":
                row, column, cells = _row_number(value, row), 0, []
        elif tag == "v":
            raw = value
        elif tag == "t" and not phonetic:
            raw = (raw or "") + value
        elif tag == "c":
            cells.append(Cell(column, attributes.get("t", "n"), int(attributes.get("s", 0)), formula, raw))
        elif tag == "rPh":
            phonetic = False
        elif tag == "row":
            yield row, cells
        elif tag == "sheetData":
            return


def merged_ranges(book: Workbook, sheet: Sheet) -> list[tuple[int, int, int, int]]:
    """Lists the merged cells as first row, first column, last row, last column, in order.

    They stand behind the rows; most sheets have none, which a search through the bytes tells without parsing.
    """
    if not _mentions(book.archive, sheet.part, b"mergeCell"):
        return []
    found: list[tuple[int, int, int, int]] = []
    for tag, value in _events(book.archive, sheet.part, book.name):
        if tag == "mergeCell" and isinstance(value, dict):
            first, _, last = value["ref"].partition(":")
            found.append((*_place(first), *_place(last or first)))
    return sorted(found)


def plain(text: str) -> str:
    """Resolves `_x000D_`-style escapes, which stand for characters that XML cannot hold (ECMA-376, 22.9.2.19)."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text) if "_x" in text else text


def _check_start(file: BinaryIO, name: str) -> None:
    start = file.read(len(_OLE))
    file.seek(0)
    if not start:
        fail(name, None, "is empty.")
    if start == _OLE:
        fail(name, None, "is protected by a password, or an old .xls file.", "Save it as .xlsx without a password.")
    if not start.startswith(b"PK"):
        fail(name, None, "is not an Excel workbook.", "If it is text, name it .csv; else save it as .xlsx.")


def _workbook(archive: zipfile.ZipFile, name: str) -> Workbook:
    parts = archive.namelist()
    if "mimetype" in parts and b"opendocument" in archive.read("mimetype")[:99]:
        fail(name, None, "is an OpenDocument table, not an Excel workbook.", "Save it as .xlsx or CSV.")
    if "xl/workbook.bin" in parts:
        fail(name, None, "is a binary workbook (.xlsb).", "Save it as .xlsx or CSV.")
    main = next((part for kind, part in _relations(archive, "", name).values() if kind == "officeDocument"), None)
    if main is None or not main.startswith("xl/"):
        fail(name, None, "is a zip archive, but not an Excel workbook.")
    related = _relations(archive, main, name)
    by_kind = dict(related.values())
    sheets, from_1904 = [], False
    for tag, value in _events(archive, main, name):
        if tag == "sheet" and isinstance(value, dict):
            kind, part = related[next(value[key] for key in value if key.rpartition(":")[2] == "id")]
            if kind == "worksheet":
                sheets.append(Sheet(value["name"], part, value.get("state", "visible") != "visible"))
        elif tag == "workbookPr" and isinstance(value, dict):
            from_1904 = value.get("date1904") in ("1", "true")
    texts = tuple(_shared_texts(archive, by_kind["sharedStrings"], name)) if "sharedStrings" in by_kind else ()
    styles = tuple(_styles(archive, by_kind["styles"], name)) if "styles" in by_kind else ()
    return Workbook(archive, name, tuple(sheets), texts, styles, from_1904)


def _relations(archive: zipfile.ZipFile, part: str, name: str) -> dict[str, tuple[str, str]]:
    """Returns what a part refers to: kind and part by id."""
    folder, base = posixpath.split(part)
    index = posixpath.join(folder, "_rels", f"{base}.rels")
    if index not in archive.namelist():
        fail(name, None, f"is not an Excel workbook, or is damaged: {index} is missing.")
    found = {}
    for tag, value in _events(archive, index, name):
        if tag == "Relationship" and isinstance(value, dict) and value.get("TargetMode") != "External":
            target = posixpath.normpath(posixpath.join("/", folder, value["Target"])).lstrip("/")
            found[value["Id"]] = (value["Type"].rpartition("/")[2], target)
    return found


def _shared_texts(archive: zipfile.ZipFile, part: str, name: str) -> Iterator[str]:
    parts: list[str] = []
    phonetic = False
    for tag, value in _events(archive, part, name):
        if tag == "rPh":
            phonetic = isinstance(value, dict)
        elif tag == "si" and isinstance(value, dict):
            parts = []
        elif tag == "si":
            yield plain("".join(parts))
        elif tag == "t" and isinstance(value, str) and not phonetic:
            parts.append(value)


def _styles(archive: zipfile.ZipFile, part: str, name: str) -> Iterator[Style]:
    formats: dict[int, str] = {}
    inside = False
    for tag, value in _events(archive, part, name):
        if tag == "numFmt" and isinstance(value, dict):
            formats[int(value["numFmtId"])] = value["formatCode"]
        elif tag == "cellXfs":
            inside = isinstance(value, dict)
        elif tag == "xf" and inside and isinstance(value, dict):
            number = int(value.get("numFmtId", 0))
            yield style_of(number, formats.get(number))


def _events(archive: zipfile.ZipFile, part: str, name: str) -> Iterator[Event]:
    """Parses a part as it is unpacked."""
    info = archive.getinfo(part)
    if info.flag_bits & 1:
        fail(name, None, "is protected by a password.", "Save it without one.")
    streamed = "/worksheets/" in part
    ratio = info.file_size / max(1, info.compress_size)
    if not streamed and info.file_size > _MAX_PART_BYTES:
        fail(name, None, f"{part} unpacks to {info.file_size >> 20} MiB, more than can be held in memory.")
    if info.file_size > _RATIO_FROM_BYTES and ratio > _MAX_SHEET_RATIO:
        fail(name, None, f"{part} unpacks to {ratio:.0f} times its size: it is a zip bomb, not a table.")
    collector = _Collector(name)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = collector.start
    parser.EndElementHandler = collector.end
    parser.CharacterDataHandler = collector.text
    parser.StartDoctypeDeclHandler = collector.doctype
    fed = 0
    with archive.open(info) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            parser.Parse(chunk)
            fed += len(chunk)
            if fed - parser.CurrentByteIndex > MAX_LINE_BYTES:
                fail(name, None, f"{part} holds a tag longer than {MAX_LINE_BYTES >> 20} MiB.")
            yield from collector.taken()
        parser.Parse(b"", True)
    yield from collector.taken()


class _Collector:
    """What a parser found since it was last asked."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: list[Event] = []
        self._parts: list[str] = []
        self._size = 0

    def taken(self) -> list[Event]:
        found, self._found = self._found, []
        return found

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._parts, self._size = [], 0
        self._found.append((tag.rpartition(":")[2], attributes))

    def end(self, tag: str) -> None:
        self._found.append((tag.rpartition(":")[2], "".join(self._parts)))
        self._parts, self._size = [], 0

    def text(self, data: str) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_LINE_BYTES:
            fail(self._name, None, f"a cell is longer than {MAX_LINE_BYTES >> 20} MiB.")

    def doctype(self, *_: object) -> None:
        fail(self._name, None, "declares a document type, which no workbook has and entity bombs need.")


def _mentions(archive: zipfile.ZipFile, part: str, word: bytes) -> bool:
    end = b""
    with archive.open(part) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            if word in end + chunk:
                return True
            end = chunk[-len(word) :]
    return False


def _row_number(attributes: Mapping[str, str], last: int) -> int:
    number = int(attributes.get("r", last + 1))
    if number <= last:
        raise ValueError(f"row {number} comes after row {last}")
    return number


def _column(attributes: Mapping[str, str], last: int) -> int:
    column = _place(attributes["r"])[1] if "r" in attributes else last + 1
    if column <= last:
        raise ValueError(f"cell {attributes['r']} comes too late")
    return column


def _place(reference: str) -> tuple[int, int]:
    """Returns row and column of a reference such as `C7`."""
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise ValueError(f"{reference[:20]!r} is no cell")
    column = 0
    for letter in found[1]:
        column = column * 26 + ord(letter) - ord("A") + 1
    return int(found[2]), column
