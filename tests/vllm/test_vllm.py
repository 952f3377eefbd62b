"""The quickstart's model through vLLM on the CPU, as a user serves it and as OpenAI's client asks it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.vllm.conftest import Served, serving
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.serve.local import LocalEngine
from tunerun.serve.protocol import EngineSpec, Generate, Text
from tunerun.verify.serving import Trained, serving_gate

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

QUESTIONS = ("Who are you?", "Who made you?", "你是谁？", "What can you do?", "Tell me a story about a fox.")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]},
    },
}
RECOVERY_SECONDS = 300


@pytest.fixture(scope="module")
def served(quickstart: Path, vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(quickstart, log=tmp_path_factory.mktemp("log") / "serve.log", python=vllm_python) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(client: openai.OpenAI, question: str, **options: Any) -> Any:
    fields = {"model": client.models.list().data[0].id, "temperature": 0, "max_tokens": 48, **options}
    return client.chat.completions.create(messages=[{"role": "user", "content": question}], **fields)


def streamed(client: openai.OpenAI, question: str, **options: Any) -> tuple[str, str | None]:
    text, reason = "", None
    for chunk in ask(client, question, stream=True, **options):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


def test_greedy_answers_are_those_of_transformers(client, quickstart):
    folder = quickstart / "merged"
    tokenizer = load_tokenizer(folder)
    template = load_template(folder, tokenizer.named)
    assert template is not None
    spec = EngineSpec(
        engine="transformers", weights=str(folder), adapters={}, tokenizer=str(folder), context_tokens=None, stop=(),
        threads=1,
    )  # fmt: skip
    with LocalEngine(spec) as engine:
        for question in QUESTIONS:
            prompt = template.render([{"role": "user", "content": question}], generation_prompt=True)
            asked = Generate(
                id=0, adapter=None, prompt=prompt, plain=False, max_new_tokens=48, temperature=0, top_p=1, top_k=0,
                seed=0, stop=(),
            )  # fmt: skip
            said = list(engine.answer(asked))
            reply = ask(client, question)
            assert reply.choices[0].message.content == "".join(item.text for item in said if isinstance(item, Text))
            assert reply.usage.completion_tokens == said[-1].completion_tokens
            assert reply.usage.prompt_tokens == len(tokenizer.backend.encode(prompt, add_special_tokens=False).ids)


def test_a_stream_says_what_the_whole_answer_says(client):
    for question in QUESTIONS:
        choice = ask(client, question).choices[0]
        assert streamed(client, question) == (choice.message.content, choice.finish_reason)


def test_a_stop_text_ends_the_answer(client):
    text = ask(client, QUESTIONS[0]).choices[0].message.content
    stop = text[5:8]
    choice = ask(client, QUESTIONS[0], stop=[stop, *"ÄÖÜ§"]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (text[: text.index(stop)], "stop")
    assert streamed(client, QUESTIONS[0], stop=stop) == (text[: text.index(stop)], "stop")


def test_a_seed_decides_the_answer(client):
    first = [ask(client, QUESTIONS[4], temperature=1.5, seed=seed).choices[0].message.content for seed in (1, 2, 1)]
    assert first[0] == first[2] != first[1]


def test_several_answers_and_probabilities(client):
    reply = ask(client, QUESTIONS[0], n=3, temperature=1.2, seed=1, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    for choice in reply.choices:
        told = choice.logprobs.content
        # Bytes that are no character are told as they are, and have a sign of their own in the text.
        said = b"".join(bytes(item.bytes) for item in told).decode(errors="replace")
        assert said == choice.message.content
        assert all(len(item.top_logprobs) == 2 and item.logprob <= 0 for item in told)


def test_json_follows_a_schema(client):
    schema = {
        "type": "object", "properties": {"name": {"enum": ["fox", "dog"]}}, "required": ["name"],
        "additionalProperties": False,
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}}
    choice = ask(client, QUESTIONS[4], response_format=form).choices[0]
    assert choice.finish_reason == "stop"
    assert json.loads(choice.message.content)["name"] in ("fox", "dog")


def test_tools_are_rendered_and_their_calls_parsed(client):
    bare = ask(client, QUESTIONS[0], max_tokens=4).usage.prompt_tokens
    assert ask(client, QUESTIONS[0], max_tokens=4, tools=[TOOL]).usage.prompt_tokens > bare
    choice = ask(client, QUESTIONS[0], tools=[TOOL], tool_choice="required", max_tokens=100).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


def test_mistakes_are_told(client):
    with pytest.raises(openai.NotFoundError):
        ask(client, "fox", model="nobody")
    with pytest.raises(openai.BadRequestError, match="context"):
        ask(client, "fox " * 3000)
    with pytest.raises(openai.BadRequestError):
        ask(client, "fox", temperature=7)
    assert ask(client, QUESTIONS[0]).choices[0].message.content


@pytest.mark.parametrize("width", [2, 8, 32])
def test_streams_at_the_same_time_say_what_they_say_alone(served, client, width):
    questions = [f"{QUESTIONS[index % len(QUESTIONS)]}" for index in range(width)]
    alone = {question: streamed(client, question) for question in set(questions)}
    client = client.with_options(max_retries=8)
    with ThreadPoolExecutor(width) as pool:
        together = list(pool.map(lambda question: streamed(client, question), questions))
    assert together == [alone[question] for question in questions]


def test_an_adapter_is_served_on_its_base_beside_it(quickstart, vllm_python, client, tmp_path):
    names = "--names", "tuned,base"
    base = json.loads((quickstart / "model.json").read_text())["folder"]
    with serving(quickstart / "adapter", base, *names, log=tmp_path / "log", python=vllm_python) as found:
        other = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0, timeout=120)
        assert [model.id for model in other.models.list().data] == ["tuned", "base"]
        merged = [ask(client, question).choices[0].message.content for question in QUESTIONS[:3]]
        tuned = [ask(other, question, model="tuned").choices[0].message.content for question in QUESTIONS[:3]]
        plain = [ask(other, question, model="base").choices[0].message.content for question in QUESTIONS[:3]]
    assert tuned == merged
    assert plain != merged


def test_the_serving_gate_passes_and_a_planted_template_fails_it(quickstart, vllm_python, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(Path("src").absolute()), str(Path.cwd()))))
    folder = quickstart / "merged"
    tokenizer = load_tokenizer(folder)
    trained = Trained(tokenizer, load_template(folder, tokenizer.named), ("Who are you?",))
    gate = serving_gate("vllm", quickstart, trained, vllm_python)
    assert gate.verdict == "pass", gate.reason
    assert gate.measured["texts"] >= 50
    other = Path(shutil.copytree(quickstart, tmp_path / "run"))
    template = other / "merged" / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("assistant", "helper"), encoding="utf-8")
    gate = serving_gate("vllm", other, trained, vllm_python)
    assert gate.verdict == "fail"
    assert "chat template" in gate.reason


def test_a_server_that_is_killed_comes_back(served, client):
    done = subprocess.run(["ps", "-eww", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if "vllm.entrypoints" in line and "leash" not in line)
    os.kill(int(line.split()[0]), signal.SIGKILL)
    end, codes = time.monotonic() + RECOVERY_SECONDS, set()
    while time.monotonic() < end:
        try:
            assert ask(client, QUESTIONS[0]).choices[0].message.content
            break
        except openai.APIStatusError as error:
            codes.add(error.status_code)
            time.sleep(1)
    else:
        pytest.fail(f"it did not come back: {served.log.read_text()[-2000:]}")
    assert codes <= {500, 503}
