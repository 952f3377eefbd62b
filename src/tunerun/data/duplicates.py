"""Finds rows that are copies of earlier ones, exactly or nearly.

Near copies are found by the tokens themselves, without their text: every row's set of 5-token shingles is hashed once
and sketched by one-permutation MinHash (Li, Owen and Zhang, 2012), empty bins are filled from their neighbours for the
search only (Shrivastava and Li, 2014), rows that agree in a band of the sketch are compared, and the share of agreeing
bins estimates the Jaccard similarity of the two sets, with a standard error of about 0.05 at 0.8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SIMILARITY = 0.8
"""Estimated Jaccard similarity from which rows count as near copies."""

Array = npt.NDArray[Any]

_SHINGLE_TOKENS = 5
_BINS = 64
_BIN_SHIFT = np.uint32(32 - 6)
_BANDS = 16
_EMPTY = np.uint32(0xFFFFFFFF)
_CHUNK_TOKENS = 1 << 18

# Odd numbers with mixed bits, one for each place in a shingle (a multilinear hash), and one for each later use.
_PLACES = tuple(np.uint32(value) for value in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1))
_MIX, _NARROW, _BORROWED = np.uint32(0x7FEB352D), np.uint32(0x846CA68B), np.uint32(0x68E31DA5)

# What is in a fifth of the rows, such as a system prompt or the template's own words, says nothing about likeness.
_COMMON_FRACTION = 0.2
_COMMON_ROWS = 5
_COMMON_SAMPLE_ROWS = 256
_COMMON_BITS = 20


@dataclass(frozen=True, slots=True)
class NearCopies:
    """Rows that are nearly the same as an earlier one."""

    original: Array
    """Row that each row is a near copy of, or -1; shape [rows], int64."""
    similarity: Array
    """Estimated Jaccard similarity to it; shape [rows], float32."""


def first_of(keys: Array) -> Array:
    """Returns for each key where it is first, shape [keys], int64."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    found: Array = first[inverse]
    return found


