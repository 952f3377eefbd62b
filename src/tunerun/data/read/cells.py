"""Numbers, days and times of a workbook's cells as texts, as Excel shows them, nothing added and nothing lost.

A cell holds a number and a style; the style's format code says whether it is a day, a time or a number (ECMA-376,
18.8.30 and 18.8.31). Only what changes the meaning is followed: days, times, and leading zeros ("007").
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["number", "day", "time", "day-time", "span"]

# Days are counted so that 1 is 1900-01-01; 1900 is taken for a leap year, which shifts what is before its March.
_EPOCH = datetime.datetime(1899, 12, 30)  # noqa: DTZ001 (a sheet knows no time zone)
_EPOCH_1904 = datetime.datetime(1904, 1, 1)  # noqa: DTZ001
_LAST_DAY = 2_958_466
_FALSE_LEAP_DAY = 60

# Formats that have a number and no code: 27 to 36 and 50 to 58 are days in Chinese, Japanese and Korean Excel.
_BUILT_IN: Mapping[int, Kind] = {
    **dict.fromkeys((*range(14, 18), *range(27, 32), 36, *range(50, 59)), "day"),
    **dict.fromkeys((*range(18, 22), *range(32, 36), 45, 47), "time"),
    22: "day-time",
    46: "span",
}

# Texts, escapes, padding, colours and currencies within a format code.
_LITERAL = re.compile(r'"[^"]*"|\\.|[_*].|\[(?!h+\]|m+\]|s+\])[^\]]*\]|am/pm|a/p|general', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Style:
    """How the number of a cell is shown."""

    kind: Kind
    digits: int
    """Leading zeros fill whole numbers up to so many digits."""


def style_of(number: int, code: str | None) -> Style:
    """Returns how a number format shows a number.

    Args:
        number: Of the format.
        code: Its code, when the workbook has one for it, such as `yyyy/mm/dd`.
    """
    if code is None:
        return Style(_BUILT_IN.get(number, "number"), 0)
    if re.fullmatch(r"0+", code):
        return Style("number", len(code))
    code = _LITERAL.sub("", code.partition(";")[0]).lower()
    if re.search(r"\[[hms]+\]", code):
        return Style("span", 0)
    timed = re.search(r"[hs]", code) is not None
    dated = re.search(r"[yd]" if timed else r"[ydm]", code) is not None
    return Style("day-time" if timed and dated else "time" if timed else "day" if dated else "number", 0)


def number_text(raw: str, style: Style, from_1904: bool) -> str:
    """Returns the text of a number.

    Args:
        raw: As the file writes it, such as `7`, `4.0999999999999996` or `45322`.
        style: How it is shown.
        from_1904: Whether days are counted from 1904.

    Raises:
        ValueError: It is no number.
    """
    value = float(raw)
    if style.kind != "number":
        text = _moment(value, style, from_1904)
        if text is not None:
            return text
    if re.fullmatch(r"-?[0-9]+", raw, re.ASCII):
        return raw.zfill(style.digits) if value >= 0 else raw
    # Excel keeps 17 digits and shows 15.
    text = f"{value:.15g}"
    return text.zfill(style.digits) if text.isdecimal() else text.replace("e", "E")


def _moment(value: float, style: Style, from_1904: bool) -> str | None:
    """Returns a day, time or span in ISO form, or None for what Excel shows as a row of hashes."""
    if not 0 <= value < _LAST_DAY:
        return None
    if style.kind == "span":
        seconds = round(value * 86_400)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    epoch = _EPOCH_1904 if from_1904 else _EPOCH
    if not from_1904 and 1 <= value < _FALSE_LEAP_DAY:
        epoch += datetime.timedelta(days=1)
    elif not from_1904 and _FALSE_LEAP_DAY <= value < _FALSE_LEAP_DAY + 1:
        return None
    moment = epoch + datetime.timedelta(milliseconds=round(value * 86_400_000))
    clock = moment.time()
    if value < 1 and not from_1904 and style.kind == "time":
        return clock.isoformat()
    if style.kind == "day" and clock == datetime.time():
        return moment.date().isoformat()
    return moment.isoformat()
