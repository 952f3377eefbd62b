"""The run is served as a user serves it, and what arrives there is compared with training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.tiny import CHATML
from tests.verify.runs import export, read_gates, verify_step
from tunerun import artifacts
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.errors import GateError
from tunerun.models.folder import set_chat_template
from tunerun.verify.gates import Gate
from tunerun.verify.serving import Trained, serving_gate
from tunerun.verify.stage import run

# With a place for tools.
WITH_TOOLS = "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}" + CHATML
START = "<|endoftext|>"


@pytest.fixture
def served(out: Path) -> Path:
    """A run that can be served from an f16 GGUF file or merged/."""
    pytest.importorskip("llama_cpp")
    for folder in (out / "base", out / artifacts.MERGED):
        set_chat_template(folder, WITH_TOOLS)
    artifacts.write_json(out / artifacts.PLAN, {"schema": 1, "name": "tiny", "steps": []})
    export(out, ("f16",))
    return out


def trained(out: Path, *, chat: bool = True) -> Trained:
    tokenizer = load_tokenizer(out / "base")
    template = load_template(out / "base", tokenizer.named) if chat else None
    return Trained(tokenizer, template, ("Who are you?", "What is one plus one?"))


def gate(out: Path, engine: str = "llamacpp") -> Gate:
    return serving_gate(engine, out, trained(out), None)


def exchange_two_tokens(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["e"], vocabulary["o"] = vocabulary["o"], vocabulary["e"]
    file.write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.from_file(str(file)).encode("e").ids != Tokenizer.from_file(str(file)).encode("o").ids


def test_the_tokens_of_training_arrive_and_the_stage_reports_it(served: Path) -> None:
    found = gate(served)
    assert found.verdict == "pass", found.reason
    assert found.measured["texts"] >= 50
    assert found.measured["answers"] == 3


def test_a_wrong_tokenizer_in_the_served_folder_fails_the_run(served: Path) -> None:
    exchange_two_tokens(served / artifacts.MERGED)
    with pytest.raises(GateError, match="serving:llamacpp"):
        run(verify_step(engines=("llamacpp",)), served)
    found = read_gates(served)["serving:llamacpp"]
    assert "where training has" in found["reason"]
    assert found["measured"]["different_texts"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["llamacpp", "transformers"])
def test_a_doubled_start_token_fails(served: Path, engine: str) -> None:
    set_chat_template(served / artifacts.MERGED, START + WITH_TOOLS)
    export(served, ("f16",))
    found = gate(served, engine)
    assert found.verdict == "fail"
    assert "at token 0" in found.reason


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["llamacpp", "transformers"])
def test_another_template_than_was_exported_fails(served: Path, engine: str) -> None:
    if engine == "llamacpp":
        facts = served / artifacts.EXPORT / "serve.json"
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "template_sha256": "0" * 64}))
    else:
        set_chat_template(served / artifacts.MERGED, WITH_TOOLS.replace("assistant", "helper"))
    found = gate(served, engine)
    assert found.verdict == "fail"
    assert "chat template" in found.reason


@pytest.mark.slow
def test_a_conversation_that_only_one_side_refuses_fails(served: Path) -> None:
    refuses = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + CHATML
    set_chat_template(served / "base", refuses)
    found = gate(served)
    assert found.verdict == "fail"
    assert "is accepted where training does not" in found.reason


@pytest.mark.slow
def test_plain_texts_are_compared_without_a_template(served: Path) -> None:
    found = serving_gate("transformers", served, trained(served, chat=False), None)
    assert found.verdict == "pass", found.reason
    assert found.measured["texts"] >= 4


@pytest.mark.parametrize("python", ["/nowhere/python", sys.executable])
def test_an_engine_that_is_not_installed_proves_nothing(out: Path, python: str) -> None:
    found = serving_gate("vllm", out, trained(out), python)
    assert found.verdict == "not_proved"
    assert python in found.reason


def test_the_run_is_served_with_the_keys_it_will_be_served_with(served: Path) -> None:
    found = serving_gate("llamacpp", served, trained(served), None, ("serve.context=12",))
    # Tokens are compared all the same; nothing with an answer fits such a context.
    assert found.verdict == "pass", found.reason
    assert found.measured["texts"] >= 50
    assert found.measured["answers"] == 0
    unknown = serving_gate("llamacpp", served, trained(served), None, ("serve.gpus=2",))
    assert unknown.verdict == "fail"
    assert "serve.gpus" in unknown.reason
