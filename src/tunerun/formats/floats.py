"""The floating point types of model files as numpy arrays.

numpy has no bfloat16: such tensors are held as `uint16` bit patterns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

# The safetensors name of each type that tunerun reads as numbers, and the numpy type that holds its bits.
STORAGE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def to_float32(values: Array, dtype: str) -> Float32:
    """Widens stored values to float32, exactly.

    Args:
        values: Any shape; bit patterns when `dtype` is `BF16`.
        dtype: A key of `STORAGE`.
    """
    if dtype == "F32":
        return values
    wide = np.empty(values.shape, np.float32)
    widen_into(values, dtype, wide)
    return wide


def from_float32(values: Float32, dtype: str) -> Array:
    """Rounds float32 values to the stored type, to nearest and ties to even.

    Args:
        values: Any shape.
        dtype: A key of `STORAGE`.

    Returns:
        Bit patterns when `dtype` is `BF16`; NaN becomes the quiet NaN 0x7fc0, as in torch.
    """
    if dtype == "F32":
        return values
    narrow = np.empty(values.shape, STORAGE[dtype])
    round_into(np.ascontiguousarray(values), dtype, narrow, np.empty(values.shape, np.uint32))
    return narrow


def widen_into(values: Array, dtype: str, out: Float32) -> None:
    """Does what `to_float32` does, into an array of the same shape."""
    if dtype == "BF16":
        bits = out.view(np.uint32)
        bits[...] = values
        np.left_shift(bits, 16, out=bits)
    else:
        out[...] = values


def round_into(values: Float32, dtype: str, out: Array, scratch: npt.NDArray[np.uint32]) -> None:
    """Does what `from_float32` does, into an array of the same shape.

    Args:
        values: Contiguous.
        dtype: A key of `STORAGE`.
        out: In the stored type.
        scratch: Of the same shape; overwritten.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            out[...] = values
        return
    bits = values.view(np.uint32)
    # Adding 0x7fff, or 0x8000 when the kept half is odd, carries into it exactly when it must round up.
    np.right_shift(bits, 16, out=scratch)
    np.bitwise_and(scratch, 1, out=scratch)
    np.add(scratch, 0x7FFF, out=scratch)
    np.add(scratch, bits, out=scratch)
    np.right_shift(scratch, 16, out=scratch)
    out[...] = scratch
    if np.isnan(values.max(initial=0)):
        out[np.isnan(values)] = 0x7FC0


def is_finite(values: Array, dtype: str) -> bool:
    """Tells whether no stored value is infinite or not a number."""
    if dtype == "BF16":
        return bool((values & 0x7FFF).max(initial=0) < 0x7F80)
    return bool(np.isfinite(values).all())
