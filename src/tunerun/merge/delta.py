"""Low-rank updates added to stored weights, to the bits that peft gives and on every machine the same.

peft multiplies the factors in float32. The last bits of such a product depend on the order in which a matrix
library adds up; torch's (MKL) adds term by term with one rounding each for ranks up to 192, while numpy's
(OpenBLAS) has another order for some rows. So the product is taken with numpy and a bound of the difference;
the few weights whose rounding to 16 bits the difference could change are worked out again term by term.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.formats.floats import Array, from_float32, to_float32
from tunerun.formats.lora import Update
from tunerun.formats.safetensors import read_tensor

_FLOAT32_ROUNDING = 2.0**-24

Float32 = npt.NDArray[np.float32]


class Delta:
    """An update of one weight, with its factors held in memory."""

    def __init__(self, update: Update) -> None:
        """Reads the factors as float32, as peft does before it merges."""
        a = to_float32(read_tensor(update.a), update.a.dtype)
        b = to_float32(read_tensor(update.b), update.b.dtype)
        # The update of the weight as it is stored is scaling * left @ right.
        self._left, self._right = (np.ascontiguousarray(a.T), b.T) if update.transposed else (b, a)
        self._scaling = np.float32(update.scaling)
        rank = a.shape[0]
        # Two sums of `rank` products differ by at most this times the lengths of the two vectors
        # (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
        self._spread = 2 * rank * _FLOAT32_ROUNDING / (1 - rank * _FLOAT32_ROUNDING)
        self._right_length = _longest(self._right, axis=0)

    def merge(self, stored: Array, dtype: str, first: int) -> Array:
        """Adds the update to rows `[first, first + len(stored))` of the weight.

        Args:
            stored: Shape (rows, columns), in the type that holds `dtype`.
            dtype: `F32`, `F16` or `BF16`.
            first: Index of the first row.

        Returns:
            The merged rows in the same type, rounded to nearest, ties to even.
        """
        left = self._left[first : first + len(stored)]
        base = to_float32(stored, dtype)
        if dtype == "F32":
            return self._add(base, _ordered_product(left, self._right))
        merged = self._add(base, left @ self._right)
        margin = self._margin(left, merged)
        low = from_float32(merged - margin, dtype)
        rows, columns = np.nonzero(low != from_float32(merged + margin, dtype))
        exact = _ordered_sums(left[rows], self._right[:, columns])
        low[rows, columns] = from_float32(self._add(base[rows, columns], exact), dtype)
        return low

    def _add(self, base: Float32, product: Float32) -> Float32:
        # Scaled before it is added, in float32, as peft does: another order gives other bits.
        product *= self._scaling
        product += base
        return product

    def _margin(self, left: Float32, merged: Float32) -> Float32:
        spread = self._spread * _longest(left, axis=1) * self._right_length * abs(float(self._scaling))
        margin = np.abs(merged)
        # Scaling and adding round once each, on either side of the comparison.
        margin *= np.float32(8 * _FLOAT32_ROUNDING)
        margin += np.float32(spread * (1 + 8 * _FLOAT32_ROUNDING))
        return margin


def _longest(vectors: Float32, axis: int) -> float:
    return float(np.sqrt(np.einsum("ij,ij->" + "ji"[axis], vectors, vectors, dtype=np.float64).max(initial=0.0)))


def _ordered_product(left: Float32, right: Float32) -> Float32:
    """Returns `left @ right` with the terms added in order, one rounding to float32 each.

    Float64 holds the product of two float32 exactly, so each step is a fused multiply-add but for a double
    rounding about once in 2**29 steps.
    """
    wide_left, wide_right = left.astype(np.float64), right.astype(np.float64)
    total = np.zeros((len(left), right.shape[1]), np.float32)
    term: npt.NDArray[Any] = np.empty(total.shape, np.float64)
    for rank in range(right.shape[0]):
        np.multiply(wide_left[:, rank, None], wide_right[rank], out=term)
        term += total
        total[:] = term
    return total


def _ordered_sums(left: Float32, right: Float32) -> Float32:
    """Returns the dot products of `left` (n, rank) and `right` (rank, n), n of them, added in order."""
    total = np.zeros(len(left), np.float32)
    for rank in range(right.shape[0]):
        total = (left[:, rank].astype(np.float64) * right[rank] + total).astype(np.float32)
    return total
