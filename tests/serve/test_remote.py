"""Engines that are servers of their own, against small servers that speak their interfaces."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.conftest import ROOT
from tests.serve.conftest import WITH_TOOLS, end
from tests.serve.conftest import serve as start_serve
from tests.serve.local import loaded
from tests.tiny import tiny_qwen2
from tunerun.commands import serve
from tunerun.errors import StageError, UserError
from tunerun.serve.local import LocalEngine, PromptRefused
from tunerun.serve.protocol import EngineName, EngineSpec, Finish, Generate, ServerSettings, Text

WAIT_SECONDS = 10
LORA = {"peft_type": "LORA", "r": 12, "target_modules": ["q_proj"]}
ASKED = Generate(
    id=-1, adapter=None, prompt="<|im_start|>user\nfox<|im_end|>\n", plain=False, max_new_tokens=400, temperature=0,
    top_p=1, top_k=0, seed=3, stop=(),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2(tmp_path_factory.mktemp("models") / "parrot", template=WITH_TOOLS)


@pytest.fixture(scope="module")
def gguf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    from tunerun.base_model import BaseModel, write_base
    from tunerun.config.schema import GgufConfig
    from tunerun.export.stage import run
    from tunerun.plan.steps import ExportStep

    out = tmp_path_factory.mktemp("exported")
    write_base(out, BaseModel(folder=folder, path=str(folder), revision=None, sha256="0"))
    run(ExportStep(name="parrot", merged=False, gguf=GgufConfig(types=("f32",)), chat_template=None), out)
    return out / "export" / "parrot-f32.gguf"


class StandIn:
    """A folder with programs that behave as servers."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.log = folder / "log.jsonl"
        self.folder = folder
        for name in ("python", "ollama"):
            program = folder / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/serve/stand_in.py "$@"\n')
            program.chmod(0o755)

    def events(self, key: str) -> list[dict[str, Any]]:
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [event for line in lines if key in (event := json.loads(line))]

    def last_body(self) -> dict[str, Any]:
        body: dict[str, Any] = self.events("body")[-1]["body"]
        return body


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[StandIn]:
    found = StandIn(tmp_path_factory.mktemp("programs") / "bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAND_IN_LOG", str(found.log))
        patch.setenv("STAND_IN_TOKENIZER", str(folder / "tokenizer.json"))
        patch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
        yield found


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("adapter")
    (found / "adapter_config.json").write_text(json.dumps(LORA))
    return found


Spec = Callable[..., EngineSpec]


@pytest.fixture(scope="module")
def spec(stand_in: StandIn, folder: Path, request: pytest.FixtureRequest) -> Spec:
    def make(engine: EngineName, **values: Any) -> EngineSpec:
        weights = request.getfixturevalue("gguf") if engine == "ollama" else folder
        settings = {"python": str(stand_in.folder / "python"), "chat_template": WITH_TOOLS}
        fields = {"adapters": {}, "context_tokens": None, "stop": (), "threads": 1, **values}
        server = ServerSettings(**settings | fields.pop("server", {}))
        return EngineSpec(engine=engine, weights=str(weights), tokenizer=str(folder), server=server, **fields)

    return make


@pytest.fixture(scope="module", params=["vllm", "lmdeploy", "ollama"])
def engine(request: pytest.FixtureRequest, spec: Spec) -> Iterator[LocalEngine]:
    with loaded(spec(request.param)) as found:
        yield found


@pytest.fixture(scope="module")
def vllm(spec: Spec, adapter: Path) -> Iterator[LocalEngine]:
    extra = {"max_num_seqs": 4}
    with loaded(spec("vllm", adapters={"tuned": str(adapter)}, server={"extra_args": extra})) as found:
        yield found


def answer(engine: LocalEngine, **changes: Any) -> tuple[str, Finish, list[Any]]:
    texts, scores, end = [], [], None
    for message in engine.answer(dataclasses.replace(ASKED, **changes)):
        if isinstance(message, Text):
            texts.append(message.text)
            scores += message.scores
        else:
            end = message
    assert end is not None
    return "".join(texts), end, scores


def prompt_tokens(folder: Path) -> int:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return len(tokenizer.encode(ASKED.prompt, add_special_tokens=False).ids)


def counting(first: int, last: int) -> str:
    return "".join(f" {number}" for number in range(first, last))


def test_an_answer_is_streamed_up_to_its_end_token(engine, folder):
    first = prompt_tokens(folder)
    text, end, _ = answer(engine)
    assert (text, end.reason) == (counting(first, first + 40), "stop")
    assert end.completion_tokens > 0