def near_copies(
    tokens: Array, starts: Array, considered: Array, *, let_go: Callable[[], None] | None = None
) -> NearCopies:
    """Finds rows that are nearly the same as an earlier one.

    Args:
        tokens: Of all rows, one after the other; shape [tokens], uint32. May be mapped: it is read in order, in chunks.
        starts: Where each row starts, and where the last one ends; shape [rows + 1].
        considered: Which rows are compared; shape [rows]. Exact copies are better left out.
        let_go: Called after each chunk; gives back the memory of mapped tokens.
    """
    rows = len(starts) - 1
    found = NearCopies(np.full(rows, -1, np.int64), np.zeros(rows, np.float32))
    sketches = np.empty((rows, _BINS), np.uint8)
    filled = np.empty((rows, _BINS // 8), np.uint8)
    common = _common_shingles(tokens, starts)
    for first, last in _chunks(starts):
        sketches[first:last], filled[first:last] = _sketch(tokens, starts[first : last + 1], common)
        if let_go is not None:
            let_go()
    numbers = np.flatnonzero(considered & filled.any(axis=1))
    bands = sketches.view(np.uint32)
    for band in range(_BANDS):
        cells = bands[numbers, band]
        order = np.argsort(cells, kind="stable")
        same = cells[order[1:]] == cells[order[:-1]]
        heads = np.maximum.accumulate(np.where(np.r_[False, same], 0, np.arange(len(order))))
        later = np.flatnonzero(same) + 1
        # Comparing with the first and with the one before keeps the work linear, however many agree.
        for earlier in (order[heads[later]], order[later - 1]):
            _compare(numbers[order[later]], numbers[earlier], sketches, filled, found)
    return found


def _compare(rows: Array, others: Array, sketches: Array, filled: Array, found: NearCopies) -> None:
    """Notes which rows are near copies of the earlier rows beside them, where they are more alike than known."""
    for start in range(0, len(rows), 1 << 14):
        row, other = rows[start : start + (1 << 14)], others[start : start + (1 << 14)]
        mine, theirs = np.unpackbits(filled[row], axis=1), np.unpackbits(filled[other], axis=1)
        agree = ((sketches[row] == sketches[other]) & (mine & theirs).view(np.bool_)).sum(axis=1)
        alike = (agree / (mine | theirs).sum(axis=1)).astype(np.float32)
        better = (alike >= SIMILARITY) & (alike > found.similarity[row])
        found.original[row[better]] = other[better]
        found.similarity[row[better]] = alike[better]


def _chunks(starts: Array) -> list[tuple[int, int]]:
    """Returns ranges of rows of about `_CHUNK_TOKENS` tokens each, and of one row at least."""
    rows = len(starts) - 1
    found, first = [], 0
    while first < rows:
        last = int(np.searchsorted(starts, starts[first] + _CHUNK_TOKENS, side="right")) - 1
        last = min(max(last, first + 1), rows)
        found.append((first, last))
        first = last
    return found


def _shingles(tokens: Array) -> Array:
    """Hashes each run of five tokens, shape [tokens - 4], uint32."""
    count = len(tokens) - _SHINGLE_TOKENS + 1
    if count <= 0:
        return np.zeros(0, np.uint32)
    hashes = tokens[:count] * _PLACES[0]
    scratch = np.empty_like(hashes)
    for place in range(1, _SHINGLE_TOKENS):
        hashes += np.multiply(tokens[place : place + count], _PLACES[place], out=scratch)
    hashes ^= np.right_shift(hashes, np.uint32(15), out=scratch)
    hashes *= _MIX
    return hashes


def _owners(starts: Array) -> Array:
    """Returns the first bin of the row each shingle is of, of one row more for one that reaches into the next row.

    Shape [tokens - 4], int64.
    """
    rows = len(starts) - 1
    owners = np.repeat(np.arange(rows) * _BINS, np.diff(starts))
    for back in range(1, _SHINGLE_TOKENS):
        ends = starts[1:] - starts[0] - back
        owners[ends[ends >= 0]] = rows * _BINS
    return owners[: max(len(owners) - _SHINGLE_TOKENS + 1, 0)]


def _common_shingles(tokens: Array, starts: Array) -> Array:
    """Returns a flag for each of 2 ** 20 hashes: whether it is in so many rows of a sample that it says nothing."""
    rows = len(starts) - 1
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, _COMMON_SAMPLE_ROWS)).astype(np.int64))
    counts = np.zeros(1 << _COMMON_BITS, np.uint16)
    for row in chosen:
        cells = np.unique(_shingles(np.asarray(tokens[starts[row] : starts[row + 1]])) >> np.uint32(32 - _COMMON_BITS))
        counts[cells] += 1
    found: Array = counts >= max(_COMMON_ROWS, _COMMON_FRACTION * len(chosen))
    return found


def _sketch(tokens: Array, starts: Array, common: Array) -> tuple[Array, Array]:
    """Returns the sketches of rows, shape [rows, 64], uint8, and which bins are not borrowed, as bits."""
    rows = len(starts) - 1
    hashes = _shingles(np.asarray(tokens[starts[0] : starts[-1]]))
    cells = _owners(starts)
    cells += hashes >> _BIN_SHIFT
    lowest = np.full((rows + 1) * _BINS, _EMPTY)
    hashes[common[hashes >> np.uint32(32 - _COMMON_BITS)]] = _EMPTY
    np.minimum.at(lowest, cells, hashes)
    bins = np.ascontiguousarray(lowest[: rows * _BINS].reshape(rows, _BINS).T)
    empty = bins == _EMPTY
    filled = np.packbits(~empty, axis=0).T
    for index in reversed(range(2 * _BINS)):
        here, after = index % _BINS, (index + 1) % _BINS
        np.copyto(bins[here], bins[after] + _BORROWED, where=bins[here] == _EMPTY)
    bins *= _NARROW
    return (bins >> np.uint32(24)).astype(np.uint8).T, filled
