"""Values of a workbook's cells as texts, as Excel shows them, nothing added and nothing lost.

openpyxl gives numbers, and days and times where the number format says so (ECMA-376, 18.8.30 and 18.8.31). Of the
format only what changes the meaning is followed: days, times, and leading zeros ("007").
"""

from __future__ import annotations

import datetime
import re
from typing import Any

from openpyxl.utils.datetime import from_excel
from openpyxl.utils.escape import unescape

# Days in Chinese, Japanese and Korean Excel: formats that have a number and no code, which openpyxl does not know.
_EAST_ASIAN_DAYS = frozenset((*range(27, 32), 36, *range(50, 59)))
# Texts, escapes, padding and what stands in brackets within a format code.
_LITERAL = re.compile(r'"[^"]*"|\\.|[_*].|\[[^\]]*\]|general', re.IGNORECASE)


def cell_text(cell: Any) -> str:
    """Returns the text of a cell.

    Escapes such as `_x000D_`, which stand for characters that XML cannot hold (ECMA-376, 22.9.2.19), are resolved;
    openpyxl does not tell them from the same letters typed into a cell.

    Args:
        cell: An `openpyxl.cell.ReadOnlyCell` that has a value.

    Raises:
        LookupError: Its style is missing.
        ValueError: It is a day that no calendar has; likewise `OverflowError`.
    """
    value = cell.value
    if isinstance(value, str):
        return str(unescape(value))
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    code = cell.number_format
    if isinstance(value, int | float):
        if cell.style_array.numFmtId not in _EAST_ASIAN_DAYS:
            return _number_text(value, code)
        value = from_excel(value, cell.parent.parent.epoch)
    if isinstance(value, datetime.timedelta):
        seconds = round(value.total_seconds())
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time() and not _shows_hours(code):
        value = value.date()
    return str(value.isoformat())


def _number_text(value: float, format_code: str) -> str:
    # Excel keeps 17 digits and shows 15.
    text = str(value) if isinstance(value, int) else f"{value:.15g}".replace("e", "E")
    filled = text.isdecimal() and re.fullmatch("0+", format_code)
    return text.zfill(len(format_code)) if filled else text


def _shows_hours(format_code: str) -> bool:
    return re.search("[hs]", _LITERAL.sub("", format_code.partition(";")[0]), re.IGNORECASE) is not None
