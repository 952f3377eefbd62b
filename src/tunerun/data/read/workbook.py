"""Reads the rows of an Excel sheet: its first row names the columns, and every value becomes the text Excel shows.

Columns are also known by their letter: one without a name is in the rows under its letter, the others are found by
`rows.column_key`. Messages name the file, the sheet and its row: `b.xlsx[DrugQA]:7`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from openpyxl.utils import get_column_letter

from tunerun.data.read.cells import cell_text
from tunerun.data.read.source import fail
from tunerun.data.read.xlsx import Range, extras_of, open_workbook, sheet_rows
from tunerun.data.rows import BadRow, Row, RowFault


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
        yield from _rows(_chosen(book, name, sheet), name)


def _chosen(book: Any, name: str, title: str | None) -> Any:
    titles = ", ".join(sheet.title for sheet in book.worksheets)
    if title is not None:
        found = next((sheet for sheet in book.worksheets if sheet.title == title), None)
        if found is None:
            fail(name, None, f"has no sheet {title!r}.", f"It has {titles or 'none'}.")
        return found
    filled = [sheet for sheet in book.worksheets if any(cells for _, cells in sheet_rows(sheet, name))]
    shown = [sheet for sheet in filled if sheet.sheet_state == "visible"]
    if not filled:
        fail(name, None, "holds no rows.")
    if len(shown) != 1:
        what = "several sheets have rows" if shown else "only hidden sheets have rows"
        listed = ", ".join(sheet.title for sheet in shown or filled)
        example = shlex.quote((shown or filled)[-1].title)
        fail(name, None, f"{what}: {listed}.", f"Name one: data.sheet={example}, in data convert --sheet {example}.")
    return shown[0]


def _rows(sheet: Any, book_name: str) -> Iterator[Row | BadRow]:
    name = f"{book_name}[{sheet.title}]"
    extras = extras_of(sheet, book_name)
    merges = _Merges(extras.merged)
    titles: Mapping[int, str] | None = None
    letters: Mapping[str, str] = {}
    for number, cells in sheet_rows(sheet, book_name):
        if not cells and number not in extras.uncomputed:
            continue
        try:
            if number in extras.uncomputed:
                place = extras.uncomputed[number]
                detail = f"cell {place} holds a formula that was never computed: open the file in Excel and save it."
                raise RowFault("formula-without-value", detail)
            texts = {cell.column: _text(cell) for cell in cells}
            if titles is None:
                titles = _titles(texts, name, number)
                letters = {get_column_letter(column): title for column, title in titles.items()}
                continue
            value = _value(texts, titles)
            if any(value.values()):
                merges.check(number, max(titles, default=0))
                yield Row(name, number, value, letters)
        except RowFault as fault:
            if titles is None:
                fail(name, number, f"in the header, {fault.detail}")
            yield BadRow(name, number, fault.reason, fault.detail)


def _titles(texts: Mapping[int, str], name: str, number: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for column, title in texts.items():
        if title in found.values():
            fail(name, number, f"the column {title!r} is there twice.", "Give each column a name of its own.")
        if title.strip():
            found[column] = title
    return found


def _value(texts: Mapping[int, str], titles: Mapping[int, str]) -> dict[str, str]:
    value = dict.fromkeys(titles.values(), "")
    for column, text in texts.items():
        if column in titles:
            value[titles[column]] = text
        elif text:
            letters = get_column_letter(column)
            if letters in value:
                raise RowFault("wrong-columns", f"column {letters} has no name, and another is called {letters}.")
            value[letters] = text
    return value


def _text(cell: Any) -> str:
    if cell.data_type == "e":
        raise RowFault("error-cell", f"cell {cell.coordinate} holds the error {cell.value}.")
    try:
        return cell_text(cell)
    except (ValueError, LookupError, OverflowError) as error:
        raise RowFault("bad-cell", f"cell {cell.coordinate} is damaged: {error}.") from error


class _Merges:
    """Merged cells, asked about rows in increasing order."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._waiting = list(reversed(ranges))
        self._active: list[Range] = []

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
                first, last = f"{get_column_letter(left)}{top}", f"{get_column_letter(right)}{bottom}"
                detail = f"the cells {first}:{last} are merged, so that only {first} has a value: split them."
                raise RowFault("merged-cells", detail)
