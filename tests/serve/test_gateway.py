from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serve.conftest import NAME, end, start

QUESTION = [{"role": "user", "content": "Who are you?"}]
GREEDY = {"model": NAME, "messages": QUESTION, "temperature": 0, "max_tokens": 40}
QUESTIONS = [
    "Who are you?",
    "What is one plus one?",
    "你是谁？",
    "fox",
    "lazy dog",
    "system",
    "It is two.",
    "你好，世界。",
]


def ask(client: httpx.Client, **changes) -> dict:
    reply = client.post("/v1/chat/completions", json={**GREEDY, **changes})
    assert reply.status_code == 200, reply.text
    return reply.json()


def text_of(reply: dict) -> str:
    return reply["choices"][0]["message"]["content"]


def events(client: httpx.Client, path: str = "/v1/chat/completions", **body) -> list[dict | str]:
    with client.stream("POST", path, json={**body, "stream": True}) as reply:
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        found = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    return [item if item == "[DONE]" else json.loads(item) for item in found]


def streamed(client: httpx.Client, **changes) -> tuple[str, str]:
    *chunks, done = events(client, **{**GREEDY, **changes})
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    return "".join(choice["delta"].get("content", "") for choice in choices), choices[-1]["finish_reason"]


def test_the_model_is_listed(served):
    with served.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["id"], model["object"]) == (NAME, "model")
        assert client.get("/health").json() == {"status": "ok"}


def test_an_answer_is_what_the_training_side_computes(served, run_dir):
    import torch

    from tunerun.chat.template import load_template
    from tunerun.chat.tokenizer import load_tokenizer
    from tunerun.models import generate, load
    from tunerun.models.stops import stop_token_ids

    folder = run_dir / "merged"
    tokenizer = load_tokenizer(folder)
    prompt = load_template(folder, tokenizer.named).render(QUESTION, generation_prompt=True)
    ids = tokenizer.backend.encode(prompt, add_special_tokens=False).ids
    model = load.load_model(folder, dtype=torch.float32, device="cpu")
    stops = stop_token_ids(folder, tokenizer)
    tokens = list(generate.stream(model, ids, max_new_tokens=24, stop_token_ids=stops))
    with served.client() as client:
        reply = ask(client, max_tokens=24)
    assert text_of(reply).rstrip("\ufffd") == tokenizer.backend.decode(tokens).rstrip("\ufffd")
    assert reply["usage"] == {
        "prompt_tokens": len(ids),
        "completion_tokens": len(tokens),
        "total_tokens": len(ids) + len(tokens),
    }


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_stream_says_what_the_whole_answer_says(served, question):
    with served.client() as client:
        whole = ask(client, messages=[{"role": "user", "content": question}])
        assert streamed(client, messages=[{"role": "user", "content": question}]) == (
            text_of(whole),
            whole["choices"][0]["finish_reason"],
        )


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_stop_text_ends_the_answer_wherever_tokens_end(served, width):
    with served.client() as client:
        text = text_of(ask(client))
        for start_at in range(2, len(text) - width, 5):
            stop = text[start_at : start_at + width]
            expected = text[: text.index(stop)]
            reply = ask(client, stop=[stop, "never said"])
            assert (text_of(reply), reply["choices"][0]["finish_reason"]) == (expected, "stop")
            assert streamed(client, stop=stop) == (expected, "stop")


def test_the_length_limit_is_told(served):
    with served.client() as client:
        reply = ask(client, max_tokens=None, max_completion_tokens=3)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 3


def test_a_seed_repeats_an_answer_and_others_differ(served):
    with served.client() as client:
        warm = {"temperature": 1.5, "top_p": 0.95, "max_tokens": 20}
        texts = [text_of(ask(client, seed=seed, **warm)) for seed in (1, 1, 2, 3)]
        assert texts[0] == texts[1]
        assert len(set(texts)) > 1
        assert len({text_of(ask(client, **warm)) for _ in range(4)}) > 1


def test_top_k_of_one_is_greedy(served):
    with served.client() as client:
        assert text_of(ask(client, temperature=1.5, top_k=1)) == text_of(ask(client))
        assert text_of(ask(client, temperature=1.5, top_p=0)) == text_of(ask(client))
        assert text_of(ask(client, temperature=1e-300)) == text_of(ask(client))


