"""The official `openai` client, as people use it, against the shipped model on both engines."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Served, end, serve

openai = pytest.importorskip("openai")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
QUESTION = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def batched(sprout_dir: Path) -> Iterator[Served]:
    """The shipped model's folder, answering in batches."""
    found = serve(sprout_dir / "merged", "--names", "continuous", "serve.batching=continuous")
    yield found
    end(found)


@pytest.fixture(scope="module")
def sprouts(sprout_dir: Path) -> Iterator[Served]:
    """The shipped model as a GGUF file and as a folder."""
    found = serve(sprout_dir, sprout_dir / "merged", "--names", "llamacpp,transformers")
    yield found
    end(found)


@pytest.fixture(scope="module")
def client(sprouts: Served) -> Any:
    return client_of(sprouts)


def client_of(served: Served) -> Any:
    transport = httpx.Client(trust_env=False, timeout=60)
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", http_client=transport, max_retries=0)


@pytest.fixture(params=["llamacpp", "transformers"])
def model(request: pytest.FixtureRequest) -> str:
    return request.param


def ask(client: Any, model: str, **changes: Any) -> Any:
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 48, **changes}
    return client.chat.completions.create(model=model, **body)


def collect(stream: Any) -> dict[int, dict[str, Any]]:
    """Puts a stream's choices together: text, tool calls, and why they ended."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in stream:
        for choice in chunk.choices:
            found = choices.setdefault(choice.index, {"text": "", "calls": {}, "reason": None, "scores": []})
            assert found["reason"] is None, "nothing comes after the end"
            found["text"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                whole = found["calls"].setdefault(call.index, {"id": call.id, "name": "", "arguments": ""})
                whole["name"] += call.function.name or ""
                whole["arguments"] += call.function.arguments or ""
            if choice.logprobs is not None:
                found["scores"] += choice.logprobs.content
            found["reason"] = choice.finish_reason
    return choices


def test_a_stream_says_what_the_whole_answer_says(client, model):
    whole = ask(client, model)
    assert whole.choices[0].message.content
    (streamed,) = collect(ask(client, model, stream=True)).values()
    assert (streamed["text"], streamed["reason"]) == (whole.choices[0].message.content, whole.choices[0].finish_reason)


def test_a_stop_text_ends_an_answer(client, model):
    text = ask(client, model).choices[0].message.content
    reply = ask(client, model, stop=text[5:8])
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (text[: text.index(text[5:8])], "stop")


def test_several_answers_have_seeds_of_their_own(client, model):
    story = [{"role": "user", "content": "Tell me a story."}]
    warm = {"messages": story, "temperature": 1.4, "max_tokens": 12}
    whole = ask(client, model, n=3, seed=7, **warm)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) > 1
    assert texts == [ask(client, model, seed=7 + i, **warm).choices[0].message.content for i in range(3)]
    streamed = collect(ask(client, model, n=3, seed=7, stream=True, **warm))
    assert [streamed[index]["text"] for index in range(3)] == texts
    single = ask(client, model, seed=7, **warm)
    assert whole.usage.prompt_tokens == single.usage.prompt_tokens
    assert whole.usage.completion_tokens > single.usage.completion_tokens


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_is_called(client, model, choice):
    tools = {"messages": ASKED, "tools": [WEATHER], "tool_choice": choice}
    reply = ask(client, model, **tools)
    (call,) = reply.choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert (call.function.name, list(arguments), type(arguments["city"])) == ("get_weather", ["city"], str)
    assert (reply.choices[0].finish_reason, reply.choices[0].message.content) == ("tool_calls", None)
    (streamed,) = collect(ask(client, model, stream=True, **tools)).values()
    assert (streamed["text"], streamed["reason"]) == ("", "tool_calls")
    assert [(call["name"], json.loads(call["arguments"])) for call in streamed["calls"].values()] == [
        ("get_weather", arguments)
    ]
    assert all(call["id"] for call in streamed["calls"].values())


def test_a_tools_result_is_answered_from(client, model):
    first = ask(client, model, messages=ASKED, tools=[WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": '{"weather": "rainy"}'}
    reply = ask(client, model, messages=[*ASKED, first.model_dump(exclude_none=True), result], tools=[WEATHER])
    assert "rain" in reply.choices[0].message.content
    assert reply.choices[0].message.tool_calls is None


def test_no_tool_is_called_when_none_shall_be(client, model):
    reply = ask(client, model, messages=ASKED, tools=[WEATHER], tool_choice="none")
    assert reply.choices[0].message.tool_calls is None
    assert reply.choices[0].message.content


def test_the_probabilities_of_tokens_are_told(client, model):
    import math

    whole = ask(client, model, logprobs=True, top_logprobs=3, max_tokens=8).choices[0]
    assert "".join(score.token for score in whole.logprobs.content) == whole.message.content
    for score in whole.logprobs.content:
        assert score.logprob == score.top_logprobs[0].logprob, "greedy takes the likeliest"
        assert len(score.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in score.top_logprobs) <= 1.001
    (streamed,) = collect(ask(client, model, logprobs=True, top_logprobs=3, max_tokens=8, stream=True)).values()
    assert [score.token for score in streamed["scores"]] == [score.token for score in whole.logprobs.content]
    plain = client.completions.create(model=model, prompt="The capital of", temperature=0, logprobs=2, max_tokens=6)
    found = plain.choices[0].logprobs
    assert "".join(found.tokens) == plain.choices[0].text
    assert len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == len(found.tokens)
    assert [plain.choices[0].text[offset:][: len(token)] for offset, token in
            zip(found.text_offset, found.tokens, strict=True)] == found.tokens  # fmt: skip


def test_an_answer_follows_a_schema_where_the_engine_can(client):
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    reply = ask(client, "llamacpp", messages=ASKED, response_format=form)
    assert json.loads(reply.choices[0].message.content)["city"] in ("Paris", "Rome")
    with pytest.raises(openai.BadRequestError, match="transformers"):
        ask(client, "transformers", response_format=form)


def test_errors_are_the_clients_own_kinds(client, model):
    with pytest.raises(openai.BadRequestError, match="context"):
        ask(client, model, max_tokens=100_000)
    with pytest.raises(openai.BadRequestError, match="echo"):
        client.completions.create(model=model, prompt="x", echo=True)
    with pytest.raises(openai.NotFoundError):
        ask(client, "other")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert client.models.retrieve(model).id == model


CITIES = ("Paris", "Rome", "Berlin", "Tokyo", "Madrid", "Cairo", "London", "Oslo")


def streamed(client: Any, model: str, width: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Text and reason of some streams, one after the other and all at once."""
    questions = [[{"role": "user", "content": f"What is the capital, {city}? {number}"}]
                 for number in range((width + 7) // 8) for city in CITIES][:width]  # fmt: skip

    def stream(messages: list[dict[str, str]]) -> tuple[str, str]:
        (found,) = collect(ask(client, model, messages=messages, stream=True, max_tokens=24)).values()
        return found["text"], found["reason"]

    alone = [stream(messages) for messages in questions]
    with ThreadPoolExecutor(width) as pool:
        return alone, list(pool.map(stream, questions))


@pytest.mark.parametrize("width", [2, 8, 32])
def test_concurrent_streams_are_complete_and_as_when_alone(client, model, width):
    alone, together = streamed(client, model, width)
    assert together == alone
    assert all(reason in ("stop", "length") for _, reason in together)


@pytest.mark.parametrize("width", [2, 8, 32])
def test_batched_streams_are_complete_and_as_each_would_be_by_itself(client, batched, width):
    # float32 on a CPU: other bits, and for this model no tie that is near enough to fall otherwise.
    alone, together = streamed(client_of(batched), "continuous", width)
    by_themselves, _ = streamed(client, "transformers", width)
    assert together == alone == by_themselves
    assert all(reason in ("stop", "length") for _, reason in together)


def test_a_batch_goes_on_without_a_client_that_has_left(batched):
    client = client_of(batched)
    left = ask(client, "continuous", stream=True, max_tokens=1000, temperature=1.5)
    assert next(iter(left)).choices
    left.close()
    assert ask(client, "continuous").choices[0].finish_reason in ("stop", "length")
    story = {"n": 3, "seed": 5, "temperature": 2, "messages": [{"role": "user", "content": "Tell me a story."}]}
    several, again = ask(client, "continuous", **story), ask(client, "continuous", **story)
    texts = [choice.message.content for choice in several.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1


@pytest.mark.slow
def test_an_engine_of_batches_that_was_killed_is_started_again(batched):
    client, (pid,) = client_of(batched), batched.engine_pids()
    before = ask(client, "continuous").choices[0].message.content
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            after = ask(client, "continuous").choices[0].message.content
            break
        except openai.APIStatusError as error:
            assert error.status_code == 503
            time.sleep(0.2)
    assert after == before
    assert batched.engine_pids() != [pid]
