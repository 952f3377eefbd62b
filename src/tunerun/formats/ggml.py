"""ggml's tensor types and its own quantisation, called in llama-cpp-python's shared library.

Types and block sizes: llama.cpp, `ggml/include/ggml.h` and `ggml/src/ggml-common.h`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tunerun.errors import MissingExtra, StageError
from tunerun.formats.floats import Array, from_float32, is_finite

_PACKAGE = "llama_cpp"
_LIBRARY = {"linux": "libggml-base.so", "darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorType:
    """How ggml stores a tensor: rows of blocks."""

    name: str
    number: int
    """Of `enum ggml_type`."""
    block_values: int
    block_bytes: int

    def row_bytes(self, values: int) -> int:
        """Size of a row of so many values."""
        assert values % self.block_values == 0, f"{values} values in blocks of {self.block_values}"
        return values // self.block_values * self.block_bytes


def _type(name: str, number: int, block_values: int, block_bytes: int) -> tuple[str, TensorType]:
    return name, TensorType(name=name, number=number, block_values=block_values, block_bytes=block_bytes)


TYPES = dict(
    (
        _type("F32", 0, 1, 4),
        _type("F16", 1, 1, 2),
        _type("BF16", 30, 1, 2),
        _type("Q4_0", 2, 32, 18),
        _type("Q4_1", 3, 32, 20),
        _type("Q5_0", 6, 32, 22),
        _type("Q5_1", 7, 32, 24),
        _type("Q8_0", 8, 32, 34),
        _type("Q2_K", 10, 256, 84),
        _type("Q3_K", 11, 256, 110),
        _type("Q4_K", 12, 256, 144),
        _type("Q5_K", 13, 256, 176),
        _type("Q6_K", 14, 256, 210),
        _type("IQ1_S", 19, 256, 50),
        _type("IQ1_M", 29, 256, 56),
        _type("IQ2_XXS", 16, 256, 66),
        _type("IQ2_XS", 17, 256, 74),
        _type("IQ2_S", 22, 256, 82),
        _type("IQ3_XXS", 18, 256, 98),
        _type("IQ3_S", 21, 256, 110),
        _type("IQ4_NL", 20, 32, 18),
        _type("IQ4_XS", 23, 256, 136),
        _type("TQ1_0", 34, 256, 54),
        _type("TQ2_0", 35, 256, 66),
    )
)
FLOAT_TYPES = ("F32", "F16", "BF16")


def encode(
    values: npt.NDArray[np.float32], kind: TensorType, importance: npt.NDArray[np.float32] | None = None
) -> Array:
    """Encodes whole rows; threads may do so at once.

    Args:
        values: Shape (rows, columns), contiguous.
        kind: The columns are a multiple of its block.
        importance: Weight of each column's error, shape (columns,); only some types look at it.

    Returns:
        Bytes, shape (rows, bytes in a row).

    Raises:
        MissingExtra: llama-cpp-python is not installed and the type is quantised.
        StageError: A value or a block's scale overflows the type.
    """
    if kind.name in FLOAT_TYPES:
        stored = from_float32(values, kind.name)
        if not is_finite(stored, kind.name):
            raise StageError(f"a value is too large for {kind.name}.")
        return stored.view(np.uint8)
    library = _load_library()
    rows, columns = values.shape
    encoded = np.empty((rows, kind.row_bytes(columns)), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    # ctypes lets go of Python's lock during the call.
    written = library.ggml_quantize_chunk(
        kind.number, values.ctypes.data, encoded.ctypes.data, 0, rows, columns, weights
    )
    assert written == encoded.nbytes, f"{written} bytes for {encoded.nbytes}"
    if not library.ggml_validate_row_data(kind.number, encoded.ctypes.data, encoded.nbytes):
        raise StageError(f"a value is too large for {kind.name}.")
    return encoded


@functools.cache
def _load_library() -> ctypes.CDLL:
    # Only this library is wanted: importing the package would load all of llama.cpp.
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise MissingExtra(_PACKAGE, "gguf")
    library = ctypes.CDLL(str(Path(package.origin).parent / "lib" / _LIBRARY[sys.platform]))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,  # type
        ctypes.c_void_p,  # float32 source
        ctypes.c_void_p,  # target
        ctypes.c_int64,  # first value
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # values in a row
        ctypes.c_void_p,  # importance matrix, or null
    )
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    return library
