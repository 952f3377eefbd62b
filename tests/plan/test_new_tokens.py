"""Rows for new tokens that nothing would train are named when the plan is made."""

from __future__ import annotations

import json

import pytest

from tests.plan.test_build import SHAPE, config
from tunerun.plan import new_tokens

UNTIED = {**SHAPE, "tied_embeddings": False}


def _problems(*, shape=SHAPE, adapter=None, resize=True, **method):
    model = {"path": "org/model", "shape": shape, "resize_embeddings": resize, "adapter": adapter}
    return new_tokens.problems(config(model=model, method=method))


@pytest.mark.parametrize(
    ("patterns", "shape", "left"),
    [
        ((), SHAPE, "freeze leaves model.embed_tokens.weight as it is"),
        (("*norm*",), UNTIED, "freeze leaves model.embed_tokens.weight and lm_head.weight as it is"),
        (("*embed_tokens*",), UNTIED, "freeze leaves lm_head.weight as it is"),
        (("*embed_tokens*",), SHAPE, None),
        (("*embed_tokens*", "lm_head.*"), UNTIED, None),
        ((), {}, "freeze leaves model.embed_tokens.weight as it is"),
    ],
)
def test_freezing_leaves_rows_alone_unless_a_pattern_names_them(patterns, shape, left):
    found = _problems(kind="freeze", patterns=patterns, shape=shape)
    assert [problem.where for problem in found] == (["model.resize_embeddings"] if left else [])
    if left:
        assert left in found[0].what
        # What is told to be written helps.
        told = found[0].fix.partition("[")[2].partition("]")[0].split(",")
        assert _problems(kind="freeze", patterns=told, shape=shape) == []
        assert _problems(kind="freeze", patterns=patterns, shape=shape, resize=False) == []


@pytest.mark.parametrize(
    ("adapter", "shape", "left"),
    [
        ({"target_modules": ["q_proj"], "modules_to_save": None, "trainable_token_indices": None}, SHAPE, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, SHAPE, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, UNTIED, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, SHAPE, False),
        ({"target_modules": ["embed_tokens", "lm_head"]}, UNTIED, False),
        ({"target_modules": r".*\.(embed_tokens|q_proj)"}, SHAPE, False),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1000]}, SHAPE, False),
        ({"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1000]}}, UNTIED, True),
    ],
)
def test_an_adapter_that_is_gone_on_with_has_to_train_them(tmp_path, adapter, shape, left):
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    found = _problems(kind="lora", adapter=str(tmp_path), shape=shape)
    assert [problem.where for problem in found] == (["model.resize_embeddings"] if left else [])
    if left:
        assert f"{tmp_path} does not train" in found[0].what
        assert _problems(kind="lora", adapter=str(tmp_path), shape=shape, resize=False) == []


def test_a_fresh_adapter_and_full_training_train_them():
    assert _problems(kind="lora") == _problems(kind="full") == []
