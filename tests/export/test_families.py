"""Every architecture in llama.cpp: same tokens, same answers, and the bytes of llama.cpp's own converter."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.export import upstream
from tests.export.compare import differing_fields, differing_tensors, read_fields
from tests.export.conftest import export
from tests.export.families import FAMILIES, build_family, build_internlm2, forget_model_file
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.formats.architectures import GGUF_ARCHITECTURES

llama_cpp = pytest.importorskip("llama_cpp")

TEXTS = [
    "How many apples are 3 and 4? They're 7, isn't it?",
    "  two  spaces\n\n\ttab 1234567",
    "naïve 🦙 你好，世界 zq",
    "jumps over<tool_call>the lazy dog",
]
ANSWER = 24
# What llama.cpp does without its context being longer than the model was trained on.
SHORT = {
    "phi3-long": {"original_max_position_embeddings": 300, "max_position_embeddings": 1200, "sliding_window": None}
}
# We call the model by the run's name, and say outright what the converter leaves to llama.cpp's defaults; the end of a
# turn is found in the template, where it has a fixed number for Gemma or none.
MAY_DIFFER = {
    "general.name",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.eot_token_id",
}
PRE_TOKENIZERS = {"llama3": "llama-bpe", "llama-bias": "llama-bpe"}


def open_file(path: Path) -> Any:
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    return llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, logits_all=True, verbose=False, **exact)


def check_answers(loaded: Any, reference: Any, ids: list[int]) -> None:
    """Greedy tokens are those of transformers up to the first near-tie, and so are all logits."""
    prompt = len(ids)
    loaded.reset()
    loaded.eval(ids)
    for _ in range(ANSWER):
        ids.append(int(np.argmax(loaded.scores[len(ids) - 1])))
        loaded.eval(ids[-1:])
    found = np.array(loaded.scores[prompt - 1 : len(ids) - 1])
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0, prompt - 1 : -1].numpy()
    # ggml rounds what goes into its tables of GELU to float16.
    assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()
    leads = np.diff(np.sort(expected)[:, -2:])[:, 0]
    near_tie = leads < 1e-2 * np.abs(expected).max()
    ends = int(near_tie.argmax()) if near_tie.any() else ANSWER
    assert (found.argmax(1)[:ends] == expected.argmax(1)[:ends]).all()


def check_tokens(loaded: Any, folder: Path) -> None:
    backend = load_tokenizer(folder).backend
    for text in TEXTS:
        assert loaded.tokenize(text.encode(), add_bos=True, special=True) == backend.encode(text).ids, text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_answers_as_in_transformers(family: str, tmp_path: Path) -> None:
    build_family(tmp_path / "model", family, **SHORT.get(family, {}))
    path = export(tmp_path / "model", tmp_path / "out", ["f32"])["f32"]
    loaded = open_file(path)
    try:
        check_tokens(loaded, tmp_path / "model")
        reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        check_answers(loaded, reference, load_tokenizer(tmp_path / "model").backend.encode(TEXTS[0]).ids)
    finally:
        loaded.close()


def test_internlm2_answers_as_the_llama_that_it_is(tmp_path: Path) -> None:
    llama = build_internlm2(tmp_path / "model")
    loaded = open_file(export(tmp_path / "model", tmp_path / "out", ["f32"])["f32"])
    try:
        check_answers(loaded, llama, load_tokenizer(tmp_path / "model").backend.encode(TEXTS[0]).ids)
    finally:
        loaded.close()


def test_internlm2_has_the_tensors_of_the_llama_that_it_is(tmp_path: Path) -> None:
    """The fused tensor is taken apart; names and bytes are those of the Llama, which its own test compares."""
    build_internlm2(tmp_path / "fused")
    build_family(tmp_path / "llama", "llama2", dtype=torch.float32)
    files = [export(tmp_path / name, tmp_path / f"{name}-out", ["f32"])["f32"] for name in ("fused", "llama")]
    assert not differing_tensors(*files)


@pytest.mark.parametrize("family", ["llama2", "gemma2", "phi3"])
def test_tokens_are_the_same_without_tokenizer_model(family: str, tmp_path: Path) -> None:
    """llama.cpp's converter gives every token one score here, and with it other tokens."""
    build_family(tmp_path / "model", family)
    forget_model_file(tmp_path / "model")
    loaded = open_file(export(tmp_path / "model", tmp_path / "out", ["f16"])["f16"])
    try:
        check_tokens(loaded, tmp_path / "model")
    finally:
        loaded.close()


def test_every_architecture_has_a_model_here() -> None:
    tested = {name.removesuffix("Text") + "ForCausalLM" for name, _, _ in FAMILIES.values()}
    assert tested | {"InternLM2ForCausalLM"} == set(GGUF_ARCHITECTURES)


def check_parity(folder: Path, source: Path, file_type: str, pre_tokenizer: str) -> None:
    ours = export(folder, folder / "out", [file_type])[file_type]
    theirs = folder / f"upstream-{file_type}.gguf"
    upstream.convert(source, folder, theirs, file_type, pre_tokenizer=pre_tokenizer)
    assert not differing_tensors(ours, theirs)
    assert differing_fields(read_fields(ours), read_fields(theirs)) <= MAY_DIFFER


@pytest.mark.slow
@pytest.mark.parametrize("file_type", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_converted_alike(family: str, file_type: str, tmp_path: Path, source: Path) -> None:
    if importlib.util.find_spec("sentencepiece") is None:
        pytest.skip("llama.cpp's converter needs sentencepiece")
    build_family(tmp_path, family, dtype=torch.float16 if file_type == "q8_0" else torch.bfloat16)
    check_parity(tmp_path, source, file_type, PRE_TOKENIZERS.get(family, "qwen2"))