def test_a_stop_text_ends_the_answer_and_the_connection(engine, folder, stand_in):
    first, before = prompt_tokens(folder), len(stand_in.events("given_up"))
    text, end, _ = answer(engine, stop=(f"{first + 3}", "never"))
    assert (text, end.reason) == (counting(first, first + 3) + " ", "stop")
    until(lambda: len(stand_in.events("given_up")) > before)


def test_an_answer_that_nobody_waits_for_is_given_up(engine, stand_in):
    before = len(stand_in.events("given_up"))
    going = engine.answer(ASKED)
    next(going)
    going.close()
    until(lambda: len(stand_in.events("given_up")) > before)
    assert answer(engine)[1].reason == "stop"


def test_what_does_not_fit_is_refused_without_asking(engine, stand_in):
    before = len(stand_in.events("body"))
    for changes in ({"prompt": "fox " * 600}, {"max_new_tokens": 600}, {"prompt": (1, 4000)}, {"prompt": ""}):
        with pytest.raises(PromptRefused):
            answer(engine, **changes)
    assert len(stand_in.events("body")) == before


def test_tokens_in_are_the_tokens_of_the_models_own_tokenizer(vllm, folder, stand_in):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    answer(vllm)
    assert stand_in.last_body()["prompt"] == tokenizer.encode(ASKED.prompt, add_special_tokens=False).ids
    answer(vllm, prompt=(5, 6, 7))
    assert stand_in.last_body()["prompt"] == [5, 6, 7]


def test_vllm_samples_as_the_request_says(vllm, stand_in):
    answer(vllm, max_new_tokens=4)
    body = stand_in.last_body()
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 4, "parrot")
    assert "seed" not in body
    answer(vllm, max_new_tokens=4, temperature=0.5, top_p=0.9, top_k=7, adapter="tuned")
    body = stand_in.last_body()
    assert [body[key] for key in ("temperature", "top_p", "top_k", "seed", "model")] == [0.5, 0.9, 7, 3, "tuned"]


def test_the_length_limit_is_told(vllm):
    _, end, _ = answer(vllm, max_new_tokens=4)
    assert (end.reason, end.completion_tokens) == ("length", 4)


