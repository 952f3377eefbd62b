"""Weights as compressed-tensors holds them (https://github.com/vllm-project/compressed-tensors), in numpy.

`float-quantized`: FP8 (E4M3 without infinities) with a scale for each row. `pack-quantized`: codes packed along the
inputs into int32 from the lowest bits up, shifted to be positive, with a scale for each group of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.formats.floats import Float32

FP8_PARTS = ("weight", "weight_scale")
PACKED_PARTS = ("weight_packed", "weight_scale", "weight_shape")
_BITS = 4

Parts = Mapping[str, npt.NDArray[Any]]


def _e4m3() -> Float32:
    """Returns the value of each code: sign, 4 bits of exponent with a bias of 7, 3 of mantissa (arXiv 2209.05433)."""
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    values = np.where(exponents == 0, mantissas * 2.0**-9, (8 + mantissas) * 2.0 ** (exponents - 10.0))
    values[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -values, values).astype(np.float32)


_VALUES = _e4m3()


def unpack_fp8(parts: Parts) -> Float32:
    """Returns a weight, of shape (out, in).

    Args:
        parts: `weight` (out, in) as uint8 and `weight_scale` (out, 1) as float32.
    """
    weight: Float32 = _VALUES[parts["weight"]] * parts["weight_scale"]
    return weight


def unpack_packed(parts: Parts) -> Float32:
    """Returns a weight of 4 bits, of shape (out, in).

    Args:
        parts: `weight_packed` (out, words) as uint32, `weight_scale` (out, groups) as float32 and `weight_shape`, which
            says (out, in).
    """
    rows, columns = (int(size) for size in parts["weight_shape"])
    shifts = np.arange(0, 32, _BITS, dtype=np.uint32)
    codes = (parts["weight_packed"][..., None] >> shifts) & np.uint32(2**_BITS - 1)
    signed = codes.reshape(rows, -1)[:, :columns].astype(np.float32) - np.float32(2 ** (_BITS - 1))
    scales = np.repeat(parts["weight_scale"], columns // parts["weight_scale"].shape[1], axis=1)
    weight: Float32 = signed * scales
    return weight
