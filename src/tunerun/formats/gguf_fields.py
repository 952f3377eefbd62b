"""The fields at the beginning of a GGUF file, read with the standard library alone.

Every count and length is held against the size of the file, so that a broken or hostile file is a message.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_HEADER_BYTES = 1 << 30
_GENERAL, _TYPE, _ADAPTER = "general.", "general.type", "adapter"
_STRING, _ARRAY = 8, 9
Data = bytes | mmap.mmap
_LENGTH = struct.Struct("<Q").unpack_from
# `struct` letters of the value types, by number.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Broken(Exception):  # noqa: N818 (becomes a UserError that names the file)
    """Says what is wrong with a file."""


class Reader:
    """A position in the header of a file, and how far it may go."""

    def __init__(self, data: Data, *, lists: bool = True) -> None:
        """Takes a file's bytes.

        Args:
            data: All of the file.
            lists: Whether values that are lists are kept; if not they are None, though looked through all the same.
        """
        self._data = data
        self._end = min(len(data), _MAX_HEADER_BYTES)
        self._at = 0
        self._lists = lists

    def counts(self) -> tuple[int, int]:
        """Returns how many tensors and fields a file claims, at its beginning."""
        if self._take(4) != _MAGIC:
            raise Broken("it does not begin with GGUF")
        version = self.number("I")
        if version not in _VERSIONS:
            raise Broken(f"it has version {version}, not one of {', '.join(map(str, _VERSIONS))}")
        tensors, fields = self.number("Q"), self.number("Q")
        # A field takes at least a length, a type and a value.
        return tensors, self.count(fields, 8 + 4 + 1, "fields")

    def field(self) -> tuple[str, Any]:
        """Returns the next field's name and value."""
        return self.string(), self._value(self.number("I"))

    def number(self, letter: str) -> Any:
        """Returns the next number, of a type that `struct` calls by a letter."""
        return struct.unpack(f"<{letter}", self._take(struct.calcsize(f"<{letter}")))[0]

    def string(self) -> str:
        """Returns the next text."""
        return self._take(self.number("Q")).decode("utf-8", errors="replace")

    def count(self, count: int, least_bytes: int, what: str) -> int:
        """Returns a count of things, if the file has room for so many."""
        if count * least_bytes > self._end - self._at:
            raise Broken(f"it claims {count} {what}, for which it has no room")
        return count

    def tell(self) -> int:
        """Returns where in the file the position is, in bytes."""
        return self._at

    def _take(self, count: int) -> bytes:
        first, self._at = self._at, self._at + count
        if self._at > self._end:
            raise Broken(f"it ends {self._at - self._end} bytes early, or has a length that is wrong")
        return self._data[first : self._at]

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise Broken(f"it has a value of type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self) -> list[Any] | None:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return self._strings(self.count(count, 8, "strings"))
        if kind not in _SCALARS:
            raise Broken(f"it has an array of type {kind}")
        letter = _SCALARS[kind]
        values = self._take(self.count(count, struct.calcsize(letter), "values") * struct.calcsize(letter))
        return list(struct.unpack(f"<{count}{letter}", values)) if self._lists else None

    def _strings(self, count: int) -> list[str] | None:
        if self._lists:
            return [self.string() for _ in range(count)]
        # A vocabulary has hundreds of thousands: one call for each length, and `struct` finds those past the end.
        data, at = self._data, self._at
        try:
            for _ in range(count):
                at += 8 + _LENGTH(data, at)[0]
        except (struct.error, OverflowError):
            at = self._end + 1
        self._take(at - self._at)
        return None


@contextmanager
def mapped(file: Path) -> Iterator[Data]:
    """Gives a file's bytes, of which those that are looked at are read."""
    with file.open("rb") as stream:
        if not file.stat().st_size:
            yield b""
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def is_gguf_adapter(file: Path) -> bool:
    """Says whether a GGUF file is an adapter; reads no more than its first fields, which describe it."""
    with mapped(file) as data:
        reader = Reader(data)
        try:
            for _ in range(reader.counts()[1]):
                key, value = reader.field()
                if key == _TYPE or not key.startswith(_GENERAL):
                    return bool(key == _TYPE and value == _ADAPTER)
        except Broken:
            # Whoever reads all of it says what is wrong.
            pass
    return False
