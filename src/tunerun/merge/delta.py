"""Low-rank updates added to stored weights, to the bits that peft gives and on every machine the same.

peft multiplies the factors in float32. The last bits of such a product depend on the order in which a matrix
library adds up; torch's (MKL) adds term by term with one rounding each for ranks up to 192, while numpy's
(OpenBLAS) has another order for some rows. So the product is taken with numpy and a bound of the difference;
the few weights whose rounding to 16 bits the difference could change are worked out again term by term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.formats.floats import Array, Float32, from_float32, round_into, to_float32, widen_into
from tunerun.formats.lora import Shift, Update
from tunerun.formats.safetensors import read_tensor

_FLOAT32_ROUNDING = 2.0**-24
# OpenBLAS, interface/gemm.c: rows * columns * rank up to SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD.
_UNTHREADED_TERMS = 65536 * 4


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Arrays of one shape, kept from call to call: the pages of fresh ones would be faulted in each time."""

    base: Float32
    merged: Float32
    margin: Float32
    low: Float32
    scratch: npt.NDArray[np.uint32]
    low_stored: Array
    high_stored: Array

    @classmethod
    def of(cls, stored: Array) -> _Buffers:
        """Allocates them in the shape of the stored values."""
        base, merged, margin, low = np.empty((4, *stored.shape), np.float32)
        low_stored, high_stored = np.empty((2, *stored.shape), stored.dtype)
        return cls(base, merged, margin, low, np.empty(stored.shape, np.uint32), low_stored, high_stored)

    def first(self, rows: int) -> _Buffers:
        """Returns the first rows of each."""
        wide = (self.base[:rows], self.merged[:rows], self.margin[:rows], self.low[:rows], self.scratch[:rows])
        return _Buffers(*wide, self.low_stored[:rows], self.high_stored[:rows])


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
        self._work: _Buffers | None = None

    def merge(self, stored: Array, dtype: str, first: int) -> Array:
        """Adds the update to rows `[first, first + len(stored))` of the weight.

        Args:
            stored: Shape (rows, columns), in the type that holds `dtype`; no call has more rows than the first.
            dtype: `F32`, `F16` or `BF16`.
            first: Index of the first row.

        Returns:
            The merged rows in the same type, rounded to nearest, ties to even.
        """
        left = self._left[first : first + len(stored)]
        if dtype == "F32":
            return _add(ordered_product(left, self._right), self._scaling, stored)
        work = self._buffers(stored)
        widen_into(stored, dtype, work.base)
        _product(left, self._right, work.merged)
        _add(work.merged, self._scaling, work.base)
        self._fill_margin(left, work)
        np.subtract(work.merged, work.margin, out=work.low)
        round_into(work.low, dtype, work.low_stored, work.scratch)
        np.add(work.merged, work.margin, out=work.merged)
        round_into(work.merged, dtype, work.high_stored, work.scratch)
        doubtful = np.flatnonzero(work.low_stored != work.high_stored)
        rows, columns = np.divmod(doubtful, stored.shape[1])
        exact = _add(_ordered_sums(left[rows], self._right[:, columns]), self._scaling, work.base[rows, columns])
        work.low_stored[rows, columns] = from_float32(exact, dtype)
        return work.low_stored.copy()

    def _buffers(self, stored: Array) -> _Buffers:
        if self._work is None:
            self._work = _Buffers.of(stored)
        return self._work.first(len(stored))

    def _fill_margin(self, left: Float32, work: _Buffers) -> None:
        spread = self._spread * _longest(left, axis=1) * self._right_length * abs(float(self._scaling))
        np.abs(work.merged, out=work.margin)
        # Scaling and adding round once each, on either side of the comparison.
        np.multiply(work.margin, np.float32(8 * _FLOAT32_ROUNDING), out=work.margin)
        np.add(work.margin, np.float32(spread * (1 + 8 * _FLOAT32_ROUNDING)), out=work.margin)


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


def _longest(vectors: Float32, axis: int) -> float:
    return float(np.sqrt(np.einsum("ij,ij->" + "ji"[axis], vectors, vectors, dtype=np.float64).max(initial=0.0)))


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
