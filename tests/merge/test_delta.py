"""The sum of a weight and its update, bit by bit against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tunerun.formats.delta import Delta
from tunerun.formats.floats import STORAGE, from_float32
from tunerun.formats.lora import Update
from tunerun.formats.safetensors import read_header

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def update_of(folder: Path, a: torch.Tensor, b: torch.Tensor, scaling: float) -> Update:
    save_file({"a": a.contiguous(), "b": b.contiguous()}, folder / "factors.safetensors")
    table = read_header(folder / "factors.safetensors")
    return Update(a=table["a"], b=table["b"], scaling=scaling, transposed=False)


@pytest.mark.parametrize("rank", [1, 3, 8, 16, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [257, 512])
def test_any_split_into_rows_gives_the_bits_of_torch(tmp_path: Path, dtype: str, rank: int, columns: int) -> None:
    torch.manual_seed(rank)
    a, b = torch.randn(rank, columns), torch.randn(301, rank) * 0.02
    base = torch.randn(301, columns).mul(0.05).to(DTYPES[dtype])
    expected = base.clone()
    expected += (b @ a) * (16 / rank)
    stored = base.view(torch.int32 if dtype == "F32" else torch.int16).numpy().view(STORAGE[dtype])
    delta = Delta(update_of(tmp_path, a, b, 16 / rank))
    merged = np.concatenate([delta.merge(stored[first : first + 77], dtype, first) for first in range(0, 301, 77)])
    found = torch.from_numpy(merged.view(np.int32 if dtype == "F32" else np.int16)).view(DTYPES[dtype])
    assert torch.equal(found, expected)


def test_an_update_of_nothing_changes_nothing(tmp_path: Path) -> None:
    stored = from_float32(np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32), "BF16")
    delta = Delta(update_of(tmp_path, torch.randn(4, 64), torch.zeros(40, 4), 2.0))
    assert (delta.merge(stored, "BF16", 0) == stored).all()


def test_huge_outliers_do_not_hide_rounding(tmp_path: Path) -> None:
    """One long row widens the bound for its whole block: more is worked out again, nothing is missed."""
    torch.manual_seed(1)
    a, b = torch.randn(16, 512), torch.randn(64, 16) * 0.02
    b[5] *= 1e4
    base = torch.randn(64, 512).mul(0.05).to(torch.bfloat16)
    expected = base.clone()
    expected += (b @ a) * 2.0
    merged = Delta(update_of(tmp_path, a, b, 2.0)).merge(base.view(torch.int16).numpy().view(np.uint16), "BF16", 0)
    assert torch.equal(torch.from_numpy(merged.view(np.int16)).view(torch.bfloat16), expected)
