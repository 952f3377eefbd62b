"""The merge gate knows what a qlora adapter was merged into."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from tests.tiny import random_samples, tiny_qwen2
from tests.train.runs import make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import MethodConfig
from tunerun.merge.merge import merge_adapter
from tunerun.plan.steps import Quantisation, quantisation_of
from tunerun.train import stage as train_stage
from tunerun.verify.logits import merge_gate

TEXTS = [tokens for tokens, _ in random_samples(6, seed=9, longest=40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_that_was_quantised_is_compared_with_a_base_that_was(
    tmp_path: Path, bits: Literal[4, 8], dtype: torch.dtype
) -> None:
    base, adapter, method = tmp_path / "base", tmp_path / artifacts.ADAPTER, MethodConfig(kind="qlora", bits=bits)
    tiny_qwen2(base, hidden_size=128, dtype=str(dtype).removeprefix("torch."))
    train_stage.run(train_step(method), make_run(tmp_path))
    ways: dict[str, Quantisation | None] = {"dequantised": quantisation_of(method), "full_precision": None}
    for name, quantisation in ways.items():
        merge_adapter(base, adapter, tmp_path / name, max_shard_size_bytes=1 << 30, quantisation=quantisation)
        gate = merge_gate(base, adapter, tmp_path / name, TEXTS, "cpu", quantisation)
        assert gate.verdict == "pass", gate
    crossed = merge_gate(base, adapter, tmp_path / "full_precision", TEXTS, "cpu", ways["dequantised"])
    assert crossed.verdict == "fail"
