"""Low-rank updates added to stored weights, to the bits that peft gives and on every machine the same.

peft multiplies the factors in float32. The last bits of such a product depend on the order in which a matrix
library adds up; torch's (MKL) adds term by term with one rounding each for ranks up to 192, while numpy's
(OpenBLAS) has another order for some rows. So the product is taken with numpy and a bound of the difference;
the few weights whose rounding to 16 bits the difference could change are worked out again term by term.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.formats.floats import Array, Float32, from_float32, round_into, to_float32, widen_into
from tunerun.formats.lora import Shift, Update
from tunerun.formats.safetensors import read_tensor

_FLOAT32_ROUNDING = 2.0**-24
# More than the few roundings that come on top of a sum.
_SLACK = 8 * _FLOAT32_ROUNDING
# OpenBLAS, interface/gemm.c: rows * columns * rank up to SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD.
_UNTHREADED_TERMS = 65536 * 4


class _Buffers(threading.local):
    """Arrays of a thread, kept from call to call: the pages of fresh ones would be faulted in each time."""

    def __init__(self) -> None:
        self._words = np.empty((4, 0), np.uint32)

    def of(self, shape: tuple[int, ...]) -> list[npt.NDArray[np.uint32]]:
        """Returns four arrays of 32-bit words."""
        size = math.prod(shape)
        if self._words.shape[1] < size:
            self._words = np.empty((4, size), np.uint32)
        return [words[:size].reshape(shape) for words in self._words]


_buffers = _Buffers()


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
        # (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and scaling rounds each once more.
        spread = 2 * (rank + 1) * _FLOAT32_ROUNDING / (1 - rank * _FLOAT32_ROUNDING) * abs(update.scaling)
        self._row_spread = (spread * _lengths(self._left, axis=1))[:, None]
        self._column_length = _lengths(self._right, axis=0)

    def merge(self, stored: Array, dtype: str, first: int) -> Array:
        """Adds the update to rows `[first, first + len(stored))` of the weight.

        Threads may do so at once.

        Args:
            stored: Shape (rows, columns), in the type that holds `dtype`.
            dtype: `F32`, `F16` or `BF16`.
            first: Index of the first row.

        Returns:
            The merged rows in the same type, rounded to nearest, ties to even.
        """
        taken = slice(first, first + len(stored))
        left = self._left[taken]
        if dtype == "F32":
            return _add(ordered_product(left, self._right), self._scaling, stored)
        words = _buffers.of(stored.shape)
        base, total, low, spread = (array.view(np.float32) for array in words)
        widen_into(stored, dtype, base)
        _product(left, self._right, total)
        _add(total, self._scaling, base)
        merged = np.empty_like(stored)
        round_into(total, dtype, merged, words[2])
        np.multiply(self._row_spread[taken], self._column_length, out=spread)
        rows, columns = np.divmod(_doubtful(total, spread, dtype, low), stored.shape[1])
        exact = _add(_ordered_sums(left[rows], self._right[:, columns]), self._scaling, base[rows, columns])
        merged[rows, columns] = from_float32(exact, dtype)
        return merged


class BiasDelta:
    """An update of a bias."""

    def __init__(self, shift: Shift) -> None:
        """Reads the values as float32 and scales them."""
        values = to_float32(read_tensor(shift.values), shift.values.dtype).reshape(-1)
        self._values = values * np.float32(shift.scaling)

    def merge(self, stored: Array, dtype: str, first: int) -> Array:
        """Adds the update to values `[first, first + len(stored))` of the bias, shape (values, 1)."""
        added = self._values[first : first + len(stored), None]
        return from_float32(to_float32(stored, dtype) + added, dtype)


def _add(product: Float32, scaling: np.float32, base: Float32) -> Float32:
    # Scaled before it is added, in float32, as peft does: another order gives other bits.
    product *= scaling
    product += base
    return product


def _lengths(vectors: Float32, axis: int) -> Float32:
    """Returns the Euclidean lengths of vectors along an axis, and no less."""
    squares = np.einsum("ij,ij->" + "ji"[axis], vectors, vectors, dtype=np.float64)
    lengths: Float32 = (np.sqrt(squares) * (1 + _SLACK)).astype(np.float32)
    return lengths


def _doubtful(total: Float32, spread: Float32, dtype: str, low: Float32) -> npt.NDArray[np.intp]:
    """Returns the places where sums might be rounded to another number if they were added in another order.

    Args:
        total: Sums; overwritten.
        spread: How far another order may take each.
        dtype: `F16` or `BF16`.
        low: Of the same shape; overwritten.
    """
    # The least and the greatest length.
    high = np.abs(total, out=total)
    np.multiply(high, np.float32(1 - _SLACK), out=low)
    np.multiply(high, np.float32(1 + _SLACK), out=high)
    np.subtract(low, spread, out=low)
    np.add(high, spread, out=high)
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return np.flatnonzero(low.astype(np.float16).view(np.uint16) != high.astype(np.float16).view(np.uint16))
    # Rounded half down and half up: a bound in the middle between two numbers is doubtful, too.
    low_bits, high_bits = low.view(np.uint32), high.view(np.uint32)
    np.add(low_bits, 0x7FFF, out=low_bits)
    np.add(high_bits, 0x8000, out=high_bits)
    np.bitwise_xor(low_bits, high_bits, out=low_bits)
    return np.flatnonzero(low_bits > 0xFFFF)


def _product(left: Float32, right: Float32, out: Float32) -> None:
    """Writes `left @ right`, taken in pieces that OpenBLAS computes in this thread.

    Its threads wait by spinning: beside another busy process they cost many times the product itself.
    """
    step = max(1, _UNTHREADED_TERMS // right.size)
    for first in range(0, len(left), step):
        rows = slice(first, first + step)
        np.matmul(left[rows], right, out=out[rows])


def ordered_product(left: Float32, right: Float32) -> Float32:
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
