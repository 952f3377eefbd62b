"""Several models behind one address."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import Served, end, serve
from tunerun import artifacts
from tunerun.base_model import read_base, write_base

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


@pytest.fixture
def trained(run_dir: Path, tmp_path: Path) -> Path:
    """A run with adapters of two checkpoints, which change every answer, and nothing merged."""
    import torch

    from tunerun.config.schema import MethodConfig
    from tunerun.models import adapters, load

    run = tmp_path / "trained"
    write_base(run, read_base(run_dir))
    artifacts.write_json(run / artifacts.PLAN, {"schema": 1, "name": "bird", "steps": []})
    for step in (1, 2):
        model = load.load_model(run_dir / "merged", dtype=torch.float32, device="cpu")
        adapted = adapters.add_adapter(model, MethodConfig(rank=4, alpha=8.0), seed=step)
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(0, 0.05)
        adapters.save_adapter(adapted, run / "checkpoints" / f"step-{step}" / "adapter", base_name="tiny")
    shutil.copytree(run / "checkpoints" / "step-2" / "adapter", run / artifacts.ADAPTER)
    return run


def test_a_run_is_served_with_its_checkpoints_by_one_process(trained, both):
    served = serve(trained, "--checkpoints")
    try:
        with served.client() as client:
            names = [model["id"] for model in client.get("/v1/models").json()["data"]]
            assert names == ["bird", "bird-base", "bird-step-1", "bird-step-2"]
            texts = {name: text(client, name) for name in [*names, *reversed(names)]}
        assert len(served.engine_pids()) == 1
    finally:
        end(served)
    assert texts["bird"] == texts["bird-step-2"]
    assert len(set(texts.values())) == 3
    with both.client() as client:
        assert text(client, "folder") == texts["bird-base"]


def text(client: httpx.Client, model: str) -> str:
    reply = client.post("/v1/chat/completions", json={**QUESTION, "model": model}).json()
    return str(reply["choices"][0]["message"]["content"])
