"""ggml's own quantisation, called in llama-cpp-python's shared library."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tunerun.errors import MissingExtra, StageError
from tunerun.formats.floats import Array, from_float32, is_finite
from tunerun.formats.ggml_types import FLOAT_TYPES, TensorType

_PACKAGE = "llama_cpp"
_LIBRARY = {"linux": "libggml-base.so", "darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}


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
