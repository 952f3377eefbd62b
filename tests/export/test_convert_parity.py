"""Our files against llama.cpp's own converter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.export import upstream
from tests.export.compare import differing_fields, differing_tensors, read_fields
from tests.export.conftest import export
from tests.export.models import build_model, edit_json

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow

# We call the model by the run's name, and say outright what the converter leaves to llama.cpp's defaults.
MAY_DIFFER = {"general.name", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"}


def check(model: Path, out: Path, source: Path, file_type: str) -> None:
    ours = export(model, out, [file_type])[file_type]
    theirs = out / f"upstream-{file_type}.gguf"
    upstream.convert(source, model, theirs, file_type)
    assert not differing_tensors(ours, theirs)
    our_fields, their_fields = read_fields(ours), read_fields(theirs)
    assert differing_fields(our_fields, their_fields) <= MAY_DIFFER
    for key in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"):
        assert their_fields.get(key, (False,))[0] == our_fields[key][0]


@pytest.mark.parametrize("file_type", ["f32", "f16", "bf16", "q8_0"])
def test_a_tied_bfloat16_model_is_converted_alike(tiny: Path, tmp_path: Path, source: Path, file_type: str) -> None:
    check(tiny, tmp_path, source, file_type)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_untied_model_with_advice_is_converted_alike(tmp_path: Path, source: Path, dtype: torch.dtype) -> None:
    model = tmp_path / "model"
    model.mkdir()
    build_model(model, dtype=dtype, tie_word_embeddings=False, hidden_size=96, intermediate_size=80)
    edit_json(model / "generation_config.json", temperature=0.7, top_p=0.8, top_k=20, do_sample=True)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 5e4}
    edit_json(model / "config.json", rope_parameters=yarn)
    for file_type in ("f16", "bf16", "q8_0"):
        check(model, tmp_path / file_type, source, file_type)


@pytest.mark.shared
def test_the_real_qwen_tokenizer_is_converted_alike(tmp_path: Path, source: Path, shared_dir: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    build_model(
        model, vocab_size=151936, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(shared_dir / "tokenizers" / "qwen2.5" / name, model / name)
    check(model, tmp_path / "out", source, "f16")
