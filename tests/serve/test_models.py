"""Several models behind one address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.conftest import Served, end, serve

QUESTION = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 16}


@pytest.fixture(scope="module")
def both(run_dir: Path) -> Iterator[Served]:
    """The run by llama.cpp, and its merged folder by transformers."""
    found = serve(run_dir, run_dir / "merged", "--names", "file,folder")
    yield found
    end(found)


def test_every_model_is_listed_and_answers_by_its_name(both):
    with both.client() as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["file", "folder"]
        replies = {name: client.post("/v1/chat/completions", json={**QUESTION, "model": name}).json()
                   for name in ("file", "folder")}  # fmt: skip
    assert {name: reply["model"] for name, reply in replies.items()} == {"file": "file", "folder": "folder"}
    texts = {reply["choices"][0]["message"]["content"].rstrip("\ufffd") for reply in replies.values()}
    assert len(texts) == 1
    assert len(both.engine_pids()) == 2


def test_a_request_without_a_name_goes_to_the_first(both):
    with both.client() as client:
        assert client.post("/v1/chat/completions", json=QUESTION).json()["model"] == "file"


def test_one_model_is_shown_and_others_are_not_found(both):
    with both.client() as client:
        assert client.get("/v1/models/folder").json()["id"] == "folder"
        for path in ("/v1/models/other", "/v1/models/..%2Ffile", "/v1/models/file/"):
            reply = client.get(path)
            assert (reply.status_code, reply.json()["error"]["type"]) == (404, "invalid_request_error")
        reply = client.post("/v1/chat/completions", json={**QUESTION, "model": "../folder"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
        assert "file, folder" in reply.json()["error"]["message"]
