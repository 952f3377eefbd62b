"""The real llama-server as an engine."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serve.local import loaded
from tests.serve.test_engines import SCHEMAS, adapters, question
from tests.verify.test_llama_server import built_server
from tunerun.errors import StageError
from tunerun.serve.local import LocalEngine, PromptRefused
from tunerun.serve.protocol import EngineName, EngineSpec, Finish, Generate, Text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

__all__ = ["adapters"]
WAIT_SECONDS = 10
Spec = Callable[..., EngineSpec]


@pytest.fixture(scope="module")
def spec(run_dir: Path) -> Iterator[Spec]:
    program = shutil.which("llama-server") or built_server()
    (gguf,) = (run_dir / "export").glob("*.gguf")

    def make(engine: EngineName = "llama_server", **fields: Any) -> EngineSpec:
        common = {"adapters": {}, "tokenizer": None, "context_tokens": None, "stop": ("<|im_end|>",), "threads": 1}
        return EngineSpec(engine=engine, weights=str(gguf), **common | fields)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(program).parent}:{os.environ['PATH']}")
        yield make


@pytest.fixture(scope="module")
def engine(spec: Spec) -> Iterator[LocalEngine]:
    with loaded(spec()) as found:
        yield found


def answer(engine: LocalEngine, request: Generate) -> tuple[str, Finish]:
    *texts, end = engine.answer(request)
    assert isinstance(end, Finish)
    return "".join(message.text for message in texts if isinstance(message, Text)), end


def server_pids(engine: LocalEngine) -> list[int]:
    """The processes below an engine process: what holds the server, and the server."""
    found, pids = [], [engine._process.pid]
    while pids:
        done = subprocess.run(["ps", "-o", "pid=", "--ppid", ",".join(map(str, pids))], capture_output=True, text=True)
        pids = [int(line) for line in done.stdout.split()]
        found += pids
    return found


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_it_answers_as_llama_cpp_does_in_this_process(spec, engine):
    texts = ("fox", "Who are you?", "你是谁？", "lazy dog")
    with loaded(spec("llamacpp")) as other:
        assert dataclasses.replace(engine.ready, abilities=()) == dataclasses.replace(other.ready, abilities=())
        for text in texts:
            for request in (question(text), question(text, max_new_tokens=3), question(text, stop=("a", "e"))):
                (found, ended), (wanted, end) = answer(engine, request), answer(other, request)
                assert found.rstrip("\ufffd") == wanted.rstrip("\ufffd")
                assert (ended.reason, ended.completion_tokens) == (end.reason, end.completion_tokens)


def test_it_takes_the_model_folders_tokenizer_when_there_is_one(spec, run_dir, tmp_path):
    with loaded(spec(tokenizer=str(run_dir / "merged"))) as found:
        assert answer(found, question("fox"))[1].completion_tokens > 0
    shutil.copytree(run_dir / "merged", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["merges"] = data["model"]["merges"][:-20]
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(StageError, match="of a text"), loaded(spec(tokenizer=str(tmp_path / "other"))):
        pass


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_follows_a_json_schema(engine, name):
    schema, fits = SCHEMAS[name]
    text, end = answer(engine, question("fox", json_schema=schema, max_new_tokens=100, temperature=1))
    assert end.reason == "stop"
    assert fits(json.loads(text))


def test_a_schema_that_cannot_be_followed_ends_its_own_answer_only(engine):
    for schema in ({"type": "fox"}, {"type": "array", "items": {}, "minItems": 10**9}):
        assert answer(engine, question("fox", json_schema=schema))[1].reason == "error"
    assert answer(engine, question("fox"))[1].reason in ("stop", "length")


def test_each_adapter_answers_by_its_name(spec, adapters):
    paths = {name: f"{folder}.gguf" for name, folder in adapters.items()}
    texts = ("fox", "Who are you?", "lazy dog", "one", "two")
    asked = [question(text, adapter=name, max_new_tokens=2) for name in (*paths, None) for text in texts]
    found = []
    for engine_name in ("llama_server", "llamacpp"):
        with loaded(spec(engine_name, adapters=paths)) as engine:
            found.append([answer(engine, request)[0] for request in asked])
    # llama-server keeps bytes that are no character to itself.
    pairs = [pair for pair in zip(*found, strict=True) if "\ufffd" not in pair[1]]
    assert len(pairs) > len(asked) / 3
    assert all(theirs == ours for theirs, ours in pairs)
    assert len(set(found[1])) > len(paths)


def test_a_prompt_that_is_too_long_is_refused(engine):
    with pytest.raises(PromptRefused, match="context holds"):
        answer(engine, question("fox " * 2000))


def test_an_answer_given_up_leaves_the_server_free(engine):
    for _ in range(20):
        pieces = engine.answer(question("fox", max_new_tokens=400))
        next(pieces)
        pieces.close()
    started = time.monotonic()
    answer(engine, question("dog", max_new_tokens=2))
    assert time.monotonic() - started < WAIT_SECONDS


def test_the_end_of_the_server_ends_the_engine_and_the_other_way_round(spec):
    engine = LocalEngine(spec())
    assert engine.ready
    server = server_pids(engine)[-1]
    pieces = engine.answer(question("fox", max_new_tokens=400))
    next(pieces)
    os.kill(server, signal.SIGKILL)
    with pytest.raises(StageError, match="the engine ended"):
        while True:
            list(pieces)
            list(engine.answer(question("fox")))
    engine._process.close()

    with loaded(spec()) as engine:
        below = server_pids(engine)
        os.kill(engine._process.pid, signal.SIGKILL)
        assert wait_for(lambda: all(gone(pid) for pid in below))


def test_nobody_without_the_key_is_answered(engine):
    import httpx

    pid = server_pids(engine)[-1]
    line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    port = int(line[line.index(b"--port") + 1])
    assert not any(b"key" in word for word in line)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert client.post("/completion", json={"prompt": "fox"}).status_code == 401


@pytest.mark.parametrize("streams", [2, 8, 32])
def test_concurrent_answers_are_complete(engine, streams):
    asked = [question(f"{number}: Who are you?") for number in range(streams)]
    with ThreadPoolExecutor(streams) as pool:
        heard = list(pool.map(lambda request: answer(engine, request), asked))
    assert all(text and end.reason in ("stop", "length") for text, end in heard)
