from __future__ import annotations

import pytest

from tests.config.test_resolve import BASE, faults
from tunerun.config import other_tools, resolve


@pytest.mark.parametrize("key", sorted(set(other_tools.NAMES.values())))
def test_every_name_of_another_tool_stands_for_a_key_or_a_group_of_this_one(key):
    section, _, name = key.rpartition(".")
    assert key in other_tools.keys_for(name, section) or key in ("run_dir", *resolve.group_names())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("num_train_epochs=3", "train.epochs"),
        ("train.num_train_epochs=3", "train.epochs"),
        ("method.lora_r=8", "method.rank"),
        ("learning_rate=1e-4", "train.learning_rate"),
        ("train.max_length=512", "data.max_length"),
        ("trust_remote_code=true", "model.trust_remote_code"),
        ("dataset=rows.jsonl", "data.path"),
    ],
)
def test_a_key_that_is_called_otherwise_or_stands_elsewhere_is_answered_with_its_place(typed, meant):
    (problem,) = faults(*BASE, typed)
    assert problem.endswith(f" Did you mean {meant}?")


def test_a_key_that_stands_in_several_sections_is_answered_with_each():
    (problem,) = faults(*BASE, "max_new_tokens=9")
    assert problem.endswith("Did you mean answer.max_new_tokens or eval.max_new_tokens?")


def test_a_key_that_resembles_one_of_its_own_section_is_answered_with_that_one():
    (problem,) = faults(*BASE, "train.learning_rat=1")
    assert "Did you mean learning_rate" in problem
