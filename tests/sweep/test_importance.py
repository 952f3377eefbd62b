"""What a metric depends on, in a grid."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tunerun.sweep.importance import Importances, variance_shares
from tunerun.sweep.trials import Outcome


def grid(losses: list[float | None], *axes: str) -> list[Outcome]:
    """Returns the trials of a grid over axes written `key=a,b`; None is a trial without a loss."""
    names = [axis.partition("=")[0] for axis in axes]
    points = product(*(axis.partition("=")[2].split(",") for axis in axes))
    return [
        Outcome(
            trial=number,
            parameters=dict(zip(names, point, strict=True)),
            status="done",
            exit_code=0,
            seconds=1.0,
            metrics={} if loss is None else {"eval_loss": loss},
        )
        for number, (point, loss) in enumerate(zip(points, losses, strict=True))
    ]


def test_a_key_that_decides_alone_has_all():
    found = variance_shares(grid([1.0, 1.0, 3.0, 3.0], "rate=1,2", "rank=4,8"), "eval_loss")
    assert found.shares == {"rate": 1.0, "rank": 0.0}
    assert found.text == "rate 100%, rank 0% (share of the variance between 4 trials)"


def test_keys_that_matter_only_together_have_nothing_alone():
    found = variance_shares(grid([1.0, 3.0, 3.0, 1.0], "rate=1,2", "rank=4,8"), "eval_loss")
    assert found.shares == {"rate": 0.0, "rank": 0.0}


def test_the_shares_are_those_of_a_regression_on_each_key():
    losses = [0.9, 1.1, 2.0, 2.4, 3.1, 1.7, 0.2, 0.8, 1.3, 2.2, 2.9, 0.4]
    rows = grid(losses, "rate=1,2,3", "rank=4,8", "kind=a,b")
    found = variance_shares(rows, "eval_loss").shares
    values = np.array(losses)
    for key, share in found.items():
        # R squared of the loss on indicators of the key's values.
        names = sorted({row.parameters[key] for row in rows})
        design = np.array([[row.parameters[key] == name for name in names] for row in rows], float)
        fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
        assert share == pytest.approx(1 - ((values - fitted) ** 2).sum() / ((values - values.mean()) ** 2).sum())
    assert sum(found.values()) < 1


@pytest.mark.parametrize(
    ("losses", "axes", "lack"),
    [
        ([1.0, 2.0, None, None], ("rate=1,2", "rank=4,8"), "only 2 trials have it, and 4 are needed"),
        ([1.0, None, None, None], ("rate=1,2", "rank=4,8"), "only 1 trial has it, and 4 are needed"),
        ([2.0] * 4, ("rate=1,2", "rank=4,8"), "all trials have the same"),
        ([1.0, None, 2.0, None, 3.0, None, 4.0, None], ("rate=1,2,3,4", "rank=4,8"), "has a rate of its own"),
    ],
)
def test_too_little_is_said_to_be_too_little(losses, axes, lack):
    found = variance_shares(grid(losses, *axes), "eval_loss")
    assert lack in found.lack
    assert (found.shares, found.text) == ({}, "")


def test_one_key_needs_no_word_and_neither_does_a_metric_that_no_trial_has():
    assert variance_shares(grid([None] * 4, "rate=1,2", "rank=4,8"), "eval_loss") == Importances()
    assert variance_shares(grid([1.0, 2.0, 3.0, 4.0], "rate=1,2,3,4"), "eval_loss") == Importances()
