"""What a user sees while a stage runs: its lines, and one bar that is rewritten in place.

Without a terminal (a file, a pipe) the bar becomes a line now and then.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from tunerun.columns import MAX_COLUMNS

_BAR_COLUMNS = 24
_LINE_EVERY_SECONDS = 15.0
_SHORT_SECONDS = 2.0
_REDRAW_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """How far a stage has come; what `tunerun.progress` sends."""

    label: str
    count: int
    total: int | None
    unit: str
    seconds: float
    note: str
    done: bool

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Event:
        """Reads one line of the events pipe."""
        return Event(**data)


class Terminal:
    """Writes lines and the progress bar to a stream, in turn."""

    def __init__(
        self, stream: TextIO, error_stream: TextIO, *, prefix: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Takes over two streams.

        Args:
            stream: Where to write; a bar is drawn when it is a terminal.
            error_stream: Where errors and warnings go.
            prefix: Begins every line, where several runs write to the same stream; there is no bar then.
            clock: Seconds that only grow.
        """
        self._streams: list[TextIO | None] = [stream, error_stream]
        self._clock = clock
        self._prefix = prefix
        self._is_terminal = stream.isatty() and not prefix
        self._bar = ""
        self._drawn = float("-inf")
        self._told = float("-inf")

    def line(self, text: str, *, error: bool = False) -> None:
        """Writes a line above the bar."""
        self._write(self._erase())
        lines = text.split("\n") if self._prefix else [text]
        self._write("".join(f"{self._prefix}{line}\n" for line in lines), error=error)
        self._write(self._bar)

    def event(self, event: Event) -> None:
        """Shows how far the work is."""
        if self._is_terminal:
            self._draw(event)
        elif event.seconds >= _SHORT_SECONDS:
            self._tell(event)

    def clear(self) -> None:
        """Takes the bar away; the next event may draw at once."""
        erase = self._erase()
        self._bar, self._drawn, self._told = "", float("-inf"), float("-inf")
        self._write(erase)

    def _draw(self, event: Event) -> None:
        if event.done:
            self.clear()
            if event.seconds >= _SHORT_SECONDS:
                self.line(summary(event))
            return
        now = self._clock()
        if now - self._drawn < _REDRAW_SECONDS and event.count != event.total:
            return
        self._drawn = now
        # One column less: a full last column makes some terminals wrap.
        columns = min(shutil.get_terminal_size().columns, MAX_COLUMNS) - 1
        erase, self._bar = self._erase(), bar(event, columns)
        self._write(erase + self._bar)

    def _tell(self, event: Event) -> None:
        now = self._clock()
        if event.done:
            self._told = float("-inf")
            self.line(summary(event))
        elif min(now - self._told, event.seconds) >= _LINE_EVERY_SECONDS:
            self._told = now
            self.line(bar(event, MAX_COLUMNS, blocks=False))

    def _erase(self) -> str:
        return "\r\x1b[K" if self._is_terminal and self._bar else ""

    def _write(self, text: str, *, error: bool = False) -> None:
        stream = self._streams[error]
        if stream is None or not text:
            return
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            # Whoever read the output is gone; hours of training are worth more than its last lines.
            self._streams[error] = None


def bar(event: Event, columns: int, *, blocks: bool = True) -> str:
    """Renders progress in one line of at most `columns` characters.

    Args:
        event: How far the work is.
        columns: Longest line.
        blocks: Whether a bar of blocks is part of it.
    """
    parts = [f"{event.label:<10}"]
    rate = event.count / event.seconds if event.seconds > 0 else 0.0
    if event.total:
        fraction = min(event.count / event.total, 1.0)
        if blocks:
            filled = int(fraction * _BAR_COLUMNS)
            parts.append("[" + "#" * filled + "." * (_BAR_COLUMNS - filled) + "]")
        parts.append(f"{fraction:4.0%}")
        parts.append(f"{_amount(event.count, event.unit)}/{_quantity(event.total, event.unit)}")
    else:
        parts.append(_quantity(event.count, event.unit))
    if rate > 0:
        parts.append(f"{_rate(rate, event.unit)}/s")
    if event.total and rate > 0:
        parts.append(f"ETA {duration((event.total - event.count) / rate)}")
    if event.note:
        parts.append(event.note)
    return "  ".join(parts)[:columns].rstrip()


def summary(event: Event) -> str:
    """Renders finished work: `train: 200 steps in 0:12 (16.7/s)`."""
    rate = f" ({_rate(event.count / event.seconds, event.unit)}/s)" if event.count and event.seconds > 0 else ""
    return f"{event.label}: {_quantity(event.count, event.unit)} in {duration(event.seconds)}{rate}"


def duration(seconds: float) -> str:
    """Renders a duration as `0:07`, `12:40` or `3:05:09`."""
    whole = max(int(seconds + 0.5), 0)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def size(amount: float) -> str:
    """Renders a number of bytes in the unit that suits it: `512 B`, `9.4 MB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _amount(count: float, unit: str) -> str:
    return size(count) if unit == "bytes" else f"{count:,.0f}"


def _quantity(count: float, unit: str) -> str:
    return size(count) if unit == "bytes" else f"{count:,.0f} {unit}"


def _rate(rate: float, unit: str) -> str:
    return size(rate) if unit == "bytes" else f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
