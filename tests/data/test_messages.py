from __future__ import annotations

import pytest

from tunerun.data.messages import conversation
from tunerun.data.rows import RowFault

USER = {"role": "user", "content": "q"}


def test_text_parts_are_joined_whatever_else_they_carry():
    parts = [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}]
    assert conversation([USER, {"role": "assistant", "content": parts}]).messages[1]["content"] == "ab"


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": "x"}, {"text": "a"}, {"type": "text"}])
def test_parts_that_are_not_text_are_a_fault(part):
    with pytest.raises(RowFault, match="a part that is not text"):
        conversation([{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}])


@pytest.mark.parametrize(("weight", "untrained"), [(0, {1}), (1, set()), (None, set())])
def test_a_weight_says_whether_an_answer_is_trained(weight, untrained):
    assert conversation([USER, {"role": "assistant", "content": "a", "weight": weight}]).untrained == untrained


def test_a_developer_is_a_system_and_a_function_a_tool():
    call = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    turns = [{"role": "developer", "content": "s"}, USER, call, {"role": "function", "content": "1"}]
    made = conversation([*turns, {"role": "assistant", "content": "a"}])
    assert [message["role"] for message in made.messages] == ["system", "user", "assistant", "tool", "assistant"]
