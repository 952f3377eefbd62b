"""Reads JSON lines and JSON arrays row by row, each with its line; values stay what the file says."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from tunerun.data.read.source import MAX_LINE_BYTES, decode_fault, fail, lines
from tunerun.data.rows import BadRow, Row

_CHUNK_BYTES = 1 << 16
_BLANK = " \t\r\n"
_BLANKS = re.compile(f"[{_BLANK}]*")

# A cut-off number, word or escape makes an error at most this far before the end of what was read so far.
_MARGIN = 16


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)


def json_lines(file: BinaryIO, name: str) -> Iterator[Row | BadRow]:
    """Yields the rows of a JSON-lines file; blank lines are skipped.

    Raises:
        UserError: A line is too long to be a row.
    """
    first: Row | None = None
    count = 0
    for number, line in lines(file, name):
        try:
            text = line.decode("utf-8").strip(_BLANK)
            if not text:
                continue
            # Not `decode`, which looks for white space twice and is a fifth slower.
            value, end = _DECODER.raw_decode(text)
            if end != len(text):
                raise json.JSONDecodeError("Extra data", text, len(text) - len(text[end:].lstrip(_BLANK)))
        except UnicodeDecodeError as error:
            yield BadRow(name, number, "bad-encoding", decode_fault(error))
        except json.JSONDecodeError as error:
            yield BadRow(name, number, "bad-json", _fault(text, error))
        except RecursionError:
            yield BadRow(name, number, "bad-json", "the value is nested too deeply.")
        except ValueError as error:
            yield BadRow(name, number, "bad-json", f"{error}.")
        else:
            row = Row(name, number, value)
            count += 1
            first = row if count == 1 else None
            yield row
    if first is not None:
        _refuse_columns(first)


def _fault(text: str, error: json.JSONDecodeError) -> str:
    """Describes what is wrong with a line, with what people most often mean by it."""
    rest = text[error.pos :]
    hint = ""
    if rest.startswith("\ufeff"):
        return f"a byte order mark stands at column {error.colno}, in the middle of the file."
    if error.msg == "Extra data":
        hint = " Write one row per line." if rest.startswith("{") else ""
    elif rest.startswith(("//", "/*", "#")):
        hint = " JSON has no comments."
    elif rest.startswith(("None", "True", "False")):
        hint = " JSON writes null, true and false."
    elif rest.startswith("'"):
        hint = " JSON texts stand in double quotes."
    elif rest.startswith(("}", "]")) and text[: error.pos].rstrip(_BLANK).endswith(","):
        hint = " JSON has no comma after the last item."
    elif not rest or error.msg.startswith("Unterminated string"):
        hint = " Is the line cut off?"
    return f"is not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}.{hint}"


def _refuse_columns(row: Row) -> None:
    """Refuses the only row of a file when it is an object of columns, as `DataFrame.to_json` writes it.

    Raises:
        UserError: It is.
    """
    if not isinstance(row.value, dict) or len(row.value) < 2:
        return
    columns = [list(item.values()) if _is_numbered(item) else item for item in row.value.values()]
    if not all(isinstance(column, list) and len(column) == len(columns[0]) > 1 for column in columns):
        return
    items = [item for column in columns for item in column]
    if any(isinstance(item, dict | list) for item in items) or not any(isinstance(item, str) for item in items):
        return
    fix = 'Write one object per row; pandas does it by to_json(orient="records", lines=True).'
    fail(row.file, row.line, f"holds columns ({', '.join(list(row.value)[:5])}), not rows.", fix)


def _is_numbered(value: Any) -> bool:
    return isinstance(value, dict) and all(key == str(number) for number, key in enumerate(value))


def json_array(file: BinaryIO, name: str) -> Iterator[Row]:
    """Yields the elements of a JSON array, reading on as it goes.

    Raises:
        UserError: The file is not a JSON array of rows; after a fault the rest cannot be told apart.
    """
    window = _Window(file, name)
    window.peek()
    window.take()
    if window.peek() != "]":
        while True:
            line = window.line
            yield Row(name, line, window.value())
            separator = window.peek()
            if separator != ",":
                break
            window.take()
            window.peek()
        if separator != "]":
            what = "a comma is missing." if separator else "the file ends within the array; is it cut off?"
            fail(name, window.line, what)
    window.take()
    if window.peek():
        fail(name, window.line, "there is more text after the end of the array.")


def json_value(file: BinaryIO, name: str) -> Iterator[Row]:
    """Yields the one JSON value that a file holds.

    Raises:
        UserError: The file is not one JSON value.
    """
    window = _Window(file, name)
    window.peek()
    line = window.line
    row = Row(name, line, window.value())
    _refuse_columns(row)
    yield row
    if window.peek():
        fail(name, window.line, "there is more text after the first value.", "Write one row per line.")


def _end_of_blanks(text: str, start: int) -> int:
    found = _BLANKS.match(text, start)
    return start if found is None else found.end()


class _Window:
    """The part of a text file that is being parsed; reads on by itself, and knows its line."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._text, self._position, self._ended = "", 0, False
        self.line = 1

    def peek(self) -> str:
        """Skips white space and returns the next character, or nothing at the end."""
        while True:
            start, self._position = self._position, _end_of_blanks(self._text, self._position)
            self.line += self._text.count("\n", start, self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more():
                return ""

    def take(self) -> None:
        """Goes one character on; reads the first one when nothing was read yet."""
        if self._position == len(self._text) and not self._more():
            return
        self.line += self._text[self._position] == "\n"
        self._position += 1

    def value(self) -> Any:
        """Parses the JSON value that starts here."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _MARGIN or error.msg.startswith("Unterminated string")
                if cut and self._more():
                    continue
                line = self.line + self._text.count("\n", self._position, error.pos)
                hint = "; is the file cut off?" if self._ended and cut else "."
                fail(self._name, line, f"is not valid JSON: {error.msg}{hint}")
            except RecursionError:
                fail(self._name, self.line, "the value is nested too deeply.")
            except ValueError as error:
                fail(self._name, self.line, f"in the value that starts here, {error}.")
            # A number could go on in the next chunk.
            if end < len(self._text) or not self._more():
                self.line += self._text.count("\n", self._position, end)
                self._position = end
                return value

    def _more(self) -> bool:
        if self._ended:
            return False
        rest = self._text[self._position :]
        if len(rest) > MAX_LINE_BYTES:
            fail(self._name, self.line, f"one value is longer than {MAX_LINE_BYTES >> 20} MiB.")
        # Twice as much each time, so that a long value is not parsed again and again.
        data = self._file.read(max(_CHUNK_BYTES, len(rest)))
        self._ended = not data
        try:
            self._text = rest + self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self.line + rest.count("\n") + error.object.count(b"\n", 0, error.start)
            fail(self._name, line, f"byte 0x{error.object[error.start]:02x} is not UTF-8.")
        self._position = 0
        return len(self._text) > len(rest)
