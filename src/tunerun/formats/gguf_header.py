"""The header of a GGUF file, checked in Python before llama.cpp's C++ sees it.

Every count, length and offset is held against the size of the file, so that a broken or hostile file is a message.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun.errors import Problem, UserError
from tunerun.formats.ggml_types import TYPES, TensorType
from tunerun.formats.gguf_fields import Broken, Reader, mapped

# Names that readers and writers look for.
CHAT_TEMPLATE = "tokenizer.chat_template"
ADD_BOS = "tokenizer.ggml.add_bos_token"
TOKEN_EMBEDDING = "token_embd.weight"

_DEFAULT_ALIGNMENT = 32
# ggml's own limits: GGML_MAX_DIMS, GGML_MAX_NAME.
_MAX_AXES, _MAX_NAME_BYTES = 4, 64
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


_Info = tuple[str, tuple[int, ...], TensorType, int]
"""A tensor's name, shape, type and offset from the end of the header."""


def read_gguf_header(file: Path, *, lists: bool = True) -> GgufHeader:
    """Reads and checks the header of a GGUF file.

    Args:
        file: The file.
        lists: Whether fields that are lists are kept, such as the vocabulary, which takes ten times as long; if not
            they are None.

    Raises:
        UserError: It is no GGUF file, is cut short, or has counts, lengths or offsets that do not fit.
    """
    try:
        with mapped(file) as data:
            return _header(Reader(data, lists=lists), len(data))
    except Broken as error:
        fix = "Export it or get it again."
        raise UserError(Problem(where=str(file), what=f"the file is broken: {error}.", fix=fix)) from None


def _header(reader: Reader, size: int) -> GgufHeader:
    tensors, fields = reader.counts()
    metadata: dict[str, Any] = {}
    for _ in range(fields):
        key, value = reader.field()
        if key in metadata:
            raise Broken(f"it has the field {key!r} twice")
        metadata[key] = value
    # A tensor takes at least a length, axes, one size, a type and an offset.
    infos = [_tensor(reader) for _ in range(reader.count(tensors, 8 + 4 + 8 + 4 + 8, "tensors"))]
    alignment = _alignment(metadata)
    start = -(-reader.tell() // alignment) * alignment
    return GgufHeader(fields=metadata, tensors=_placed(infos, alignment, start, size))


def _tensor(reader: Reader) -> _Info:
    name = reader.string()
    if not name or len(name.encode()) >= _MAX_NAME_BYTES:
        raise Broken(f"it has a tensor with a name of {len(name)} characters")
    axes = reader.number("I")
    if not 1 <= axes <= _MAX_AXES:
        raise Broken(f"{name} has {axes} axes")
    shape = tuple(reader.number("Q") for _ in range(axes))
    number, offset = reader.number("I"), reader.number("Q")
    if number not in _BY_NUMBER:
        raise Broken(f"{name} has the type {number}, which tunerun does not know")
    kind = _BY_NUMBER[number]
    if min(shape) < 1 or shape[0] % kind.block_values:
        raise Broken(f"{name} has the shape {list(shape)}, which {kind.name} cannot have")
    return name, shape[::-1], kind, offset


def _placed(infos: Sequence[_Info], alignment: int, start: int, size: int) -> dict[str, StoredTensor]:
    """Checks where tensors lie: within the file's size, after the header's end `start`, none inside another."""
    tensors: dict[str, StoredTensor] = {}
    for name, shape, kind, offset in infos:
        length = math.prod(shape) // kind.block_values * kind.block_bytes
        if name in tensors:
            raise Broken(f"it has the tensor {name} twice")
        if offset % alignment or start + offset + length > size:
            raise Broken(f"{name} lies outside of it, which may be cut short")
        tensors[name] = StoredTensor(shape=shape, type=kind, offset=start + offset, bytes=length)
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < position:
            raise Broken(f"{name} begins inside another tensor")
        position = tensor.offset + tensor.bytes
    return tensors


def _alignment(fields: Mapping[str, Any]) -> int:
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise Broken(f"its alignment is {alignment}")
    return alignment
