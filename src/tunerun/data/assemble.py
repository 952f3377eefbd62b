"""Writes the stores that are trained and evaluated on from prepared samples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.data.pack import pack
from tunerun.data.split import ranks
from tunerun.formats.pairs import CHOSEN, REJECTED, finish_pairs
from tunerun.formats.tokens import Manifest, TokenStore, TokenWriter

Array = npt.NDArray[Any]

# Samples are read from all over the file, and each read maps up to 64 KiB around it.
_ROWS_AT_ONCE = 64


def assemble(
    samples: TokenStore, chosen: Array, folder: Path, *, paired: bool, capacity: int | None, facts: dict[str, Any]
) -> Manifest:
    """Writes a store of chosen samples.

    Args:
        samples: All samples, one to a row; of pairs the chosen and the rejected one follow each other.
        chosen: Rows of `samples`, in order; shape [samples to write].
        folder: Of the store.
        paired: Whether it becomes a store of pairs.
        capacity: Tokens of a row when samples are packed, or None for one sample in each row.
        facts: Of the manifest, as for `TokenWriter.finish`.
    """
    if paired:
        assert capacity is None, "config/checks.py refuses to pack pairs"
        sides = [_write(samples, chosen[side::2], folder / name, None, facts) for side, name in _SIDES]
        return finish_pairs(folder, *sides)
    return _write(samples, chosen, folder, capacity, facts)


_SIDES = tuple(enumerate((CHOSEN, REJECTED)))


def _write(samples: TokenStore, chosen: Array, folder: Path, capacity: int | None, facts: dict[str, Any]) -> Manifest:
    rows: Iterable[Array] = chosen[:, None]
    if capacity is not None:
        rows = (chosen[row] for row in pack(samples.lengths()[chosen], capacity))
    labels = samples.labels
    with TokenWriter(folder, labelled=labels is not None) as writer:
        for number, row in enumerate(rows):
            if number % _ROWS_AT_ONCE == 0:
                # Else all of the file would count as memory of this process in the end.
                samples.let_go()
            label = None if labels is None else bool(labels[row[0]])
            writer.add(*(samples.row(int(index))[:2] for index in row), label=label)
        return writer.finish(packed=capacity is not None, **facts)


def times(contents: Array, weights: Array, seed: int) -> Array:
    """Returns how often each row is in an epoch: its weight, of which the fraction is decided by its content.

    Rows that are appended change nothing for the others, and equal rows have the same fate.

    Args:
        contents: Hash of each row; shape [rows], uint64.
        weights: Of each row's source; shape [rows].
        seed: Of the run.

    Returns:
        Whole numbers, shape [rows], int64.
    """
    # Mixed once more, because the split looks at the same ranks.
    chance = ranks(ranks(contents, seed), seed) / 2.0**64
    found: Array = np.floor(weights).astype(np.int64) + (chance < weights % 1.0)
    return found


def repeat(chosen: Array, copies: Array, *, paired: bool) -> Array:
    """Repeats samples.

    Args:
        chosen: Rows of samples; of pairs the chosen and the rejected one follow each other; shape [samples].
        copies: How often each sample is wanted, the same for both of a pair; shape [samples].
        paired: Whether they are pairs, which stay together.
    """
    width = 2 if paired else 1
    found: Array = np.repeat(chosen.reshape(-1, width), copies[::width], axis=0).ravel()
    return found
