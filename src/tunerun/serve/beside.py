"""Answers on a terminal while they are written: side by side, or below each other where there is little room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Protocol, TextIO

from tunerun import columns

# Of a column; narrower ones stand below each other.
_MIN_COLUMNS = 24
_MAX_LINES = 1 << 20
# A word that grows may leave its line for the next one, and come back in parts when it is longer than a line.
_UNSETTLED_LINES = 2
_UP, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[{}A", "\x1b[K", "\x1b[J"


class Writer(Protocol):
    """Shows answers that grow."""

    def show(self, texts: Sequence[str], open_: Sequence[bool]) -> None:
        """Shows what is new.

        Args:
            texts: All of each answer so far; the next time each begins with what it is now.
            open_: Which of them go on.
        """


def writer(names: Sequence[str], stream: TextIO) -> Writer:
    """Returns what shows the answers of models below their names, as it fits the terminal."""
    size = shutil.get_terminal_size()
    is_narrow = size.columns // len(names) < _MIN_COLUMNS
    if is_narrow or os.environ.get("TERM") == "dumb":
        return Below(names, stream)
    return Columns(names, stream, size)


class Columns:
    """Answers side by side; lines that may still change are drawn again."""

    def __init__(self, names: Sequence[str], stream: TextIO, size: os.terminal_size) -> None:
        """Takes the models' names, a terminal and its size."""
        # One column less: a full last column makes some terminals wrap.
        self._stream, self._width, self._height = stream, size.columns - 1, size.lines
        self._settled = 0
        """Lines of the answers that stay as they are."""
        self._drawn = 0
        """Lines below them."""
        self._write(columns.side_by_side([name.upper() for name in names], self._width, 1))

    def show(self, texts: Sequence[str], open_: Sequence[bool]) -> None:
        """Shows what is new."""
        lines = columns.side_by_side(texts, self._width, _MAX_LINES)
        settled = self._settled_lines(texts, open_, len(lines))
        # What has left the screen at its top cannot be drawn again: lines that would push it out wait.
        shown = lines[self._settled : settled + self._height - 1] if any(open_) else [*lines[self._settled :], ""]
        if self._drawn:
            self._stream.write(_UP.format(self._drawn))
        self._write(shown)
        self._drawn = len(shown) - (settled - self._settled)
        self._settled = settled

    def _settled_lines(self, texts: Sequence[str], open_: Sequence[bool], most: int) -> int:
        each = columns.column_width(len(texts), self._width)
        certain = [
            len(columns.wrap(text, each, _MAX_LINES)) - _UNSETTLED_LINES
            for text, goes_on in zip(texts, open_, strict=True)
            if goes_on
        ]
        return max(min(certain, default=most), self._settled)

    def _write(self, lines: Sequence[str]) -> None:
        self._stream.write("".join(f"{_CLEAR_LINE}{line}\n" for line in lines) + _CLEAR_BELOW)
        self._stream.flush()


class Below:
    """Answers below each other, each after the one before has ended."""

    def __init__(self, names: Sequence[str], stream: TextIO) -> None:
        """Takes the models' names and where to write."""
        self._names, self._stream = names, stream
        self._place = 0
        """Of the answer that is being written."""
        self._written = -1
        """How much of it stands there; -1 when not even its name does."""

    def show(self, texts: Sequence[str], open_: Sequence[bool]) -> None:
        """Writes what is new of an answer, and then the next ones while they have ended."""
        while self._place < len(texts):
            text = columns.printable(texts[self._place])
            if self._written < 0:
                self._stream.write(f"{self._names[self._place].upper()}\n")
                self._written = 0
            self._stream.write(text[self._written :])
            self._written = len(text)
            if open_[self._place]:
                break
            self._stream.write("\n\n")
            self._place, self._written = self._place + 1, -1
        self._stream.flush()
