"""The header of a GGUF file, checked in Python before llama.cpp's C++ sees it.

Every count, length and offset is held against the size of the file, so that a broken or hostile file is a message.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunerun.errors import Problem, UserError
from tunerun.formats.ggml import TYPES, TensorType

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
# ggml's own limits: GGML_MAX_DIMS, GGML_MAX_NAME.
_MAX_AXES, _MAX_NAME_BYTES = 4, 64
_MAX_HEADER_BYTES = 1 << 30
_STRING, _ARRAY = 8, 9
# `struct` letters of the value types, by number.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Types that tunerun does not write: number, values in a block, bytes in a block.
_OTHER_TYPES = (
    ("I8", 24, 1, 1), ("I16", 25, 1, 2), ("I32", 26, 1, 4), ("I64", 27, 1, 8), ("F64", 28, 1, 8),
    ("MXFP4", 39, 32, 17), ("NVFP4", 40, 64, 36), ("Q1_0", 41, 128, 18), ("Q2_0", 42, 64, 18),
)  # fmt: skip
_BY_NUMBER = {kind.number: kind for kind in TYPES.values()} | {
    number: TensorType(name=name, number=number, block_values=values, block_bytes=size)
    for name, number, values, size in _OTHER_TYPES
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor in a file."""

    shape: tuple[int, ...]
    """Outermost axis first."""
    type: TensorType
    offset: int
    """Of the first byte, from the start of the file."""
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """Metadata and tensors of a file."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


class _Broken(Exception):  # noqa: N818 (becomes a UserError that names the file)
    """Says what is wrong."""


def read_gguf_header(file: Path) -> GgufHeader:
    """Reads and checks the header of a GGUF file.

    Raises:
        UserError: It is no GGUF file, is cut short, or has counts, lengths or offsets that do not fit.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            return _Reader(stream, size).header()
    except _Broken as error:
        fix = "Export it or get it again."
        raise UserError(Problem(where=str(file), what=f"the file is broken: {error}.", fix=fix)) from None


class _Reader:
    """A position in a file, and what is left of it."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self._left = min(size, _MAX_HEADER_BYTES)

    def header(self) -> GgufHeader:
        if self._take(4) != _MAGIC:
            raise _Broken("it does not begin with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:
            raise _Broken(f"it has version {version}, not one of {', '.join(map(str, _VERSIONS))}")
        tensors, fields = self._number("Q"), self._number("Q")
        metadata: dict[str, Any] = {}
        # A field takes at least a length, a type and a value; a tensor a length, axes, one size, a type and an offset.
        for _ in range(self._count(fields, 8 + 4 + 1, "fields")):
            key = self._string()
            if key in metadata:
                raise _Broken(f"it has the field {key!r} twice")
            metadata[key] = self._value(self._number("I"))
        infos = [self._tensor() for _ in range(self._count(tensors, 8 + 4 + 8 + 4 + 8, "tensors"))]
        return GgufHeader(fields=metadata, tensors=self._place(infos, _alignment(metadata)))

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise _Broken(f"it ends {count - self._left} bytes early, or has a length that is wrong")
        self._left -= count
        return self._stream.read(count)

    def _number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self._take(struct.calcsize(f"<{letter}")))[0]

    def _count(self, count: int, least_bytes: int, what: str) -> int:
        if count * least_bytes > self._left:
            raise _Broken(f"it claims {count} {what}, for which it has no room")
        return count

    def _string(self) -> str:
        return self._take(self._number("Q")).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise _Broken(f"it has a value of type {kind}")
        return self._number(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self._number("I"), self._number("Q")
        if kind == _STRING:
            return [self._string() for _ in range(self._count(count, 8, "strings"))]
        if kind not in _SCALARS:
            raise _Broken(f"it has an array of type {kind}")
        letter = _SCALARS[kind]
        self._count(count, struct.calcsize(letter), "values")
        return list(struct.unpack(f"<{count}{letter}", self._take(count * struct.calcsize(letter))))

    def _tensor(self) -> tuple[str, tuple[int, ...], TensorType, int]:
        name = self._string()
        if not name or len(name.encode()) >= _MAX_NAME_BYTES:
            raise _Broken(f"it has a tensor with a name of {len(name)} characters")
        axes = self._number("I")
        if not 1 <= axes <= _MAX_AXES:
            raise _Broken(f"{name} has {axes} axes")
        shape = tuple(self._number("Q") for _ in range(axes))
        number, offset = self._number("I"), self._number("Q")
        if number not in _BY_NUMBER:
            raise _Broken(f"{name} has the type {number}, which tunerun does not know")
        kind = _BY_NUMBER[number]
        if min(shape) < 1 or shape[0] % kind.block_values:
            raise _Broken(f"{name} has the shape {list(shape)}, which {kind.name} cannot have")
        return name, shape[::-1], kind, offset

    def _place(
        self, infos: list[tuple[str, tuple[int, ...], TensorType, int]], alignment: int
    ) -> dict[str, StoredTensor]:
        start = -(-self._stream.tell() // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        for name, shape, kind, offset in infos:
            size = math.prod(shape) // kind.block_values * kind.block_bytes
            if name in tensors:
                raise _Broken(f"it has the tensor {name} twice")
            if offset % alignment or start + offset + size > self._size:
                raise _Broken(f"{name} lies outside of it, which may be cut short")
            tensors[name] = StoredTensor(shape=shape, type=kind, offset=start + offset, bytes=size)
        position = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
            if tensor.offset < position:
                raise _Broken(f"{name} begins inside another tensor")
            position = tensor.offset + tensor.bytes
        return tensors


def _alignment(fields: Mapping[str, Any]) -> int:
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise _Broken(f"its alignment is {alignment}")
    return alignment
