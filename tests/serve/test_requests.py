from __future__ import annotations

import json

import pytest

from tunerun.serve.requests import InvalidRequest, parse_body, parse_chat, parse_completion

USER = {"role": "user", "content": "x"}


def test_null_is_as_good_as_absent():
    body = parse_body(b'{"messages": [{"role": "user", "content": "x"}], "n": null, "stop": null, "tools": null}')
    assert parse_chat(body).asked.stop == ()


def test_what_clients_send_of_themselves_is_accepted():
    parse_chat({"messages": [USER], "user": "me", "metadata": {"a": "b"}, "n": 1, "presence_penalty": 0.0})


@pytest.mark.parametrize("value", [2, 0, True, "1", [1], {}])
def test_a_field_that_is_not_supported_is_refused_by_name(value):
    with pytest.raises(InvalidRequest, match="`n` is supported only as 1") as caught:
        parse_chat({"messages": [USER], "n": value})
    assert caught.value.field == "n"


def test_an_answer_can_be_sent_back_with_its_empty_fields():
    answer = {"role": "assistant", "content": "y", "refusal": None, "annotations": [], "tool_calls": None}
    assert parse_chat({"messages": [USER, answer]}).messages[1] == {"role": "assistant", "content": "y"}


def test_tool_arguments_become_objects():
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": "你"})}}
    request = parse_chat({"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]})
    assert request.messages[0]["tool_calls"][0]["function"]["arguments"] == {"x": "你"}
    assert request.messages[0]["content"] == ""


def test_developers_are_the_system():
    assert parse_chat({"messages": [{"role": "developer", "content": "x"}]}).messages[0]["role"] == "system"


def test_a_wrong_message_is_named_by_its_place():
    with pytest.raises(InvalidRequest) as caught:
        parse_chat({"messages": [USER, {"role": "user", "content": 1}]})
    assert caught.value.field == "messages[1].content"


def test_the_newer_length_field_wins():
    assert parse_chat({"messages": [USER], "max_tokens": 1, "max_completion_tokens": 2}).asked.max_tokens == 2
    assert parse_chat({"messages": [USER]}).asked.max_tokens is None
    assert parse_completion({"prompt": "x"}).asked.max_tokens == 16


@pytest.mark.parametrize(("seed", "expected"), [(0, 0), (-1, (1 << 32) - 1), ((1 << 32) + 5, 5)])
def test_any_whole_seed_is_taken(seed, expected):
    assert parse_chat({"messages": [USER], "seed": seed}).asked.seed == expected
