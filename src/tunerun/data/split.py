"""Holds out rows for evaluation by their content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt


def share(value: Any, seed: int) -> float:
    """Maps a row to a number in [0, 1) that depends on its content and the seed alone.

    Rows appended to a file leave the others where they were, and equal rows stay on the same side.
    """
    text = json.dumps(value, sort_keys=True)
    digest = hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def held_out(shares: npt.NDArray[np.float64], fraction: float) -> npt.NDArray[np.bool_]:
    """Chooses the rows to evaluate on: those whose share is below the fraction, and at least the lowest one.

    Args:
        shares: Of each row, from `share`; shape [rows].
        fraction: Of the rows; 0 holds out none.

    Returns:
        A flag for each row, shape [rows].
    """
    if fraction <= 0 or not len(shares):
        return np.zeros(len(shares), np.bool_)
    lowest: npt.NDArray[np.bool_] = shares == shares.min()
    return lowest | (shares < fraction)
