"""Packs samples into rows of fixed capacity: best-fit decreasing, planned on the histogram of lengths.

Samples of one length are alike, so whole groups of equal rows are filled at once; the plan costs time in the number of
different lengths, not of samples.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

import numpy as np
import numpy.typing as npt

# A group of rows filled alike: how many rows, and (length, times) of what each holds.
_Group = tuple[int, tuple[tuple[int, int], ...]]


def pack(lengths: npt.NDArray[Any], capacity: int) -> list[npt.NDArray[np.int64]]:
    """Assigns samples to rows.

    Args:
        lengths: Tokens of each sample, 1 to `capacity`, shape [samples].
        capacity: Tokens of a row.

    Returns:
        For each row the indices of its samples, ascending; rows in order of their first sample. The same lengths give
        the same rows.
    """
    if not len(lengths):
        return []
    groups = _plan(np.bincount(lengths, minlength=capacity + 1), capacity)
    order = np.argsort(lengths, kind="stable")
    starts = np.searchsorted(lengths[order], np.arange(capacity + 2))
    used = starts.copy()
    rows: list[npt.NDArray[np.int64]] = []
    for count, content in groups:
        parts = []
        for length, times in content:
            take = order[used[length] : used[length] + count * times]
            used[length] += count * times
            parts.append(take.reshape(count, times))
        rows.extend(np.sort(np.concatenate(parts, axis=1), axis=1))
    assert (used[:-1] == starts[1:]).all(), "every sample is in one row"
    rows.sort(key=lambda row: int(row[0]))
    return rows


def _plan(counts: npt.NDArray[Any], capacity: int) -> list[_Group]:
    """Fills rows for a histogram of lengths; `counts[n]` samples have n tokens."""
    by_room: dict[int, list[_Group]] = {}
    rooms: list[int] = []

    def put(room: int, group: _Group) -> None:
        if room not in by_room:
            by_room[room] = []
            insort(rooms, room)
        by_room[room].append(group)

    for length in range(capacity, 0, -1):
        left = int(counts[length])
        while left:
            place = bisect_left(rooms, length)
            # No row has room for it: open as many as are needed.
            room, count = capacity, left
            content: tuple[tuple[int, int], ...] = ()
            if place < len(rooms):
                room = rooms[place]
                count, content = by_room[room].pop()
                if not by_room[room]:
                    del by_room[room]
                    rooms.pop(place)
            times = min(room // length, left)
            filled = min(count, left // times)
            put(room - length * times, (filled, (*content, (length, times))))
            if content and filled < count:
                put(room, (count - filled, content))
            left -= filled * times
    return [group for room in sorted(by_room) for group in by_room[room]]
