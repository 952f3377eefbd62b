from __future__ import annotations

import pytest

from tunerun.train import batches


def _rows(step: int, seed: int = 0) -> list[int]:
    return batches.rows_of_step(step, rows=10, global_batch_size=4, seed=seed)


def test_each_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    first = [row for step in range(3) for row in _rows(step)]
    second = [row for step in range(3, 6) for row in _rows(step)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_last_step_of_an_epoch_takes_what_is_left() -> None:
    assert [len(_rows(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]


def test_rows_depend_on_seed_and_step_alone() -> None:
    assert _rows(4) == _rows(4)
    assert _rows(4) != _rows(4, seed=1)


@pytest.mark.parametrize(("epochs", "max_steps", "wanted"), [(1.0, None, 3), (2.5, None, 8), (0.1, None, 1), (9, 4, 4)])
def test_steps_follow_epochs_unless_they_are_given(epochs: float, max_steps: int | None, wanted: int) -> None:
    assert batches.total_steps(10, global_batch_size=4, epochs=epochs, max_steps=max_steps) == wanted


def test_micro_batches_keep_the_order() -> None:
    assert batches.split([5, 3, 8, 1, 2], 2) == [[5, 3], [8, 1], [2]]
