"""Streamed reading and writing of safetensors model folders.

A file is an 8-byte little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}`, and
the data. A model folder holds `model.safetensors`, or several files and `model.safetensors.index.json`.
Headers are checked before anything is read through them.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tunerun.errors import Problem, StageError, UserError
from tunerun.formats.floats import STORAGE, Array

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000
_COPY_BYTES = 8 << 20
_NOT_IN_KERNEL = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
_ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


# Types that rows are read and written in: numbers, and codes of quantised ones.
_ROW_TYPES = {**STORAGE, "U8": "|u1", "F8_E4M3": "|u1", "I32": "<i4", "I64": "<i8"}

# Name, dtype and shape of a tensor to be written.
Slot = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """A tensor in a file."""

    name: str
    dtype: str
    """As safetensors writes it: `BF16`, `F32`, ..."""
    shape: tuple[int, ...]
    file: Path
    offset: int
    """Of the first byte, from the start of the file."""

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    @property
    def row_values(self) -> int:
        """Values for one index of the first axis (1 for a scalar)."""
        return math.prod(self.shape[1:])

    @property
    def rows(self) -> int:
        """Length of the first axis (1 for a scalar)."""
        return self.shape[0] if self.shape else 1


def read_table(folder: Path) -> dict[str, TensorInfo]:
    """Reads the headers of a model folder.

    Args:
        folder: Holds `model.safetensors`, or an index file and the files that it names.

    Returns:
        Every tensor by name, in the order of the files.

    Raises:
        UserError: There is no model, a file is missing or broken, or the index and the files disagree.
    """
    index = folder / INDEX
    if index.is_file():
        return _read_sharded(index)
    single = folder / SINGLE
    if single.is_file():
        return read_header(single)
    fix = "tunerun reads safetensors only." if folder.is_dir() else "Check the path."
    raise UserError(Problem(where=str(folder), what=f"there is no {SINGLE} and no {INDEX}.", fix=fix))


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Reads and checks the header of one file.

    Raises:
        UserError: The file is truncated, its header is no valid JSON, or sizes and offsets do not fit.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(_LENGTH.size)
        if len(prefix) < _LENGTH.size:
            raise _broken(file, f"it has {size} bytes and no header")
        (length,) = _LENGTH.unpack(prefix)
        if length > min(_MAX_HEADER_BYTES, size - _LENGTH.size):
            raise _broken(file, f"its header claims {length} bytes in a file of {size}")
        text = stream.read(length)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise _broken(file, f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _broken(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    start = _LENGTH.size + length
    table = {name: _parse_entry(file, name, entry, start) for name, entry in header.items()}
    _check_layout(file, table.values(), start, size)
    return dict(sorted(table.items(), key=lambda item: item[1].offset))


def read_tensor(info: TensorInfo) -> Array:
    """Reads a tensor; bfloat16 as `uint16` bit patterns.

    Raises:
        StageError: The file became shorter than its header says.
    """
    return read_rows(info, 0, info.rows).reshape(info.shape)


def read_rows(info: TensorInfo, first: int, count: int) -> Array:
    """Reads rows `[first, first + count)` of the first axis.

    Returns:
        Shape (count, values in a row), in the type that `STORAGE` names for the tensor; codes as whole numbers.

    Raises:
        StageError: The file became shorter than its header says.
    """
    row_bytes = info.row_values * _ITEM_BYTES[info.dtype]
    with info.file.open("rb", buffering=0) as stream:
        stream.seek(info.offset + first * row_bytes)
        values = np.fromfile(stream, dtype=_ROW_TYPES[info.dtype], count=count * info.row_values)
    if values.size != count * info.row_values:
        raise StageError(f"{info.file}: the file ends inside {info.name}; it changed while it was read.")
    return values.reshape(count, info.row_values)


class ModelWriter:
    """Writes a model folder whose tensors are known in advance, in any order and by rows.

    Every file is laid out with its final size at once. Use as a context manager and fill each tensor with
    `copy` or `write_rows`; bytes that are never written stay zero.
    """

    def __init__(self, folder: Path, tensors: Iterable[Slot], *, max_shard_size_bytes: int) -> None:
        """Creates the files, and the index file when there are several.

        Args:
            folder: Exists and holds no model.
            tensors: Name, dtype and shape of each.
            max_shard_size_bytes: Of data in one file; a larger tensor gets a file to itself.
        """
        shards = plan_shards(tensors, max_shard_size_bytes)
        names = [SINGLE] if len(shards) == 1 else _shard_names(len(shards))
        self.table: dict[str, TensorInfo] = {}
        self._descriptors: dict[Path, int] = {}
        for name, shard in zip(names, shards, strict=True):
            self._create(folder / name, shard)
        if len(shards) > 1:
            weight_map = {info.name: info.file.name for info in self.table.values()}
            total = sum(info.bytes for info in self.table.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def copy(self, source: TensorInfo, name: str | None = None) -> None:
        """Copies a tensor's bytes unchanged.

        Args:
            source: Same dtype and shape as the target.
            name: Of the target; the source's own when None.
        """
        target = self.table[name or source.name]
        assert (source.dtype, source.shape) == (target.dtype, target.shape), f"{source} is not {target}"
        with source.file.open("rb", buffering=0) as stream:
            copy_range(
                stream.fileno(),
                source.offset,
                self._descriptors[target.file],
                target.offset,
                count=source.bytes,
            )

    def write_rows(self, name: str, first: int, values: Array) -> None:
        """Writes rows `[first, first + len(values))` of a tensor.

        Args:
            name: Of the target.
            first: Index of the first row.
            values: Shape (rows, values in a row), in the stored type.
        """
        target = self.table[name]
        assert values.dtype == np.dtype(_ROW_TYPES[target.dtype]), f"{name}: {values.dtype} is not {target.dtype}"
        assert values.shape[1] == target.row_values, f"{name}: rows of {values.shape[1]} values"
        row_bytes = target.row_values * _ITEM_BYTES[target.dtype]
        assert first + values.shape[0] <= target.rows, f"{name}: row {first + values.shape[0]} of {target.rows}"
        write_at(self._descriptors[target.file], np.ascontiguousarray(values), target.offset + first * row_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _create(self, file: Path, tensors: list[Slot]) -> None:
        header, sizes = _layout(tensors)
        start = _LENGTH.size + len(header)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._descriptors[file] = descriptor
        os.write(descriptor, _LENGTH.pack(len(header)) + header)
        os.ftruncate(descriptor, start + sum(sizes.values()))
        offset = start
        shapes = {name: (dtype, shape) for name, dtype, shape in tensors}
        for name, size in sizes.items():
            dtype, shape = shapes[name]
            self.table[name] = TensorInfo(name=name, dtype=dtype, shape=shape, file=file, offset=offset)
            offset += size


def plan_shards(tensors: Iterable[Slot], max_shard_size_bytes: int) -> list[list[Slot]]:
    """Deals tensors out to files in order, starting a new file when the next tensor does not fit.

    Args:
        tensors: Name, dtype and shape of each.
        max_shard_size_bytes: Of data in one file; a larger tensor gets a file to itself.
    """
    assert max_shard_size_bytes > 0, max_shard_size_bytes
    shards: list[list[Slot]] = [[]]
    filled = 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * _ITEM_BYTES[dtype]
        if shards[-1] and filled + size > max_shard_size_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, dtype, shape))
        filled += size
    return shards


def copy_range(source: int, source_offset: int, target: int, target_offset: int, *, count: int) -> None:
    """Copies bytes between open files, inside the kernel where the file systems allow it.

    Args:
        source: File descriptor open for reading.
        source_offset: Of the first byte.
        target: File descriptor open for writing.
        target_offset: Of the first byte.
        count: Bytes.

    Raises:
        StageError: The source ends early.
        OSError: The file system refused a read or a write (a full disk, say).
    """
    done = 0
    while done < count:
        moved = _kernel_copy(source, source_offset + done, target, target_offset + done, count - done)
        if moved == 0:
            chunk = os.pread(source, min(_COPY_BYTES, count - done), source_offset + done)
            if not chunk:
                raise StageError(f"the source ends {count - done} bytes early; it changed while it was read.")
            moved = os.pwrite(target, chunk, target_offset + done)
        done += moved


def write_at(descriptor: int, values: Array, offset: int) -> None:
    """Writes a contiguous array at an offset of an open file, however many calls that takes."""
    view = memoryview(values.reshape(-1).view(np.uint8).data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _kernel_copy(source: int, source_offset: int, target: int, target_offset: int, count: int) -> int:
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, count, source_offset, target_offset)
    except OSError as error:
        # These say "not between these file systems"; anything else (a full disk) is the caller's to know.
        if error.errno in _NOT_IN_KERNEL:
            return 0
        raise


def _read_sharded(index: Path) -> dict[str, TensorInfo]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = list(dict.fromkeys(sorted(weight_map.values())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(index, f"it has no usable weight_map ({error!r})") from None
    table: dict[str, TensorInfo] = {}
    for name in files:
        # The index is data from elsewhere: it must not lead out of the folder.
        if Path(name).name != name:
            raise _broken(index, f"it names {name!r}, which is not a file beside it")
        if not (index.parent / name).is_file():
            raise UserError(Problem(where=str(index.parent / name), what="the index names it and it is missing."))
        table |= {key: info for key, info in read_header(index.parent / name).items() if weight_map.get(key) == name}
    missing = sorted(set(weight_map) - set(table))
    if missing:
        raise _broken(index, f"{len(missing)} tensors are in none of the files, first {missing[0]}")
    return table


def _parse_entry(file: Path, name: str, entry: Any, start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            all(type(axis) is int and axis >= 0 for axis in shape) and 0 <= begin <= end
        ):
            pass
        case _:
            raise _broken(file, f"its entry for {name} is malformed")
    if dtype not in _ITEM_BYTES:
        raise _broken(file, f"{name} has the type {dtype}, which tunerun does not know")
    info = TensorInfo(name=name, dtype=dtype, shape=tuple(shape), file=file, offset=start + begin)
    if info.bytes != end - begin:
        raise _broken(file, f"{name} has {end - begin} bytes where its shape {shape} needs {info.bytes}")
    return info


def _check_layout(file: Path, tensors: Iterable[TensorInfo], start: int, size: int) -> None:
    position = start
    for info in sorted(tensors, key=lambda info: (info.offset, info.bytes)):
        if info.offset != position:
            raise _broken(file, f"{info.name} does not begin where the tensor before it ends")
        position += info.bytes
    if position != size:
        raise _broken(file, f"it has {size} bytes where its header needs {position}; it may be cut short")


def _layout(tensors: Iterable[Slot]) -> tuple[bytes, dict[str, int]]:
    # Widest type first keeps every tensor aligned to its items, which readers that map the file rely on.
    ordered = sorted(tensors, key=lambda tensor: -_ITEM_BYTES[tensor[1]])
    header: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
    sizes: dict[str, int] = {}
    offset = 0
    for name, dtype, shape in ordered:
        sizes[name] = math.prod(shape) * _ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + sizes[name]]}
        offset += sizes[name]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8), sizes


def _shard_names(count: int) -> list[str]:
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _broken(file: Path, what: str) -> UserError:
    return UserError(Problem(where=str(file), what=f"the file is broken: {what}.", fix="Get it again."))
