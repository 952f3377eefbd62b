from __future__ import annotations

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serve.conftest import NAME, end, start
from tunerun.config.schema import ServeConfig
from tunerun.plan.placement import Placement
from tunerun.serve.fleet import build_fleet
from tunerun.serve.gateway import build_app
from tunerun.serve.targets import resolve_target

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


def test_the_servers_limits_hold(run_dir):
    served = start(run_dir, engine="llamacpp", max_concurrent=2, max_n=3, max_prompt_tokens=64, max_body_bytes=4096)
    try:

        def status(_: int, **fields) -> int:
            with served.client() as client:
                return client.post("/v1/chat/completions", json={**GREEDY, "max_tokens": 400, **fields}).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(status, range(8)))
        assert set(statuses) == {200, 429}
        assert status(0) == 200
        assert [status(0, n=n, max_tokens=4) for n in (2, 3, 4)] == [200, 429, 400]
        with served.client() as client:
            for prompt in ("fox " * 100, [5] * 100):
                reply = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 4})
                assert (reply.status_code, reply.json()["error"]["code"]) == (400, "prompt_too_long")
            assert client.post("/v1/completions", json={"prompt": "x" * 5000}).status_code == 413
    finally:
        end(served)


def test_only_listed_origins_may_ask_from_a_browser(run_dir):
    serve = ServeConfig(cors_origins=("https://chat.example",))
    app = build_app(build_fleet([resolve_target(run_dir)], serve, Placement()), serve, key="secret")
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}

    async def replies(origin: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return [
                await client.options("/v1/chat/completions", headers={"origin": origin, **asks}),
                await client.get("/v1/models", headers={"origin": origin, "authorization": "Bearer secret"}),
            ]

    asked, listed = asyncio.run(replies("https://chat.example"))
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://chat.example")
    assert (listed.status_code, listed.headers["access-control-allow-origin"]) == (200, "https://chat.example")
    asked, listed = asyncio.run(replies("https://evil.example"))
    assert (asked.status_code, listed.status_code) == (400, 403)
    assert "access-control-allow-origin" not in {**asked.headers, **listed.headers}


def test_prometheus_is_told_what_was_measured(fast):
    with fast.client() as client:
        text = client.get("/metrics").text
        before = {line.partition(" ")[0]: float(line.rpartition(" ")[2])
                  for line in text.splitlines() if not line.startswith("#")}  # fmt: skip
        reply = ask(client, max_tokens=5, n=2)
        client.get("/nowhere")
        after = client.get("/metrics")
    assert after.headers["content-type"].startswith("text/plain; version=0.0.4")

    def grown(name: str) -> float:
        (line,) = [line for line in after.text.splitlines() if line.startswith(f"{name} ")]
        return float(line.rpartition(" ")[2]) - before.get(name, 0)

    model = f'{{model="{NAME}"}}'
    assert grown('tunerun_requests_total{path="/v1/chat/completions",status="200"}') == 1
    assert grown('tunerun_requests_total{path="other",status="404"}') == 1
    assert grown(f"tunerun_prompt_tokens_total{model}") == reply["usage"]["prompt_tokens"]
    assert grown(f"tunerun_completion_tokens_total{model}") == reply["usage"]["completion_tokens"] == 10
    assert grown(f"tunerun_time_to_first_token_seconds_count{model}") == 1
    assert grown(f"tunerun_time_per_token_seconds_count{model}") == 2
    assert f"tunerun_engine_up{model} 1.0" in after.text
    assert f"tunerun_engine_restarts_total{model} 0.0" in after.text
    assert f"tunerun_open_replies{model} 0.0" in after.text


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
            ("GET", "/index.html"),
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
