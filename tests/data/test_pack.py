from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunerun.data.pack import pack


@given(st.integers(1, 64).flatmap(lambda size: st.tuples(st.just(size), st.lists(st.integers(1, size), max_size=80))))
def test_every_sample_is_in_one_row_and_no_row_is_too_full(case):
    capacity, lengths = case
    rows = pack(np.array(lengths, np.int64), capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)
    assert [row[0] for row in rows] == sorted(min(row) for row in rows)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_no_more_rows_than_best_fit_decreasing_placed_one_by_one(lengths):
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting, key=room.__getitem__)] -= length
        else:
            room.append(20 - length)
    assert len(pack(np.array(lengths), 20)) == len(room)


def test_the_plan_is_the_same_each_time():
    lengths = np.random.default_rng(0).integers(1, 512, 2000)
    assert all((one == two).all() for one, two in zip(pack(lengths, 512), pack(lengths.copy(), 512), strict=True))


@pytest.mark.parametrize("draw", ["gamma", "lognormal", "uniform"])
def test_real_length_distributions_are_packed_almost_full(draw):
    source = np.random.default_rng(0)
    lengths = {
        "gamma": source.gamma(2, 180, 20_000),
        "lognormal": source.lognormal(5.5, 0.8, 20_000),
        "uniform": source.uniform(20, 700, 20_000),
    }[draw]
    lengths = np.clip(lengths.astype(np.int64), 1, 2048)
    assert lengths.sum() / (len(pack(lengths, 2048)) * 2048) > 0.995
