from __future__ import annotations

import numpy as np

from tunerun.data.assemble import repeat, times
from tunerun.data.split import ranks

ROWS = np.arange(20_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def test_a_weight_is_the_times_that_rows_are_in_an_epoch():
    for weight in (0.5, 1.0, 1.7, 2.0):
        counts = times(ROWS, np.full(len(ROWS), weight), 0)
        assert set(counts.tolist()) <= {int(weight), int(np.ceil(weight))}
        assert abs(counts.mean() - weight) < 0.02


def test_appended_rows_change_nothing_for_the_others():
    weights = np.full(len(ROWS), 0.5)
    assert times(ROWS, weights, 3)[:99].tolist() == times(ROWS[:99], weights[:99], 3).tolist()
    assert times(ROWS, weights, 3).tolist() != times(ROWS, weights, 4).tolist()


def test_the_choice_is_independent_of_the_split():
    chance = ranks(ROWS, 0) / 2.0**64
    chosen = times(ROWS, np.full(len(ROWS), 0.5), 0) == 1
    assert abs(chosen[chance < 0.1].mean() - 0.5) < 0.05


def test_pairs_are_repeated_together():
    assert repeat(np.arange(3), np.array([2, 0, 1]), paired=False).tolist() == [0, 0, 2]
    assert repeat(np.arange(4), np.array([2, 2, 1, 1]), paired=True).tolist() == [0, 1, 0, 1, 2, 3]