def test_vllm_tells_so_many_likely_tokens_as_asked_for(vllm, folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text, end, scores = answer(vllm, max_new_tokens=6, logprobs=2)
    assert "".join(score["token"] for score in scores) == text
    assert len(scores) == end.completion_tokens == 6
    assert bytes(scores[0]["bytes"]).decode() == scores[0]["token"]
    assert scores[0]["logprob"] == -2.0
    assert [(item["token"], item["logprob"]) for item in scores[0]["top_logprobs"]] == [
        (tokenizer.decode([5], skip_special_tokens=False), -0.5),
        (tokenizer.decode([6], skip_special_tokens=False), -1.0),
    ]
    assert answer(vllm, max_new_tokens=2, logprobs=0)[2][0]["top_logprobs"] == []


def test_vllm_is_told_the_json_schema(vllm, stand_in):
    answer(vllm, max_new_tokens=2, json_schema={"type": "object"})
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    assert stand_in.last_body()["response_format"] == wanted
    answer(vllm, max_new_tokens=2, json_schema={})
    assert stand_in.last_body()["response_format"] == {"type": "json_object"}


def test_what_vllm_refuses_is_told_in_its_own_words(vllm):
    _, end, _ = answer(vllm, json_schema={"type": "bad"})
    assert end.reason == "error"
    assert "Grammar error" in end.message


def test_vllm_is_started_with_what_the_model_needs(vllm, stand_in, adapter):
    start = next(event for event in stand_in.events("started") if "--enable-lora" in event.get("line", ""))
    line = start["line"]

    def after(flag: str) -> str:
        found: str = line[line.index(flag) + 1]
        return found

    assert after("--served-model-name") == "parrot"
    assert after("--max-lora-rank") == "16"
    assert json.loads(after("--lora-modules")) == {"name": "tuned", "path": str(adapter)}
    assert after("--max-num-seqs") == "4"
    assert after("--dtype") == "float32"
    assert "--chat-template" not in line
    assert start["key"] not in line
    assert stand_in.events("body")[-1]["key"].startswith("Bearer ")


def test_the_server_shares_the_session_but_gets_no_ctrl_c(vllm, stand_in):
    # Linux shares the cores among sessions, and a server keeps all it gets.
    started = stand_in.events("started")[-1]
    assert started["session"] == os.getsid(0)
    assert started["group"] not in (os.getpgrp(), os.getpgid(vllm._process.pid))


def test_lmdeploy_is_asked_with_its_key_on_a_port_of_its_own(spec, stand_in):
    with loaded(spec("lmdeploy", context_tokens=256, server={"processes": 2})) as engine:
        answer(engine, max_new_tokens=3, temperature=0.7)
    line = stand_in.events("line")[-1]["line"]
    assert line[line.index("--server-name") + 1] == "127.0.0.1"
    assert line[line.index("--session-len") + 1] == "256"
    assert line[line.index("--tp") + 1] == "2"
    assert stand_in.last_body()["temperature"] == 0.7


def test_a_seed_that_lmdeploy_cannot_be_told_is_refused(folder, stand_in):
    python = f"env.serve.python={stand_in.folder / 'python'}"
    served = start_serve(folder, "serve.engine=lmdeploy", python)
    asked = {"prompt": "fox", "max_tokens": 3, "seed": 3}
    try:
        with served.client() as client:
            refused = client.post("/v1/completions", json=asked)
            # Where the likeliest token is taken, a seed decides nothing.
            greedy = client.post("/v1/completions", json={**asked, "temperature": 0})
            free = client.post("/v1/completions", json={**asked, "seed": None})
    finally:
        end(served)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported", "seed")
    assert "lmdeploy" in error["message"]
    assert greedy.status_code == free.status_code == 200


def test_ollama_gets_the_file_and_the_rendered_text(spec, stand_in, gguf):
    with loaded(spec("ollama", stop=("<|im_end|>",), server={"extra_args": {"num_gpu": 0}})) as engine:
        answer(engine, max_new_tokens=30, stop=("zz",), json_schema={"type": "object"})
        body = stand_in.last_body()
        answer(engine, json_schema={})
        # Told as llama.cpp tells it, and rendered by the gateway.
        assert engine.ready.chat_template == WITH_TOOLS
    created = stand_in.events("created")[-1]
    assert created["modelfile"] == f"FROM {gguf}\n"
    assert body["model"] == created["created"] == "tunerun-parrot-f32"
    assert (body["prompt"], body["raw"]) == (ASKED.prompt, True)
    options = body["options"]
    assert (options["num_gpu"], options["num_predict"], options["stop"]) == (0, 30, ["zz", "<|im_end|>"])
    assert body["format"] == {"type": "object"}
    assert stand_in.last_body()["format"] == "json"


@pytest.mark.parametrize(
    ("engine", "fault", "told"),
    [
        ("vllm", "context", "context of 511 tokens instead of 512"),
        ("vllm", "tokens", "tokenizer"),
        ("vllm", "template", "another chat template"),
        ("ollama", "tokens", "tokens of a text"),
    ],
)
def test_a_server_that_says_other_things_of_the_model_is_not_used(spec, monkeypatch, engine, fault, told):
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    with pytest.raises(StageError, match=told), loaded(spec(engine)):
        pass


def test_another_template_than_the_folders_is_given_to_vllm(spec, stand_in):
    with loaded(spec("vllm", server={"chat_template": "{{ messages }}", "tool_parser": "hermes"})):
        line = stand_in.events("line")[-1]["line"]
        assert Path(line[line.index("--chat-template") + 1]).read_text() == "{{ messages }}"
    assert line[line.index("--tool-call-parser") + 1] == "hermes"


@pytest.mark.parametrize("key", ["use_dora", "modules_to_save"])
def test_an_adapter_that_vllm_cannot_use_is_refused_before_it_starts(spec, tmp_path, key):
    (tmp_path / "adapter_config.json").write_text(json.dumps({**LORA, key: ["embed_tokens"]}))
    with pytest.raises(StageError, match=key), loaded(spec("vllm", adapters={"tuned": str(tmp_path)})):
        pass


def test_a_server_that_cannot_start_is_told_of(spec):
    with (
        pytest.raises(StageError, match="exit code 2"),
        loaded(spec("vllm", server={"extra_args": {"no_such_flag": 1}})),
    ):
        pass


def test_what_is_not_installed_is_told_before_anything_starts(folder, tmp_path):
    for python, told in ((tmp_path / "python", "no interpreter"), (sys.executable, "pip install")):
        with pytest.raises(UserError, match=told):
            serve.main([str(folder), "serve.engine=vllm", f"env.serve.python={python}"])


def test_the_engine_ends_with_its_server(spec, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "dies")
    with loaded(spec("vllm")) as engine, pytest.raises(StageError, match="engine ended"):
        for _ in range(3):
            answer(engine)
            time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGKILL, None])
def test_no_server_and_no_folder_outlive_the_engine(spec, stand_in, number):
    engine = LocalEngine(spec("vllm"))
    assert engine.ready
    line = stand_in.events("line")[-1]["line"]
    socket = Path(line[line.index("--uds") + 1])
    assert running(str(socket)) and socket.exists()
    if number is not None:
        os.kill(engine._process.pid, number)
    engine.__exit__(None, None, None)
    until(lambda: not running(str(socket)) and not socket.parent.exists())


def running(word: str) -> bool:
    done = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True)
    return any(word in line for line in done.stdout.splitlines())


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