def test_usage_comes_last_when_asked_for(served):
    with served.client() as client:
        *_, usage, done = events(client, **GREEDY, stream_options={"include_usage": True})
        assert done == "[DONE]"
        assert usage["choices"] == []
        assert usage["usage"] == ask(client)["usage"]


def test_a_long_beginning_that_is_kept_changes_no_answer(fast):
    beginning = {"role": "system", "content": "The quick brown fox jumps over the lazy dog. " * 10}
    with fast.client() as client:

        def after(previous: list[dict]) -> str:
            ask(client, messages=previous, max_tokens=5)
            return text_of(ask(client, messages=[beginning, *QUESTION], max_tokens=24))

        others = [[beginning, {"role": "user", "content": text}] for text in ("Who", "Who are you? x", "你")]
        assert ask(client, messages=others[0], max_tokens=1)["usage"]["prompt_tokens"] > 256
        assert {after(previous) for previous in [*others, [beginning, *QUESTION]]} == {after(QUESTION)}


def test_tools_are_rendered_into_the_prompt(served):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "fox"}'}}
    with served.client() as client:
        without = ask(client, tools=[tool], tool_choice="none")["usage"]["prompt_tokens"]
        reply = ask(client, tools=[tool])
        assert without == ask(client)["usage"]["prompt_tokens"]
        assert reply["usage"]["prompt_tokens"] > without + 20
        assert "tool_calls" not in reply["choices"][0]["message"]
        ask(client, messages=[*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]},
                              {"role": "tool", "tool_call_id": "1", "content": "a fox"}])  # fmt: skip


def test_text_parts_are_one_text(served):
    parts = [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you?"}]
    with served.client() as client:
        assert text_of(ask(client, messages=[{"role": "user", "content": parts}])) == text_of(ask(client))


def test_plain_completions_continue_text_and_token_ids(served, run_dir):
    from tunerun.chat.tokenizer import load_tokenizer

    ids = load_tokenizer(run_dir / "merged").backend.encode("The quick brown").ids
    with served.client() as client:
        body = {"model": NAME, "prompt": "The quick brown", "temperature": 0}
        reply = client.post("/v1/completions", json=body).json()
        assert reply["object"] == "text_completion"
        assert reply["usage"]["prompt_tokens"] == len(ids)
        assert reply["usage"]["completion_tokens"] == 16
        text = reply["choices"][0]["text"]
        assert client.post("/v1/completions", json={**body, "prompt": ids}).json()["choices"][0]["text"] == text
        *chunks, done = events(client, "/v1/completions", **body)
        assert ("".join(chunk["choices"][0]["text"] for chunk in chunks), done) == (text, "[DONE]")


def test_the_tokens_of_a_prompt_are_told(served, run_dir):
    from tunerun.chat.template import load_template
    from tunerun.chat.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(run_dir / "merged")
    template = load_template(run_dir / "merged", tokenizer.named)
    tool = {"type": "function", "function": {"name": "look"}}
    with served.client() as client:

        def tokens(**body) -> list[int]:
            reply = client.post("/tokenize", json=body).json()
            assert (reply["count"], reply["max_model_len"]) == (len(reply["tokens"]), 512)
            return reply["tokens"]

        for text in ("fox", "你好 <|im_end|> x", ""):
            assert tokens(prompt=text) == tokenizer.backend.encode(text).ids
        for tools, opened in ((None, True), ([tool], False)):
            text = template.render(QUESTION, tools, generation_prompt=opened)
            expected = tokenizer.backend.encode(text, add_special_tokens=False).ids
            assert tokens(messages=QUESTION, tools=tools, add_generation_prompt=opened) == expected
        assert client.post("/tokenize", json={"prompt": "x" * (2 << 20)}).json()["error"]["code"] == "prompt_too_long"
        assert client.post("/tokenize", json={"prompt": "x", "model": "other"}).status_code == 404


@pytest.mark.parametrize("width", [2, 8])
def test_concurrent_streams_are_complete_and_as_when_alone(served, width):
    def stream(question: str) -> tuple[str, str]:
        with served.client() as client:
            return streamed(client, messages=[{"role": "user", "content": question}], max_tokens=64)

    questions = QUESTIONS[:width]
    alone = [stream(question) for question in questions]
    with ThreadPoolExecutor(width) as pool:
        together = list(pool.map(stream, questions))
    assert together == alone
    assert all(reason in ("stop", "length") for _, reason in together)


def test_more_requests_than_allowed_are_told_to_come_back(run_dir):
    served = start(run_dir, engine="llamacpp", max_concurrent=2)
    try:

        def status(_: int) -> int:
            with served.client() as client:
                return client.post("/v1/chat/completions", json={**GREEDY, "max_tokens": 400}).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(status, range(8)))
        assert set(statuses) == {200, 429}
        assert status(0) == 200
    finally:
        end(served)


