"""Folders in FP8 are compared as servers compute them: weights and inputs rounded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import random_samples, tiny_qwen2
from tunerun.config.schema import BoundConfig
from tunerun.formats.compressed import unpack_fp8
from tunerun.models import load
from tunerun.verify.folders import packed_gate
from tunerun.verify.gates import Reference, compare, logits_of

TEXTS = [list(tokens) for tokens, _ in random_samples(3, seed=5)]
E4M3 = np.unique(unpack_fp8({"weight": np.delete(np.arange(256), [127, 255]), "weight_scale": np.float32(1)}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_qwen2(folder, hidden_size=128)
    return folder


def write_fp8(model: Path, folder: Path) -> None:
    shutil.copytree(model, folder)
    found: dict[str, Tensor] = {}
    for name, value in load_file(model / "model.safetensors").items():
        found[name] = value
        if name.endswith("_proj.weight"):
            scale = value.float().abs().amax(1, keepdim=True) / 448
            found[name] = (value.float() / scale).to(torch.float8_e4m3fn)
            found[f"{name}_scale"] = scale
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def nearest(values: Tensor) -> Tensor:
    """Rounds each row to the numbers that E4M3 has, by search; of two as near to the one with an even code."""
    scales = values.abs().amax(-1, keepdim=True) / 448
    wanted = (values / scales).numpy()
    above = np.searchsorted(E4M3, wanted).clip(1, len(E4M3) - 1)
    low, high = E4M3[above - 1], E4M3[above]
    # Codes are counted from zero, which has an even place in the list.
    is_low = (wanted - low < high - wanted) | ((wanted - low == high - wanted) & (above % 2 == 1))
    return torch.from_numpy(np.where(is_low, low, high)) * scales


def test_inputs_are_rounded_as_servers_round_them(model: Path, tmp_path: Path) -> None:
    write_fp8(model, tmp_path / "fp8")
    network: Any = load.load_model(model, dtype=torch.float32, device="cpu")
    reference = logits_of(network, TEXTS)
    gate = packed_gate("fp8", tmp_path / "fp8", model, Reference(TEXTS, reference), "cpu", BoundConfig())
    assert (gate.verdict, gate.measured["layers"]) == ("pass", 14)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not network.lm_head:
            layer.weight.data = nearest(layer.weight.data)
    weights_alone = compare(TEXTS, reference, logits_of(network, TEXTS)).mean_kl_nats
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not network.lm_head:
            layer.register_forward_pre_hook(lambda _, inputs: nearest(*inputs))
    both = compare(TEXTS, reference, logits_of(network, TEXTS)).mean_kl_nats
    assert gate.measured["mean_kl_nats"] == pytest.approx(both, rel=1e-3)
    assert both > 1.2 * weights_alone


def test_a_folder_that_was_not_quantised_fails(model: Path, tmp_path: Path) -> None:
    reference = logits_of(load.load_model(model, dtype=torch.float32, device="cpu"), TEXTS)
    shutil.copytree(model, tmp_path / "awq")
    gate = packed_gate("awq", tmp_path / "awq", model, Reference(TEXTS, reference), "cpu", BoundConfig())
    assert gate.verdict == "fail"
    assert "no layer is quantised" in gate.reason
