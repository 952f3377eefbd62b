from __future__ import annotations

import numpy as np

from tunerun.data.split import held_out, share

ROWS = [{"q": f"question {number}", "a": "x"} for number in range(2000)]


def chosen(rows: list, fraction: float, seed: int = 0) -> list[bool]:
    return held_out(np.array([share(row, seed) for row in rows]), fraction).tolist()


def test_the_fraction_is_held_out():
    assert 150 < sum(chosen(ROWS, 0.1)) < 250
    assert sum(chosen(ROWS, 0.0)) == 0


def test_rows_that_are_appended_move_no_other():
    assert chosen(ROWS, 0.1)[:1000] == chosen(ROWS[:1000], 0.1)


def test_the_order_of_rows_and_keys_does_not_matter():
    turned = [dict(reversed(row.items())) for row in reversed(ROWS)]
    assert chosen(turned, 0.1) == chosen(ROWS, 0.1)[::-1]


def test_equal_rows_are_on_one_side():
    flags = chosen([*ROWS, *ROWS], 0.3)
    assert flags[:2000] == flags[2000:]


def test_another_seed_chooses_others():
    assert chosen(ROWS, 0.1, seed=0) != chosen(ROWS, 0.1, seed=1)


def test_few_rows_still_give_one_to_evaluate_on():
    assert sum(chosen(ROWS[:5], 0.0001)) == 1
    assert chosen([], 0.1) == []
