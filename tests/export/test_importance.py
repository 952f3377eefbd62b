"""Importance matrices: measured as they should be, and used as llama.cpp uses them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.export.compare import differing_fields, differing_tensors, read_fields
from tests.export.conftest import export, open_model
from tests.export.families import build_family
from tests.export.models import build_model
from tests.tiny import random_samples, write_store
from tunerun import artifacts
from tunerun.base_model import BaseModel, write_base
from tunerun.config.checks import MEASURED_TYPES
from tunerun.config.schema import GgufConfig
from tunerun.errors import StageError, UserError
from tunerun.export import stage
from tunerun.export.importance import read_importance
from tunerun.export.mix import FILE_TYPES
from tunerun.export.write import write_gguf
from tunerun.plan.steps import ExportStep

llama_cpp = pytest.importorskip("llama_cpp")

TYPES = [*MEASURED_TYPES, "q4_0", "q4_1", "q4_k_m", "q3_k_m", "q2_k", "iq4_nl", "iq4_xs", "iq3_s", "iq3_m"]


class _Entry(ctypes.Structure):
    """`llama_model_imatrix_data` of llama.h."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


def quantise(source: Path, file_type: str, importance: dict[str, Any]) -> Path:
    target = source.with_name(f"upstream-{file_type}.gguf")
    entries = (_Entry * (len(importance) + 1))(
        *(_Entry(name.encode(), values.ctypes.data, values.size) for name, values in importance.items()),
        _Entry(None, None, 0),
    )
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[file_type].number, 2
    parameters.imatrix = ctypes.cast(entries, type(parameters.imatrix))
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert code == 0
    return target


def check_types(folder: Path, out: Path, types: list[str]) -> None:
    model = open_model(folder)
    generator = np.random.default_rng(0)
    importance = {
        name: generator.gamma(0.5, 1.0, source.shape[1]).astype(np.float32)
        for name, source in model.sources.items()
        if name.startswith("blk.") and len(source.shape) == 2
    }
    out.mkdir()
    paths = write_gguf(model, ["f32", *types, "q6_k"], out, threads=2, importance=importance)
    for name in types:
        theirs = quantise(paths["f32"], name, importance)
        assert not differing_tensors(paths[name], theirs), name
        assert not differing_fields(read_fields(paths[name]), read_fields(theirs)), name
    # More bits need no matrix, and get none.
    assert paths["q6_k"].read_bytes() == export(folder, out / "plain", ["q6_k"])["q6_k"].read_bytes()


def test_weighed_types_have_the_bytes_of_llama_quantize(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    build_model(tmp_path / "model", num_hidden_layers=1, intermediate_size=256, vocab_size=416)
    check_types(tmp_path / "model", tmp_path / "out", ["q4_k_m", "iq4_xs", "q2_k_s"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"num_hidden_layers": 9, "num_key_value_heads": 4, "tie_word_embeddings": False},
        {"num_hidden_layers": 9, "num_key_value_heads": 1},
        {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 288},
    ],
)
def test_every_weighed_type_has_the_bytes_of_llama_quantize(shape: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    build_model(tmp_path / "model", **shape)
    check_types(tmp_path / "model", tmp_path / "out", TYPES)


def start_run(tmp_path: Path) -> Path:
    base, run = tmp_path / "base", tmp_path / "run"
    build_family(base, "llama3")
    write_base(run, BaseModel(folder=base, path=str(base), revision=None, sha256="0" * 64))
    rows = [[sample] for sample in random_samples(6)]
    write_store(run / artifacts.DATA, rows)
    return run


@pytest.mark.slow
def test_the_matrix_is_the_mean_square_of_what_goes_in(tmp_path: Path) -> None:
    run = start_run(tmp_path)
    model = open_model(tmp_path / "base")
    found = read_importance(model, tmp_path / "base", None, run, most_tokens=1000)
    names = {name for name, source in model.sources.items() if name.startswith("blk.") and len(source.shape) == 2}
    assert found.keys() == names
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    seen: list[Any] = []
    reference.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for tokens, _ in random_samples(6):
            reference(torch.tensor([list(tokens)]))
    expected = torch.cat(seen).double().square().mean(0).numpy()
    assert np.allclose(found["blk.1.ffn_down.weight"], expected, rtol=1e-4)


def step(**gguf: Any) -> ExportStep:
    return ExportStep(name="demo", merged=False, gguf=GgufConfig(**gguf), chat_template=None)


def test_two_bits_are_written_from_training_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run(tmp_path)
    # A file of the user's with a library's name is no library.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("raise SystemExit('not this one')")
    stage.run(step(types=("q2_k_s", "q4_0"), imatrix=True), run)
    weighed = run / "export" / "demo-q4_0.gguf"
    plain = export(tmp_path / "base", tmp_path / "plain", ["q4_0"])["q4_0"]
    assert "blk.1.ffn_down.weight" in differing_tensors(weighed, plain)
    loaded = llama_cpp.Llama(str(run / "export" / "demo-q2_k_s.gguf"), n_ctx=64, n_threads=2, verbose=False)
    assert loaded("How many", max_tokens=2)["usage"]["completion_tokens"] > 0
    loaded.close()


def test_a_run_without_data_is_named(tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    build_family(base, "llama3")
    write_base(run, BaseModel(folder=base, path=str(base), revision=None, sha256="0" * 64))
    with pytest.raises(UserError, match=r"export\.gguf\.imatrix: there are no data"):
        stage.run(step(types=("q4_0",), imatrix=True), run)


@pytest.mark.slow
def test_a_model_that_cannot_be_run_is_a_message(tmp_path: Path) -> None:
    run = start_run(tmp_path)
    model = open_model(tmp_path / "base")
    with pytest.raises(StageError, match="could not be measured"):
        read_importance(model, tmp_path / "nowhere", None, run, most_tokens=10)
