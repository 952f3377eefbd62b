"""The floating point types of model files as numpy arrays.

numpy has no bfloat16: such tensors are held as `uint16` bit patterns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The safetensors name of each type that tunerun reads as numbers, and the numpy type that holds its bits.
STORAGE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def to_float32(values: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Widens stored values to float32, exactly.

    Args:
        values: Any shape; bit patterns when `dtype` is `BF16`.
        dtype: A key of `STORAGE`.
    """
    if dtype == "BF16":
        wide = values.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return values.astype(np.float32, copy=False)


def from_float32(values: npt.NDArray[np.float32], dtype: str) -> Array:
    """Rounds float32 values to the stored type, to nearest and ties to even.

    Args:
        values: Any shape.
        dtype: A key of `STORAGE`.

    Returns:
        Bit patterns when `dtype` is `BF16`; NaN becomes the quiet NaN 0x7fc0, as in torch.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(STORAGE[dtype], copy=False)
    bits = np.ascontiguousarray(values).view(np.uint32)
    # Adding 0x7fff, or 0x8000 when the kept half is odd, carries into it exactly when it must round up.
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    narrow = rounded.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        narrow[nan] = 0x7FC0
    return narrow


def is_finite(values: Array, dtype: str) -> bool:
    """Tells whether no stored value is infinite or not a number."""
    if dtype == "BF16":
        return bool(((values & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(values).all())
