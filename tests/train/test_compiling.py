"""Decoder layers that are compiled; what inductor makes of them is left to the slow test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import tiny_qwen2
from tests.train.runs import FULL, LORA, losses, make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import MethodConfig
from tunerun.errors import UserError
from tunerun.models import adapters, load
from tunerun.models.attention import SEGMENTS
from tunerun.models.batch import MicroBatch, lay_out, padded
from tunerun.models.loss import token_loss
from tunerun.train.compiling import compile_layers
from tunerun.train.stage import run


def _model(folder: Path, method: str, layers: int) -> Any:
    folder = tiny_qwen2(folder, num_hidden_layers=layers)
    model = load.load_model(folder, dtype=torch.float32, device="cpu", attention=SEGMENTS)
    if method == "lora":
        model = adapters.add_adapter(model, MethodConfig(rank=4, alpha=8.0), seed=0).get_base_model()
    return model.train()


def _batch(seed: int) -> MicroBatch:
    generator = np.random.default_rng(seed)
    rows = [(generator.integers(4, 300, size), np.ones(size, bool), np.zeros(size)) for size in (9, 14, 3 + seed)]
    return padded(lay_out(rows, "cpu"), 64)


def _gradients(model: Any, batch: MicroBatch) -> torch.Tensor:
    model.zero_grad()
    token_loss(model, batch).backward()
    return torch.cat([value.grad.flatten() for value in model.parameters() if value.requires_grad])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_graphs_are_shared_by_all_layers_and_all_batches_and_change_no_gradient(tmp_path: Path, method: str) -> None:
    graphs: list[Any] = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    counts = []
    for layers in (2, 5):
        model = _model(tmp_path / str(layers), method, layers)
        names, saved = [name for name, _ in model.named_parameters()], set(model.state_dict())
        wanted = [_gradients(model, _batch(seed)) for seed in range(3)]
        compile_layers(model, counting)  # type: ignore[arg-type]
        for seed in range(3):
            assert torch.equal(_gradients(model, _batch(seed)), wanted[seed])
            counts.append(len(graphs))
        assert [name for name, _ in model.named_parameters()] == names
        assert set(model.state_dict()) == saved
    assert counts[0] > 0
    assert counts[2] == counts[0], "another batch was compiled anew"
    assert counts[-1] <= 2 * counts[0], "each layer was compiled anew"


def test_a_machine_without_a_compiler_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"train\.compile.*no C\+\+ compiler"):
        compile_layers(_model(tmp_path / "model", "full", 2))


@pytest.mark.slow
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_a_compiled_training_publishes_the_same_names_and_nearly_the_same_losses(tmp_path: Path, method: Any) -> None:
    plain, compiled = make_run(tmp_path / "plain", packed=True), make_run(tmp_path / "compiled", packed=True)
    step = train_step(replace(method, dropout=0.0), micro_batch_size=2, global_batch_size=2, checkpoint_steps=2)
    run(step, plain)
    run(replace(step, compile=True), compiled)
    for (_, one), (_, other) in zip(losses(plain), losses(compiled), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    kind = artifacts.ADAPTER if method is LORA else artifacts.MERGED
    file = artifacts.ADAPTER_WEIGHTS if method is LORA else "model.safetensors"
    assert set(load_file(plain / kind / file)) == set(load_file(compiled / kind / file))
