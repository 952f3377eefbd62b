"""Which fields of a training may differ from those that it is recorded with."""

from __future__ import annotations

import pytest

from tests.train.runs import train_step
from tunerun.plan import step_keys


@pytest.mark.parametrize(
    ("key", "now", "new"),
    [
        ("train.deterministic", False, True),
        ("train.deterministic", True, False),
        ("method.target_modules", ["all-linear"], True),
        ("answers", False, True),
        ("micro_batch_size", 4, False),
        ("data (content)", "0", False),
    ],
)
def test_a_field_that_an_older_record_lacks_is_no_change_at_its_default(key, now, new):
    assert step_keys.is_new(key, now) is new


def test_every_key_of_a_training_has_a_default_that_an_older_record_can_lack():
    keys = step_keys.fingerprint_keys(train_step())
    required = [key for key in keys if key.startswith("train.") and not step_keys.is_new(key, keys[key])]
    assert required == ["train.epochs", "train.global_batch_size", "train.learning_rate"], "those that the step sets"
