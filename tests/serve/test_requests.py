from __future__ import annotations

import json

import pytest

from tunerun.serve import requests
from tunerun.serve.fields import InvalidRequest
from tunerun.serve.requests import chat_fields, completion_fields, parse_body, parse_tokenize

USER = {"role": "user", "content": "x"}
MOST = 4


def parse_chat(data: dict) -> requests.ChatRequest:
    return requests.parse_chat(data, chat_fields(MOST))


def parse_completion(data: dict) -> requests.CompletionRequest:
    return requests.parse_completion(data, completion_fields(MOST))


def test_null_is_as_good_as_absent():
    body = parse_body(b'{"messages": [{"role": "user", "content": "x"}], "n": null, "stop": null, "tools": null}')
    assert parse_chat(body).asked.stop == ()


def test_what_clients_send_of_themselves_is_accepted():
    parse_chat({"messages": [USER], "user": "me", "metadata": {"a": "b"}, "n": 1, "presence_penalty": 0.0})


@pytest.mark.parametrize("value", [2, 0, True, "1", [1], {}])
def test_a_field_that_is_not_supported_is_refused_by_name(value):
    with pytest.raises(InvalidRequest, match="`best_of` is supported only as 1") as caught:
        parse_chat({"messages": [USER], "best_of": value})
    assert caught.value.field == "best_of"


@pytest.mark.parametrize("value", [MOST + 1, 0, True, "1", 1.5])
def test_a_number_out_of_bounds_is_refused(value):
    assert parse_chat({"messages": [USER], "n": MOST}).asked.n == MOST
    with pytest.raises(InvalidRequest, match="`n` must be a whole number from 1 to 4"):
        parse_chat({"messages": [USER], "n": value})


def test_a_stream_option_is_named_with_its_place():
    with pytest.raises(InvalidRequest) as caught:
        parse_chat({"messages": [USER], "stream": True, "stream_options": {"include_usage": 1}})
    assert caught.value.field == "stream_options.include_usage"


TOOL = {"type": "function", "function": {"name": "look"}}
FREE = {"messages": [USER], "tools": [TOOL]}


def test_a_choice_of_tools_says_which_must_be_called():
    assert parse_chat(FREE).must_call == ()
    assert parse_chat({**FREE, "tool_choice": "required"}).must_call == ("look",)
    named = {"type": "function", "function": {"name": "look"}}
    assert parse_chat({**FREE, "tool_choice": named}).must_call == ("look",)
    assert parse_chat({**FREE, "tool_choice": "none"}).tools == ()


@pytest.mark.parametrize("choice", ["any", 1, {}, {"type": "function", "function": {"name": "other"}}, ["auto"]])
def test_a_choice_that_cannot_be_made_is_refused(choice):
    with pytest.raises(InvalidRequest, match="tool_choice"):
        parse_chat({**FREE, "tool_choice": choice})
    with pytest.raises(InvalidRequest, match="tool_choice"):
        parse_chat({"messages": [USER], "tool_choice": "required"})


def test_the_form_of_an_answer_becomes_a_schema():
    def schema(value: object) -> object:
        return parse_chat({"messages": [USER], "response_format": value}).json_schema

    assert schema({"type": "text"}) is None
    assert schema({"type": "json_object"}) == {"type": "object"}
    assert schema({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}) == {
        "type": "array"
    }
    for wrong in ("json", {}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "n"}}):
        with pytest.raises(InvalidRequest, match="response_format"):
            schema(wrong)
    with pytest.raises(InvalidRequest, match="combined"):
        parse_chat({**FREE, "response_format": {"type": "json_object"}})


def test_probabilities_are_asked_for_as_openai_does():
    assert parse_chat({"messages": [USER]}).asked.logprobs is None
    assert parse_chat({"messages": [USER], "logprobs": False, "top_logprobs": 0}).asked.logprobs is None
    assert parse_chat({"messages": [USER], "logprobs": True}).asked.logprobs == 0
    assert parse_chat({"messages": [USER], "logprobs": True, "top_logprobs": 3}).asked.logprobs == 3
    assert parse_completion({"prompt": "x", "logprobs": 2}).asked.logprobs == 2
    with pytest.raises(InvalidRequest, match="needs `logprobs`"):
        parse_chat({"messages": [USER], "top_logprobs": 3})


def test_either_a_text_or_a_conversation_is_tokenized():
    assert parse_tokenize({"prompt": "x"}).special
    assert not parse_tokenize({"messages": [USER]}).special
    for wrong in ({}, {"prompt": "x", "messages": [USER]}, {"prompt": "x", "tools": []}, {"prompt": 1}):
        with pytest.raises(InvalidRequest):
            parse_tokenize(wrong)


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
