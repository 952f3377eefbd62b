"""GGUF files and ggml's encodings, against the gguf package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tunerun.errors import StageError
from tunerun.formats.ggml import encode
from tunerun.formats.ggml_types import TYPES
from tunerun.formats.gguf import GgufFile, GgufTensor

gguf = pytest.importorskip("gguf")

VALUES = np.random.default_rng(0).standard_normal((37, 256)).astype(np.float32)


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES.keys())
def test_types_have_the_sizes_of_the_gguf_package(kind) -> None:
    number = gguf.GGMLQuantizationType[kind.name]
    assert (number.value, gguf.GGML_QUANT_SIZES[number]) == (kind.number, (kind.block_values, kind.block_bytes))


def test_a_file_is_read_back_by_the_gguf_package(tmp_path: Path) -> None:
    tensors = [
        GgufTensor(name="first", shape=(37, 256), type=TYPES["BF16"]),
        GgufTensor(name="second", shape=(3,), type=TYPES["F32"]),
        GgufTensor(name="third", shape=(37, 256), type=TYPES["F16"]),
    ]
    header = gguf.GGUFWriter(None, "qwen2")
    header.add_name("x")
    with GgufFile(tmp_path / "x.gguf", header, tensors) as file:
        file.write_rows("third", 0, encode(VALUES, TYPES["F16"]))
        file.write_rows("first", 20, encode(VALUES[20:], TYPES["BF16"]))
        file.write_rows("first", 0, encode(VALUES[:20], TYPES["BF16"]))
        file.write_rows("second", 0, encode(VALUES[:1, :3].copy(), TYPES["F32"]))
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert (read["third"].data == VALUES.astype(np.float16)).all()
    assert (read["second"].data == VALUES[0, :3]).all()
    expected = gguf.quantize(VALUES, gguf.GGMLQuantizationType.BF16)
    assert (read["first"].data == expected).all()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_rows_have_the_bytes_of_the_gguf_package(name: str) -> None:
    pytest.importorskip("llama_cpp")
    found = encode(VALUES, TYPES[name])
    assert (found == gguf.quantize(VALUES, gguf.GGMLQuantizationType[name])).all()


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_come_back_near(name: str) -> None:
    pytest.importorskip("llama_cpp")
    found = encode(VALUES, TYPES[name])
    back = gguf.dequantize(found, gguf.GGMLQuantizationType[name])
    error = float(np.sqrt(np.mean((back - VALUES) ** 2)))
    assert error < {"Q2_K": 0.4, "Q3_K": 0.2, "Q4_K": 0.1, "Q5_K": 0.05, "Q6_K": 0.03}[name]


@pytest.mark.parametrize(("name", "value"), [("F16", 7e4), ("BF16", 3.4e38), ("Q8_0", 1e9), ("Q4_K", 1e9)])
def test_values_that_overflow_the_type_are_refused(name: str, value: float) -> None:
    pytest.importorskip("llama_cpp")
    large = VALUES.copy()
    large[20, 3] = value
    with pytest.raises(StageError, match=f"too large for {name}"):
        encode(large, TYPES[name])
