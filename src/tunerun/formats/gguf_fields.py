"""The fields at the beginning of a GGUF file, read with the standard library alone.

Every count and length is held against the size of the file, so that a broken or hostile file is a message.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_HEADER_BYTES = 1 << 30
_GENERAL, _TYPE, _ADAPTER = "general.", "general.type", "adapter"
_STRING, _ARRAY = 8, 9
# `struct` letters of the value types, by number.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Broken(Exception):  # noqa: N818 (becomes a UserError that names the file)
    """Says what is wrong with a file."""


class Reader:
    """A position in the header of a file, and how far it may go."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        """Takes a file, and how many bytes it has."""
        self._stream = stream
        self._left = min(size, _MAX_HEADER_BYTES)

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
        if count * least_bytes > self._left:
            raise Broken(f"it claims {count} {what}, for which it has no room")
        return count

    def tell(self) -> int:
        """Returns where in the file the position is, in bytes."""
        return self._stream.tell()

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise Broken(f"it ends {count - self._left} bytes early, or has a length that is wrong")
        self._left -= count
        return self._stream.read(count)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise Broken(f"it has a value of type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return [self.string() for _ in range(self.count(count, 8, "strings"))]
        if kind not in _SCALARS:
            raise Broken(f"it has an array of type {kind}")
        letter = _SCALARS[kind]
        self.count(count, struct.calcsize(letter), "values")
        return list(struct.unpack(f"<{count}{letter}", self._take(count * struct.calcsize(letter))))


def is_gguf_adapter(file: Path) -> bool:
    """Says whether a GGUF file is an adapter; reads no more than its first fields, which describe it."""
    with file.open("rb") as stream:
        reader = Reader(stream, file.stat().st_size)
        try:
            for _ in range(reader.counts()[1]):
                key, value = reader.field()
                if key == _TYPE or not key.startswith(_GENERAL):
                    return bool(key == _TYPE and value == _ADAPTER)
        except Broken:
            # Whoever reads all of it says what is wrong.
            pass
    return False
