"""Reads the rows of an Excel sheet: its first row names the columns, and every value becomes the text Excel shows.

Columns are also known by their letter: one without a name is in the rows under its letter, the others are found by
`rows.column_key`. Messages name the file, the sheet and its row: `b.xlsx[DrugQA]:7`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from tunerun.data.read.cells import Style, number_text
from tunerun.data.read.source import fail
from tunerun.data.read.xlsx import Cell, Sheet, Workbook, merged_ranges, open_workbook, plain, sheet_rows
from tunerun.data.rows import BadRow, Row, RowFault

WORKBOOK_SUFFIXES = (".xlsx", ".xlsm")

FOREIGN_TABLES = {
    ".xls": "Save it as .xlsx or CSV.",
    ".xlsb": "Save it as .xlsx or CSV.",
    ".ods": "Save it as .xlsx or CSV.",
    ".numbers": "Export it as .xlsx or CSV.",
    ".docx": "Save its table as .xlsx or CSV.",
    ".zip": "Unpack it.",
    ".pkl": "Write its rows as JSON lines; pickles can run code and are not opened.",
}
"""What to do with tables of other kinds."""

_GENERAL = Style("number", 0)
_BOOLEANS = {"0": "FALSE", "1": "TRUE"}


def workbook(file: BinaryIO, name: str, sheet: str | None) -> Iterator[Row | BadRow]:
    """Yields the rows of a sheet as dicts of texts by column name; blank rows are skipped.

    Args:
        file: The workbook.
        name: How messages name it.
        sheet: Title of the sheet; None takes the only one that has rows.

    Raises:
        UserError: The workbook cannot be read, the sheet has to be chosen, or its header is unusable.
    """
    with open_workbook(file, name) as book:
        chosen = _chosen(book, sheet)
        yield from _rows(book, chosen, f"{name}[{chosen.title}]")


def _chosen(book: Workbook, title: str | None) -> Sheet:
    titles = ", ".join(sheet.title for sheet in book.sheets)
    if title is not None:
        found = next((sheet for sheet in book.sheets if sheet.title == title), None)
        if found is None:
            fail(book.name, None, f"has no sheet {title!r}.", f"It has {titles or 'none'}.")
        return found
    filled = [sheet for sheet in book.sheets if _has_rows(book, sheet)]
    shown = [sheet for sheet in filled if not sheet.hidden]
    if not filled:
        fail(book.name, None, "holds no rows.")
    if len(shown) != 1:
        what = "several sheets have rows" if shown else "only hidden sheets have rows"
        listed = ", ".join(sheet.title for sheet in shown or filled)
        fail(book.name, None, f"{what}: {listed}.", f"Name one, such as data.sheet={(shown or filled)[0].title!r}.")
    return shown[0]


def _has_rows(book: Workbook, sheet: Sheet) -> bool:
    return any(any(cell.raw for cell in cells) for _, cells in sheet_rows(book, sheet))


def _rows(book: Workbook, sheet: Sheet, name: str) -> Iterator[Row | BadRow]:
    merges = _Merges(merged_ranges(book, sheet))
    titles: Mapping[int, str] | None = None
    letters: Mapping[str, str] = {}
    for number, cells in sheet_rows(book, sheet):
        if not any(cell.raw or cell.formula for cell in cells):
            continue
        try:
            if titles is None:
                titles = _titles(book, cells, name, number)
                letters = {_letters(column): title for column, title in titles.items()}
                continue
            value = _value(book, cells, titles, number)
            if any(value.values()):
                merges.check(number, max(titles, default=0))
                yield Row(name, number, value, letters)
        except RowFault as fault:
            if titles is None:
                fail(name, number, f"in the header, {fault.detail}")
            yield BadRow(name, number, fault.reason, fault.detail)


def _titles(book: Workbook, cells: Sequence[Cell], name: str, number: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for cell in cells:
        title = _text(book, cell, number)
        if title in found.values():
            fail(name, number, f"the column {title!r} is there twice.", "Give each column a name of its own.")
        if title.strip():
            found[cell.column] = title
    return found


def _value(book: Workbook, cells: Sequence[Cell], titles: Mapping[int, str], number: int) -> dict[str, str]:
    value = dict.fromkeys(titles.values(), "")
    for cell in cells:
        text = _text(book, cell, number)
        if cell.column in titles:
            value[titles[cell.column]] = text
        elif text:
            letters = _letters(cell.column)
            if letters in value:
                raise RowFault("wrong-columns", f"column {letters} has no name, and another is called {letters}.")
            value[letters] = text
    return value


def _text(book: Workbook, cell: Cell, number: int) -> str:
    place = f"{_letters(cell.column)}{number}"
    if cell.formula and not cell.raw and cell.kind != "str":
        detail = f"cell {place} holds a formula that was never computed: open the file in Excel and save it."
        raise RowFault("formula-without-value", detail)
    if cell.raw is None:
        return ""
    if cell.kind == "e":
        raise RowFault("error-cell", f"cell {place} holds the error {cell.raw}.")
    try:
        if cell.kind == "s":
            return book.texts[int(cell.raw)]
        if cell.kind == "b":
            return _BOOLEANS[cell.raw]
        if cell.kind == "n":
            style = book.styles[cell.style] if cell.style else _GENERAL
            return number_text(cell.raw.strip(), style, book.from_1904) if cell.raw.strip() else ""
    except (ValueError, LookupError) as error:
        raise RowFault("bad-cell", f"cell {place} is damaged: {cell.raw[:40]!r} is not what it says.") from error
    return plain(cell.raw)


def _letters(column: int) -> str:
    text = ""
    while column:
        column, rest = divmod(column - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


class _Merges:
    """Merged cells, asked about rows in increasing order."""

    def __init__(self, ranges: Sequence[tuple[int, int, int, int]]) -> None:
        self._waiting = list(reversed(ranges))
        self._active: list[tuple[int, int, int, int]] = []

    def check(self, row: int, columns: int) -> None:
        """Refuses a row some of whose values stand in another row or column.

        Raises:
            RowFault: It is one.
        """
        while self._waiting and self._waiting[-1][0] <= row:
            self._active.append(self._waiting.pop())
        self._active = [found for found in self._active if found[2] >= row]
        for top, left, bottom, right in self._active:
            if left <= columns and (top < row or left < min(right, columns)):
                cells = f"{_letters(left)}{top}:{_letters(right)}{bottom}"
                detail = f"the cells {cells} are merged, so that only {_letters(left)}{top} has a value: split them."
                raise RowFault("merged-cells", detail)
