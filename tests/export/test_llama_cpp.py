"""The files in llama.cpp: same tokens, same answers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from tests.export.conftest import export
from tests.export.models import TEMPLATE
from tunerun.chat.tokenizer import load_tokenizer

llama_cpp = pytest.importorskip("llama_cpp")

PROMPT = "How many apples are 3 and 4? 你好"
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def loaded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    paths = export(tiny, tmp_path_factory.mktemp("files"), ["f16"])
    model = llama_cpp.Llama(str(paths["f16"]), n_ctx=256, n_threads=2, logits_all=True, verbose=False)
    yield model
    model.close()


def test_greedy_answers_are_those_of_transformers(loaded: Any, tiny: Path) -> None:
    ids = load_tokenizer(tiny).backend.encode(PROMPT).ids
    prompt = len(ids)
    loaded.reset()
    loaded.eval(ids)
    for _ in range(NEW_TOKENS):
        ids.append(int(np.argmax(loaded.scores[len(ids) - 1])))
        loaded.eval(ids[-1:])
    found = np.array(loaded.scores[prompt - 1 : len(ids) - 1])
    reference = Qwen2ForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0, prompt - 1 : -1].numpy()
    # bfloat16 weights are exact in float16 unless tiny; what is left is rounding inside llama.cpp.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    for mine, theirs in zip(found, expected, strict=True):
        second, best = np.sort(theirs)[-2:]
        assert mine.argmax() == theirs.argmax() or math.isclose(best, second, rel_tol=1e-2)


@pytest.mark.parametrize(
    "text",
    [PROMPT, "<|im_start|>user\nhi<|im_end|>\n", "<tool_call>x", "  two  spaces\n\n\ttab 1234", "naïve 🦙 c'est"],
)
def test_texts_have_the_same_tokens(loaded: Any, tiny: Path, text: str) -> None:
    expected = load_tokenizer(tiny).backend.encode(text).ids
    assert loaded.tokenize(text.encode(), add_bos=False, special=True) == expected


def test_nothing_is_put_before_a_prompt(loaded: Any, tiny: Path) -> None:
    assert loaded.tokenize(b"hi", add_bos=True, special=True) == load_tokenizer(tiny).backend.encode("hi").ids


def test_the_template_is_embedded_as_it_is(loaded: Any) -> None:
    assert loaded.metadata["tokenizer.chat_template"] == TEMPLATE


@pytest.mark.shared
def test_the_real_qwen_tokenizer_keeps_its_vectors(shared_dir: Path, tiny: Path, tmp_path: Path) -> None:
    """Upstream's own probe texts and ids, through a file of ours."""
    from tests.export.models import build_model

    model = tmp_path / "model"
    model.mkdir()
    build_model(
        model, vocab_size=151936, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    qwen = shared_dir / "tokenizers" / "qwen2.5"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(qwen / name, model / name)
    paths = export(model, tmp_path / "out", ["q8_0"])
    loaded = llama_cpp.Llama(str(paths["q8_0"]), vocab_only=True, verbose=False)
    texts = (qwen / "vectors.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (qwen / "vectors.out").read_text(encoding="utf-8").split("\n")
    checked = 0
    for text, line in zip(texts, lines, strict=False):
        assert loaded.tokenize(text.encode(), add_bos=False, special=False) == [int(token) for token in line.split()]
        checked += 1
    assert checked >= 46
    loaded.close()
