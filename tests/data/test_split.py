from __future__ import annotations

import numpy as np
import pytest

from tunerun.data.keys import row_keys
from tunerun.data.rows import Text
from tunerun.data.split import hold_out_count, hold_out_fraction, ranks

CONTENTS = np.array([row_keys(Text(f"row {number}"))[0] for number in range(4000)], np.uint64)


def one_source(count: int) -> np.ndarray:
    return np.zeros(count, np.int64)


def by_fraction(contents, fraction, *, seed=0, sources=None):
    sources = one_source(len(contents)) if sources is None else sources
    return hold_out_fraction(ranks(contents, seed), sources, fraction)


def by_count(contents, count, *, seed=0, sources=None):
    sources = one_source(len(contents)) if sources is None else sources
    return hold_out_count(ranks(contents, seed), sources, count)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.5])
def test_about_the_fraction_is_held_out(fraction):
    held = by_fraction(CONTENTS, fraction).sum()
    assert abs(held - 4000 * fraction) < 5 * np.sqrt(4000 * fraction * (1 - fraction))


def test_rows_that_are_appended_move_no_other():
    assert by_fraction(CONTENTS, 0.1)[:1000].tolist() == by_fraction(CONTENTS[:1000], 0.1).tolist()


def test_an_appended_row_changes_a_count_by_one_row_at_most():
    before = by_count(CONTENTS[:1000], 100)
    for extra in range(1, 40):
        after = by_count(CONTENTS[: 1000 + extra], 100)
        left = int((before & ~after[:1000]).sum())
        assert left == after[1000:].sum() <= extra
    assert not (after[:1000] & ~before).any()


def test_a_count_is_met_exactly():
    assert [by_count(CONTENTS, count).sum() for count in (1, 7, 250, 3999, 5000)] == [1, 7, 250, 3999, 3999]


def test_the_order_of_rows_does_not_matter():
    for choose, amount in ((by_fraction, 0.1), (by_count, 99)):
        assert choose(CONTENTS[::-1], amount).tolist() == choose(CONTENTS, amount)[::-1].tolist()


def test_equal_rows_are_on_one_side_also_in_different_sources():
    sources = np.repeat([0, 1, 2], [4000, 4000, 50])
    contents = np.concatenate([CONTENTS, CONTENTS, CONTENTS[:50]])
    for held in (by_fraction(contents, 0.3, sources=sources), by_count(contents, 900, sources=sources)):
        assert held[:4000].tolist() == held[4000:8000].tolist()
        assert held[:50].tolist() == held[8000:].tolist()


def test_another_seed_chooses_others():
    first, second = by_fraction(CONTENTS, 0.1, seed=0), by_fraction(CONTENTS, 0.1, seed=1)
    assert (first & second).sum() < 100


def test_every_source_gives_its_share():
    sources = np.repeat([0, 1, 2], [3000, 900, 100])
    held = by_count(CONTENTS, 400, sources=sources)
    assert np.bincount(sources[held]).tolist() == [300, 90, 10]
    held = by_fraction(CONTENTS, 0.1, sources=sources)
    first, second, third = np.bincount(sources[held])
    assert (230 <= first <= 370, 40 <= second <= 140, 1 <= third <= 25) == (True, True, True)


def test_a_source_that_should_give_a_row_gives_one():
    sources = np.repeat([0, 1], [3900, 100])
    for seed in range(40):
        held = by_fraction(CONTENTS, 0.01, seed=seed, sources=sources)
        assert held[3900:].sum() >= 1


def test_no_source_is_emptied():
    sources = np.array([0] * 50 + [1, 2, 2])
    for seed in range(40):
        for held in (
            by_fraction(CONTENTS[:53], 0.5, seed=seed, sources=sources),
            by_count(CONTENTS[:53], 50, seed=seed, sources=sources),
        ):
            assert set(sources[~held]) == {0, 1, 2}
            assert held.any()


def test_few_rows_still_give_one_to_evaluate_on():
    assert by_fraction(CONTENTS[:5], 0.0001).sum() == 1
    assert by_fraction(CONTENTS[:1], 0.5).sum() == 0
    assert by_fraction(np.repeat(CONTENTS[:1], 9), 0.5).sum() == 0
    assert len(by_fraction(CONTENTS[:0], 0.1)) == len(by_count(CONTENTS[:0], 3)) == 0
