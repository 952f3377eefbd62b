"""Which rows a step trains on: a pure function of seed and step, so that resuming needs the step number alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt


def steps_per_epoch(rows: int, global_batch_size: int) -> int:
    """Returns the optimiser steps of one pass over the data; the last one may be smaller."""
    return math.ceil(rows / global_batch_size)


def total_steps(rows: int, *, global_batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Returns the optimiser steps of the whole training."""
    if max_steps is not None:
        return max_steps
    return max(1, math.ceil(epochs * steps_per_epoch(rows, global_batch_size)))


def rows_of_step(step: int, *, rows: int, global_batch_size: int, seed: int) -> list[int]:
    """Returns the rows of an optimiser step.

    Each epoch is a permutation of its own. A step never spans two epochs.

    Args:
        step: Number of the step, from 0.
        rows: Rows of the data.
        global_batch_size: Rows in a step; the last step of an epoch takes what is left.
        seed: Decides the permutations.
    """
    epoch, index = divmod(step, steps_per_epoch(rows, global_batch_size))
    start = index * global_batch_size
    chosen: list[int] = epoch_order(rows, seed, epoch)[start : start + global_batch_size].tolist()
    return chosen


def split(rows: Sequence[int], micro_batch_size: int) -> list[Sequence[int]]:
    """Cuts the rows of a step into micro-batches, in order."""
    return [rows[start : start + micro_batch_size] for start in range(0, len(rows), micro_batch_size)]


@lru_cache(maxsize=2)
def epoch_order(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Returns the row numbers in the order of an epoch, shape [rows]."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)
