"""DoRA updates merged into stored weights, to the bits that peft gives (Liu et al. 2024, arXiv 2402.09353).

The sum W + scaling * B A is scaled row by row to the trained lengths. The result depends on every bit of a row's
present length, and that on the order in which squares are added: torch adds every eighth one in turn in eight
float32 sums (its AVX2 kernels), then these and what remains one by one. So is it done here, on every machine; torch
with AVX-512 keeps sixteen sums and may differ in the last bit of a length, which moves about one bfloat16 weight in
ten thousand by one step.
"""

from __future__ import annotations

import numpy as np

from tunerun.formats.floats import Array, Float32, from_float32, to_float32
from tunerun.formats.lora import Update
from tunerun.formats.safetensors import TensorInfo, read_tensor
from tunerun.merge.delta import ordered_product

_LANES = 8


class DoraDelta:
    """A DoRA update of one weight, with its factors held in memory.

    Attributes:
        transposed: Whether the weight is stored as (in, out), so that its rows are columns there.
    """

    def __init__(self, update: Update, lengths: TensorInfo) -> None:
        """Reads the factors and lengths as float32."""
        self._a = to_float32(read_tensor(update.a), update.a.dtype)
        self._b = to_float32(read_tensor(update.b), update.b.dtype)
        self._lengths = to_float32(read_tensor(lengths), lengths.dtype)
        self._scaling = np.float32(update.scaling)
        self.transposed = update.transposed

    def merge(self, stored: Array, dtype: str, first: int) -> Array:
        """Applies the update to rows `[first, first + len(stored))` of the weight.

        Args:
            stored: Shape (rows, columns), in the type that holds `dtype`; the whole weight when it is transposed.
            dtype: `F32`, `F16` or `BF16`.
            first: Index of the first row.

        Returns:
            The merged rows in the same type, rounded to nearest, ties to even.
        """
        rows = slice(None) if self.transposed else slice(first, first + len(stored))
        product = ordered_product(self._b[rows], self._a)
        base = to_float32(stored, dtype)
        total = base + (product.T if self.transposed else product) * self._scaling
        # A transposed weight is not contiguous in the direction of its rows, and torch adds one by one.
        present = row_lengths(total.T, lanes=1) if self.transposed else row_lengths(total, lanes=_LANES)
        factor = self._lengths[rows] / present
        total *= factor[None, :] if self.transposed else factor[:, None]
        return from_float32(np.ascontiguousarray(total), dtype)


def row_lengths(values: Float32, *, lanes: int) -> Float32:
    """Returns the Euclidean length of each row, with float32 sums in a stated order.

    Args:
        values: Shape (rows, columns).
        lanes: Number of sums that take the squares in turn.
    """
    squares = values * values
    whole = squares.shape[1] // lanes * lanes
    # Added along the middle axis: numpy takes the terms one after the other there.
    sums = np.add.reduce(squares[:, :whole].reshape(len(values), -1, lanes), axis=1)
    total = np.zeros(len(values), np.float32)
    for column in (*sums.T, *squares[:, whole:].T):
        total = total + column
    return np.sqrt(total)
