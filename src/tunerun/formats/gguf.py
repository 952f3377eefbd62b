"""A GGUF file written by rows: header first, then tensor data in any order.

The `gguf` package writes the header; tensor data follow it, each tensor aligned to 32 bytes, without ever being
in memory whole. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tunerun.formats.floats import Array
from tunerun.formats.ggml_types import TensorType
from tunerun.formats.safetensors import write_at

ALIGNMENT = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    """Outermost axis first, as numpy and safetensors have it; GGUF writes it reversed."""
    type: TensorType

    @property
    def row_bytes(self) -> int:
        """Size of one row of the last axis."""
        return self.type.row_bytes(self.shape[-1])

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape[:-1]) * self.row_bytes


class GgufFile:
    """A file whose tensors are known in advance. Use as a context manager and fill every tensor."""

    def __init__(self, path: Path, header: Any, tensors: Sequence[GgufTensor]) -> None:
        """Writes the header and lays the file out with its final size.

        Args:
            path: Of the new file.
            header: A `gguf.GGUFWriter` that holds all metadata and no tensor; closed here.
            tensors: In the order of the file.
        """
        for tensor in tensors:
            # With a raw type given, the numpy type is not looked at.
            header.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, tensor.type.number)
        header.write_header_to_file(path)
        header.write_kv_data_to_file()
        header.write_ti_data_to_file()
        header.close()
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._offsets: dict[str, int] = {}
        position = _aligned(path.stat().st_size)
        for tensor in tensors:
            self._offsets[tensor.name] = position
            position += _aligned(tensor.bytes)
        self._descriptor = os.open(path, os.O_WRONLY)
        os.ftruncate(self._descriptor, position)

    def write_rows(self, name: str, first: int, rows: Array) -> None:
        """Writes rows `[first, first + len(rows))` of a tensor.

        Args:
            name: Of the tensor.
            first: Index of the first row.
            rows: Bytes, shape (rows, bytes in a row).
        """
        tensor = self._tensors[name]
        assert rows.dtype == np.uint8 and rows.shape[1] == tensor.row_bytes, f"{name}: {rows.dtype} {rows.shape}"
        assert (first + len(rows)) * tensor.row_bytes <= tensor.bytes, f"{name}: row {first + len(rows)}"
        write_at(self._descriptor, np.ascontiguousarray(rows), self._offsets[name] + first * tensor.row_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
