"""Holds out rows for evaluation by a hash of their content, source by source.

A row's rank is a number that depends on its content and the seed alone. A share holds out the ranks below a bound, so
rows that are appended move no other row. A count holds out the lowest ranks of each source: an appended row that ranks
among them takes the place of the highest, and all others stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def ranks(contents: Array, seed: int) -> Array:
    """Maps hashes of rows to numbers that look random and depend on the seed, shape [rows], uint64.

    Args:
        contents: Of each row, from `keys.content_key`; shape [rows], uint64. Equal rows get equal ranks.
        seed: Of the run.
    """
    return _mixed(contents ^ _mixed(np.array([seed], np.int64).view(np.uint64)))


def hold_out_fraction(ranked: Array, sources: Array, fraction: float) -> Array:
    """Chooses about a share of every source.

    A source that should give a row and has none below the bound gives its lowest; one that would be emptied keeps its
    highest. Of all sources together at least one row is held out when there are two that differ.

    Args:
        ranked: From `ranks`; shape [rows].
        sources: Number of each row's source; shape [rows].
        fraction: Of the rows, above 0 and below 1.

    Returns:
        Whether each row is held out, shape [rows]; equal rows are on the same side.
    """
    held: Array = ranked < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    for source in np.unique(sources):
        inside = ranked[sources == source]
        if len(inside) * fraction >= 1 and not held[sources == source].any():
            held |= ranked == inside.min()
    if len(ranked) and not held.any():
        largest = ranked[sources == np.bincount(sources).argmax()]
        held |= ranked == largest.min()
    return _without_emptied(held, ranked, sources)


def hold_out_count(ranked: Array, sources: Array, count: int) -> Array:
    """Chooses a number of rows, spread over the sources in proportion to their rows.

    Copies of a row are taken together, so the number can be missed by them, and no source is emptied.

    Args:
        ranked: From `ranks`; shape [rows].
        sources: Number of each row's source; shape [rows].
        count: Rows to hold out.

    Returns:
        Whether each row is held out, shape [rows]; equal rows are on the same side.
    """
    held = np.zeros(len(ranked), np.bool_)
    for source, quota in enumerate(_quotas(np.bincount(sources), count) if len(ranked) else ()):
        inside = sources == source
        values, inverse, copies = np.unique(ranked[inside], return_inverse=True, return_counts=True)
        # A row that another source has too may be held out already.
        already = np.bincount(inverse, weights=held[inside]) > 0
        missing, chosen = quota - int(np.count_nonzero(held[inside])), np.zeros(len(values), np.bool_)
        for index in np.flatnonzero(~already):
            if missing <= 0:
                break
            if copies[index] <= missing:
                chosen[index] = True
                missing -= int(copies[index])
        held |= np.isin(ranked, values[chosen])
    return _without_emptied(held, ranked, sources)


def _quotas(sizes: Array, count: int) -> list[int]:
    """Shares a number of rows out in proportion, by largest remainder; a source of one row gives none."""
    givers = np.where(sizes > 1, sizes, 0)
    count = min(count, int(np.maximum(sizes - 1, 0).sum()))
    exact = givers * (count / max(int(givers.sum()), 1))
    quotas = np.minimum(np.floor(exact).astype(np.int64), np.maximum(sizes - 1, 0))
    for source in np.argsort(np.floor(exact) - exact, kind="stable"):
        if quotas.sum() < count and quotas[source] < sizes[source] - 1:
            quotas[source] += 1
    return [int(quota) for quota in quotas]


def _without_emptied(held: Array, ranked: Array, sources: Array) -> Array:
    for source in np.unique(sources):
        inside = sources == source
        if held[inside].all():
            held &= ranked != ranked[inside].max()
    return held


def _mixed(values: Array) -> Array:
    """Mixes the bits of numbers, as the finaliser of SplitMix64 does (Steele, Lea and Flood, 2014)."""
    made: Array = values + np.uint64(0x9E3779B97F4A7C15)
    made = (made ^ (made >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    made = (made ^ (made >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    made ^= made >> np.uint64(31)
    return made
