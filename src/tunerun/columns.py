"""Text in columns of a terminal, where a Chinese character takes two."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

# Latin words stay whole; a wide character may stand at either side of a line break.
_WIDE = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uffef"
_UNIT = re.compile(rf"\s+|[{_WIDE}]|[^\s{_WIDE}]+")
ELLIPSIS = "..."
MAX_COLUMNS = 100
"""Longest line that is printed, however wide the terminal is."""
_BAR = " | "


def width(text: str) -> int:
    """Returns the number of terminal columns that a text takes."""
    return sum(_character_width(character) for character in text)


def pad(text: str, columns: int) -> str:
    """Fills a text with blanks up to a number of columns."""
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """Cuts a text to a number of columns, with `...` at its end when something was cut."""
    if width(text) <= columns:
        return text
    kept, room = "", columns - len(ELLIPSIS)
    for character in text:
        room -= _character_width(character)
        if room < 0:
            break
        kept += character
    return kept + ELLIPSIS


def wrap(text: str, columns: int, max_lines: int) -> list[str]:
    """Breaks a text into lines.

    Args:
        text: Line ends in it are kept.
        columns: Longest line, at least 2.
        max_lines: The last one ends in `...` when there would be more.
    """
    lines = [line for paragraph in printable(text).splitlines() for line in _wrap_line(paragraph, columns)]
    if len(lines) > max_lines:
        # One blank too many makes the last line long enough to be cut.
        lines = [*lines[: max_lines - 1], cut(pad(lines[max_lines - 1], columns + 1), columns)]
    return lines or [""]


def fill(text: str, columns: int, *, first: str = "", rest: str = "") -> list[str]:
    """Breaks a message into lines at its blanks, and between Chinese characters where a line has no blank.

    Args:
        text: One paragraph.
        columns: Longest line; a path or a word that is longer stays whole, so that it can be copied.
        first: What the first line starts with.
        rest: What the other lines start with.
    """
    lines: list[str] = []
    line, empty = first, True
    for word in re.findall(r"\s+|\S+", text):
        for piece in _breakable(word, columns - width(rest)):
            if piece.isspace() and empty and lines:
                continue
            if not piece.isspace() and not empty and width(line + piece) > columns:
                lines.append(line.rstrip())
                line, empty = rest, True
            line, empty = line + piece, empty and piece.isspace()
    return [*lines, line.rstrip()]


def side_by_side(texts: Sequence[str], columns: int, max_lines: int) -> list[str]:
    """Lays texts out next to each other with bars between.

    Args:
        texts: At least one.
        columns: Width of all together.
        max_lines: Of each text.
    """
    each = column_width(len(texts), columns)
    rows = zip_longest(*(wrap(text, each, max_lines) for text in texts), fillvalue="")
    return [_BAR.join([*(pad(cell, each) for cell in row[:-1]), row[-1]]).rstrip() for row in rows]


def column_width(count: int, columns: int) -> int:
    """Returns the width of each of several columns with bars between, in a terminal of so many columns."""
    return (columns - len(_BAR) * (count - 1)) // count


def printable(text: str) -> str:
    """Replaces control characters, which a model can produce and a terminal would obey."""
    return "".join(
        character if character == "\n" or unicodedata.category(character) != "Cc" else "\ufffd" for character in text
    )


def _wrap_line(text: str, columns: int) -> list[str]:
    lines, line, used = [], "", 0
    for unit in _UNIT.findall(text):
        for piece in _pieces(unit, columns):
            size = width(piece)
            if used + size > columns:
                lines.append(line.rstrip())
                line, used = "", 0
            if line or not piece.isspace() or not lines:
                line, used = line + piece, used + size
    return [*lines, line.rstrip()]


def _breakable(word: str, room: int) -> list[str]:
    """Cuts a word of Chinese that is longer than a line; a path is none."""
    if width(word) <= room or "/" in word:
        return [word]
    return re.findall(rf"[{_WIDE}]|[^{_WIDE}]+", word)


def _pieces(unit: str, columns: int) -> list[str]:
    """Cuts a word that is longer than a line."""
    if width(unit) <= columns:
        return [unit]
    return [unit[start : start + columns // 2] for start in range(0, len(unit), columns // 2)]


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
