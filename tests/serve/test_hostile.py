"""A hundred and fifty hostile requests: each is the client's mistake, and the next request is answered."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serve.conftest import NAME, Served, end, start

CHAT, PLAIN, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
USER = {"role": "user", "content": "x"}
GOOD = {"model": NAME, "messages": [USER], "temperature": 0, "max_tokens": 4}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
MORE_MEMORY = 200 << 20


@pytest.fixture(scope="module")
def target(run_dir: Path) -> Iterator[Served]:
    found = start(run_dir, engine="llamacpp", api_key_env="KEY", environment={"KEY": "secret"})
    yield found
    end(found)


@pytest.fixture(scope="module")
def memory(target: Served) -> Iterator[None]:
    """Checks at the end that the gateway did not grow."""
    before = resident(target.process.pid)
    yield
    assert resident(target.process.pid) - before < MORE_MEMORY


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError(pid)


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return (opening * depth + closing * depth).encode()


def chat(**fields: Any) -> tuple[str, bytes]:
    return CHAT, json.dumps({**GOOD, **fields}).encode()


def plain(**fields: Any) -> tuple[str, bytes]:
    return PLAIN, json.dumps({"model": NAME, "prompt": "x", "max_tokens": 4, **fields}).encode()


def tokenize(**fields: Any) -> tuple[str, bytes]:
    return TOKENIZE, json.dumps(fields).encode()


def said(content: Any, **fields: Any) -> tuple[str, bytes]:
    return chat(messages=[{"role": "user", "content": content, **fields}])


BAD_BODIES: list[tuple[str, bytes]] = [
    *((path, body) for path in (CHAT, PLAIN, TOKENIZE) for body in (
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe{}", b"{} {}", nested(200_000), nested(50_000, '{"a":', "}"),
        b'{"a": ' + b"9" * 5000 + b"}",
    )),
    *(chat(n=value) for value in (0, -1, 10**6, 1.5, "2", True, [1])),
    *(chat(max_tokens=value) for value in (-1, 0, 10**9, 1 << 70, 0.5, "4")),
    *(chat(max_completion_tokens=value) for value in (-1, 10**9)),
    *((CHAT, json.dumps({**GOOD, "temperature": 7}).replace("7", value).encode())
      for value in ("NaN", "Infinity", "-Infinity", "1e999", "-1", "2.1", '"0"', "true")),
    *(chat(top_p=value) for value in (-0.1, 1.1, "1")),
    *(chat(top_k=value) for value in (-1, 1 << 40, 1.5)),
    *(chat(seed=value) for value in (1 << 64, 0.5, "1")),
    *(chat(stop=value) for value in (["x"] * 10_000, "", ["x", ""], 3, ["x" * 100_000], [None], {"a": 1})),
    *(chat(stream=value) for value in ("yes", 1)),
    *(chat(logprobs=value) for value in (3, "yes")),
    *(chat(logprobs=True, top_logprobs=value) for value in (-1, 10**6)),
    *(chat(model=value) for value in (3, ["parrot"])),
    *(chat(response_format=value) for value in ("json", {"type": "regex"}, {"type": "json_schema"})),
    chat(response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "http://localhost:1/x"}}}),
    chat(response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}}),
    *(chat(tools=value) for value in ("look", [3], [{}], [{"type": "function", "function": {"name": ""}}])),
    chat(tool_choice="required"), chat(tools=[TOOL], tool_choice="any"),
    chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "other"}}),
    *(chat(**{field: value}) for field, value in (
        ("chat_template", "{{ 7 * 7 }}"), ("chat_template_kwargs", {"x": 1}), ("lora", "../../adapter"),
        ("lora_path", "/etc"), ("base_url", "http://localhost:1"), ("grammar", 'root ::= "x"'), ("documents", []),
        ("guided_regex", "(a+)+$"), ("__class__", "x"), ("extra_body", {}),
        ("\ud800".encode("utf-8", "replace").decode(), 1),
    )),
    *(chat(messages=value) for value in ([], "x", {}, ["x"], [None], [{}], [{"role": "root", "content": "x"}])),
    *(said(value) for value in (3, [3], [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
                                [{"type": "text"}], {"text": "x"}, "\ud800", "fox " * 20_000)),
    said("x", template="{{ 7 * 7 }}"),
    chat(messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]),
    *(plain(prompt=value) for value in (None, "", [], [-1], [10**12], [1, "x"], [[1], [2]], "fox " * 100_000,
                                        list(range(5000)), [1] * 1_000_000)),
    *(plain(**{field: value}) for field, value in (("echo", True), ("suffix", "x"), ("best_of", 9), ("logprobs", 99),
                                                   ("n", 10**6), ("messages", []))),
    *(tokenize(**fields) for fields in ({}, {"prompt": 3}, {"prompt": "x", "messages": [USER]}, {"messages": []},
                                        {"prompt": "x" * (2 << 20)}, {"prompt": "x", "tools": [TOOL]})),
]  # fmt: skip


def post(client: httpx.Client, path: str, body: bytes, **headers: str) -> httpx.Response:
    return client.post(path, content=body, headers={"content-type": "application/json", **headers})


def check_alive(client: httpx.Client) -> None:
    reply = post(client, *chat())
    assert reply.status_code == 200, reply.text


def keyed(target: Served) -> httpx.Client:
    return target.client(headers={"authorization": "Bearer secret"})


def test_every_bad_body_is_refused(target, memory):
    assert len(BAD_BODIES) >= 120
    with keyed(target) as client:
        for path, body in BAD_BODIES:
            began = time.monotonic()
            reply = post(client, path, body)
            assert 400 <= reply.status_code < 500, (path, body[:200], reply.text)
            assert reply.json()["error"]["message"], (path, body[:200])
            assert time.monotonic() - began < 5, (path, body[:200])
            check_alive(client)


def test_a_body_of_ten_megabytes_is_refused(target, memory):
    with keyed(target) as client:
        for body in (b" " * (10 << 20), b'{"messages": "' + b"x" * (10 << 20) + b'"}'):
            for path in (CHAT, PLAIN, TOKENIZE):
                assert post(client, path, body).status_code == 413
        check_alive(client)


def test_a_body_without_end_is_cut_off(target, memory):
    with keyed(target) as client:

        def chunks() -> Iterator[bytes]:
            for _ in range(2000):
                yield b" " * (1 << 20)

        try:
            reply = client.post(CHAT, content=chunks(), headers={"content-type": "application/json"})
            assert reply.status_code == 413
        except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
            # The server closes the connection while the client still sends.
            pass
        check_alive(client)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (401, {"authorization": ""}),
        (401, {"authorization": "Bearer"}),
        (401, {"authorization": "Bearer secre"}),
        (401, {"authorization": "Bearer SECRET"}),
        (401, {"authorization": "bearer secret"}),
        (401, {"authorization": "Basic c2VjcmV0"}),
        (401, {"authorization": "Bearer secret, Bearer secret"}),
        (403, {"origin": "https://evil.example"}),
        (403, {"origin": "null"}),
        (415, {"content-type": "text/plain"}),
        (415, {"content-type": "application/x-www-form-urlencoded"}),
        (415, {"content-type": "multipart/form-data; boundary=x"}),
        (415, {"content-type": ""}),
    ],
)
def test_bad_headers_are_refused(target, memory, status, headers):
    with keyed(target) as client:
        assert post(client, *chat(), **headers).status_code == status
        check_alive(client)


@pytest.mark.parametrize(
    "path",
    ["/v1/models/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00", "/v1//models", "/v1/models/",
     "/v1/models/parrot%2fadapter", "/../etc/passwd", "//evil.example/v1/models", "/v1/embeddings",
     "/v1/load_lora_adapter",
     "/v1/unload_lora_adapter", "/docs", "/static/../gateway.py", "/%2e%2e/%2e%2e/etc/passwd", "/tokenize/"],
)  # fmt: skip
def test_paths_that_are_not_listed_are_not_found(target, memory, path):
    with keyed(target) as client:
        for method in ("GET", "POST"):
            request = client.build_request(method, path)
            # As it is written, without the client's own tidying.
            request.url = request.url.copy_with(raw_path=path.encode())
            reply = client.send(request)
            assert reply.status_code in (404, 405), reply.text
        check_alive(client)


RAW = {
    "no http": b"hello\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "length and chunks": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "a bad chunk": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    "a folded header": b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: a\r\n b\rc\r\n\r\n",
    "a header without a name": b"GET /v1/models HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    "a header split by a line end": b"GET /v1/models HTTP/1.1\r\nHost: a\nX-Injected: 1\r\n bad name: x\r\n\r\n",
    "a nul in the path": b"GET /v1/mo\x00dels HTTP/1.1\r\nHost: a\r\n\r\n",
    "a long head": b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
    "a long path": b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "an upgrade": b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
}


def answer_to(target: Served, sent: bytes, seconds: float = 15) -> bytes:
    address = urlsplit(target.url)
    with socket.create_connection((address.hostname, address.port), timeout=seconds) as connection:
        try:
            connection.sendall(sent)
            received = b""
            while b"\r\n\r\n" not in received:
                piece = connection.recv(1 << 16)
                if not piece:
                    break
                received += piece
        except ConnectionError:
            return b""
    return received


@pytest.mark.parametrize("name", RAW)
def test_what_is_no_proper_http_is_refused(target, memory, name):
    received = answer_to(target, RAW[name])
    # A connection may be closed without an answer: what came was no request.
    assert not received or received.startswith(b"HTTP/1.1 4"), received[:200]
    with keyed(target) as client:
        check_alive(client)


def test_connections_that_say_nothing_or_little_are_closed(target, memory):
    """Slow-loris: heads that never end, a byte at a time, while others are served."""
    address = urlsplit(target.url)
    slow = [socket.create_connection((address.hostname, address.port)) for _ in range(50)]
    try:
        began = time.monotonic()
        for connection in slow[:25]:
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: ")
        with keyed(target) as client:
            check_alive(client)
            for connection in slow:
                connection.settimeout(20)
                assert connection.recv(1024) == b"", "closed without an answer: there was no request"
            assert time.monotonic() - began < 20
            check_alive(client)
    finally:
        for connection in slow:
            connection.close()


def test_another_host_is_refused_where_no_key_is_asked_for(fast):
    with fast.client() as client:
        for host in ("evil.example", "", "localhost.evil.example", "127.0.0.1.evil.example", "localhost@evil.example"):
            assert post(client, *chat(), host=host).status_code in (400, 403)
        check_alive(client)