def test_a_client_that_goes_away_frees_its_place(run_dir):
    served = start(run_dir, engine="llamacpp", max_concurrent=1)
    try:
        with served.client() as client:
            for stream in (True, False):
                body = json.dumps({**GREEDY, "max_tokens": 450, "stream": stream}).encode()
                send_and_leave(served.url, body)
                deadline = time.monotonic() + 5
                while client.post("/v1/chat/completions", json={**GREEDY, "max_tokens": 2}).status_code == 429:
                    assert time.monotonic() < deadline
    finally:
        end(served)


def send_and_leave(url: str, body: bytes) -> None:
    address = urlsplit(url)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.02)


def test_a_key_is_asked_for_everywhere_but_for_health(run_dir):
    served = start(run_dir, engine="llamacpp", api_key_env="PARROT_KEY", environment={"PARROT_KEY": "crackers"})
    try:
        with served.client() as client:
            assert client.get("/health").status_code == 200
            for headers in ({}, {"authorization": "Bearer cracker"}, {"authorization": "crackers"}):
                for path in ("/v1/models", "/nowhere"):
                    reply = client.get(path, headers=headers)
                    assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
                assert client.post("/v1/chat/completions", json=GREEDY, headers=headers).status_code == 401
            client.headers["authorization"] = "Bearer crackers"
            assert text_of(ask(client))
            assert client.get("/v1/models", headers={"host": "parrot.example"}).status_code == 200
        assert "crackers" not in served.announced
        assert "PARROT_KEY" in served.announced
    finally:
        end(served)


def test_a_page_that_points_its_own_name_here_is_refused(fast):
    with fast.client() as client:
        for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:80"):
            assert client.get("/v1/models", headers={"host": host}).status_code in (400, 403)
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
            reply = client.get("/v1/models", headers={"host": host, "origin": f"http://{host}"})
            assert reply.status_code == 200
            assert not [name for name in reply.headers if name.startswith("access-control")]
            for origin in ("https://evil.example", "null", f"http://{host}.evil.example", "http://", ""):
                assert client.get("/v1/models", headers={"host": host, "origin": origin}).status_code == 403


def test_the_openai_client_works(fast):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{fast.url}/v1", api_key="none", http_client=httpx.Client(trust_env=False))
    assert [model.id for model in client.models.list()] == [NAME]
    whole = client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, max_tokens=20)
    stream = client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, max_tokens=20, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model=NAME, messages=QUESTION, max_tokens=100_000)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=QUESTION)


def test_nothing_outside_the_listed_paths_is_answered(fast):
    with fast.client() as client:
        for method, path in [
            ("GET", "/"),
            ("GET", "/docs"),
            ("GET", "/v1/chat/completions/"),
            ("GET", "/v1/models/../../etc/passwd"),
            ("GET", "/v1/%2e%2e/secret"),
            ("POST", "/v1/embeddings"),
        ]:
            reply = client.request(method, path)
            assert reply.status_code == 404, path
            assert reply.json()["error"]["type"] == "invalid_request_error"
        assert client.get("/v1/chat/completions").status_code == 405
        assert client.delete(f"/v1/models/{NAME}").status_code == 405
        assert client.post("/v1/models").json()["error"]["message"]


