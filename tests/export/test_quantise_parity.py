"""Our quantised files against llama.cpp's own quantiser on our float files."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.compare import differing_fields, differing_tensors, read_fields
from tests.export.conftest import export
from tests.export.models import build_model
from tunerun.export.mix import FILE_TYPES
from tunerun.formats.ggml_types import FLOAT_TYPES

llama_cpp = pytest.importorskip("llama_cpp")

QUANTISED = [name for name, kind in FILE_TYPES.items() if kind.base not in FLOAT_TYPES and not kind.needs_importance]


def quantise(source: Path, file_type: str) -> Path:
    target = source.with_name(f"upstream-{file_type}.gguf")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[file_type].number, 2
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert code == 0
    return target


def check_types(folder: Path, out: Path, types: list[str]) -> None:
    paths = export(folder, out, ["f32", *types])
    for name in types:
        theirs = quantise(paths["f32"], name)
        assert not differing_tensors(paths[name], theirs), name
        assert not differing_fields(read_fields(paths[name]), read_fields(theirs)), name


def test_every_type_has_the_bytes_of_llama_quantize(tiny: Path, tmp_path: Path) -> None:
    check_types(tiny, tmp_path, QUANTISED)


SHAPES: dict[str, dict[str, Any]] = {
    # Rows that are no multiple of 256: types with smaller blocks.
    "odd-rows": {"hidden_size": 64, "intermediate_size": 288, "num_hidden_layers": 2},
    # Rows that are no multiple of 32: float16.
    "odder-rows": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_rows_that_do_not_fill_blocks_fall_back_alike(shape: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    build_model(tmp_path / "model", dtype=torch.float32, **shape)
    check_types(tmp_path / "model", tmp_path / "out", QUANTISED)


def test_an_output_head_of_its_own_is_mixed_alike(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    build_model(tmp_path / "model", tie_word_embeddings=False, num_hidden_layers=9, intermediate_size=256)
    check_types(tmp_path / "model", tmp_path / "out", ["q2_k", "q4_k_m", "q5_0"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [{"num_hidden_layers": 17, "num_key_value_heads": 4}, {"num_hidden_layers": 80, "intermediate_size": 256}]
)
def test_many_layers_are_mixed_alike(shape: dict[str, Any], tmp_path: Path) -> None:
    """Enough layers for every case of the rules; 80 are "70B" to llama.cpp."""
    (tmp_path / "model").mkdir()
    build_model(tmp_path / "model", dtype=torch.float32, tie_word_embeddings=False, **shape)
    check_types(tmp_path / "model", tmp_path / "out", QUANTISED)


def test_quantising_the_bfloat16_file_gives_the_same(tiny: Path, tmp_path: Path) -> None:
    paths = export(tiny, tmp_path, ["bf16", "q4_k_m"])
    assert not differing_tensors(paths["q4_k_m"], quantise(paths["bf16"], "q4_k_m"))