LONG = "fox " * 2000
HOSTILE_BODIES: dict[str, bytes] = {
    "empty": b"",
    "no json": b"{model: x}",
    "half of json": b'{"messages": [',
    "a list": b"[]",
    "latin-1": '{"messages": "\xe9"}'.encode("latin-1"),
    "nan": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "infinity": b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    "nested": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "digits": b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 10_000 + b"}",
    "surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
}
HOSTILE_FIELDS: dict[str, dict] = {
    "many answers": {"n": 1_000_000},
    "true answers": {"n": True},
    "no answers": {"n": 0},
    "negative length": {"max_tokens": -1},
    "length over the context": {"max_tokens": 100_000},
    "huge length": {"max_tokens": 1 << 80},
    "length as a fraction": {"max_tokens": 1.5},
    "hot": {"temperature": 3},
    "cold": {"temperature": -1},
    "temperature as text": {"temperature": "0"},
    "top_p": {"top_p": 1.1},
    "top_k": {"top_k": -1},
    "many stops": {"stop": ["x"] * 10_000},
    "an empty stop": {"stop": ""},
    "a long stop": {"stop": "x" * 100_000},
    "stop as a number": {"stop": 3},
    "seed as text": {"seed": "1"},
    "stream as text": {"stream": "yes"},
    "a template": {"chat_template": "{{ 7 * 7 }}"},
    "template arguments": {"chat_template_kwargs": {"x": 1}},
    "a path": {"lora": "../../adapter"},
    "an address": {"base_url": "http://localhost:1"},
    "log probabilities": {"logprobs": True},
    "a grammar": {"response_format": {"type": "json_object"}},
    "a forced tool": {"tool_choice": "required"},
    "tools as text": {"tools": "look"},
    "a tool without a name": {"tools": [{"type": "function", "function": {}}]},
    "no messages": {"messages": []},
    "messages as text": {"messages": "hello"},
    "a message as text": {"messages": ["hello"]},
    "no role": {"messages": [{"content": "x"}]},
    "a strange role": {"messages": [{"role": "root", "content": "x"}]},
    "a role as a list": {"messages": [{"role": ["user"], "content": "x"}]},
    "no content": {"messages": [{"role": "user"}]},
    "content as a number": {"messages": [{"role": "user", "content": 3}]},
    "an image": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
    "arguments that are no json": {
        "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]
    },
    "a long prompt": {"messages": [{"role": "user", "content": LONG}]},
}


@pytest.mark.parametrize("name", HOSTILE_BODIES)
def test_a_hostile_body_is_the_clients_mistake(fast, name):
    with fast.client() as client:
        reply = client.post(
            "/v1/chat/completions", content=HOSTILE_BODIES[name], headers={"content-type": "application/json"}
        )
        check_refusal(client, reply)


@pytest.mark.parametrize("name", HOSTILE_FIELDS)
def test_a_hostile_field_is_the_clients_mistake(fast, name):
    with fast.client() as client:
        for streaming in (False, True):
            body = {**GREEDY, "stream": streaming, **HOSTILE_FIELDS[name]}
            check_refusal(client, client.post("/v1/chat/completions", json=body))


@pytest.mark.parametrize("prompt", [None, "", [], [[1], [2]], ["a", "b"], [1, "a"], [-1], [10**9], [True], 3, {}])
def test_a_hostile_prompt_is_the_clients_mistake(fast, prompt):
    with fast.client() as client:
        check_refusal(client, client.post("/v1/completions", json={"model": NAME, "prompt": prompt}))


def check_refusal(client: httpx.Client, reply: httpx.Response) -> None:
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert reply.json()["error"]["message"]
    assert text_of(ask(client, max_tokens=2)), "the next request is answered"


def test_hostile_framing_is_refused(fast):
    with fast.client() as client:
        chat = "/v1/chat/completions"
        assert client.post(chat, content=json.dumps(GREEDY), headers={"content-type": "text/plain"}).status_code == 415
        big = client.post(chat, content=b" " * (5 << 20), headers={"content-type": "application/json"})
        assert (big.status_code, big.json()["error"]["type"]) == (413, "invalid_request_error")
        assert client.post(chat, json={**GREEDY, "model": "../other"}).status_code == 404
        assert ask(client)


def test_a_model_without_a_template_says_so(tmp_path):
    from tests.tiny import tiny_qwen2
    from tunerun.base_model import BaseModel, write_base
    from tunerun.config.schema import ServeConfig

    run_dir: Path = tmp_path / NAME
    folder = tiny_qwen2(run_dir / "merged", template=None)
    write_base(run_dir, BaseModel(folder=folder, path=str(folder), revision=None, sha256="0"))
    assert ServeConfig().engine == "auto"
    served = start(run_dir)
    try:
        with served.client() as client:
            reply = client.post("/v1/chat/completions", json=GREEDY)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "no_chat_template")
            assert client.post("/v1/completions", json={"prompt": "fox"}).status_code == 200
    finally:
        end(served)
