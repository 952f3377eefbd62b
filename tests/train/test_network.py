"""Weights that ranks share out stay in their files until then, and come to the same numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.engines.group import placed
from tests.train.runs import FULL, losses, make_run, train_step
from tunerun.base_model import read_base
from tunerun.config.schema import MethodConfig, ObjectiveConfig
from tunerun.train import network, stage

FREEZE = MethodConfig(kind="freeze", layers=1, patterns=("*embed_tokens*",))


def _stored(out: Path, **formats: torch.dtype) -> Path:
    """Makes a run whose base is stored in bf16, but for the weights named."""
    folder = make_run(out) / "base"
    weights = load_file(folder / "model.safetensors")
    kept = {name: value.to(formats.get(name.rpartition(".")[2], torch.bfloat16)) for name, value in weights.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return out


def _built(step: Any, strategy: str, out: Path) -> network.Network:
    return network.build(placed(step, strategy, 1), read_base(out), None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [FULL, FREEZE], ids=["full", "freeze"])
def test_weights_stay_in_their_files_until_they_are_shared_out(
    tmp_path: Path, method: MethodConfig, precision: str
) -> None:
    step = train_step(method, precision=precision)
    shared, whole = (_built(step, strategy, _stored(tmp_path)) for strategy in ("fsdp2", "single"))
    assert {value.dtype for value in shared.module.parameters()} == {torch.bfloat16}
    shared.settle(shared.module)
    settled = dict(shared.module.named_parameters())
    for name, value in whole.module.named_parameters():
        assert settled[name].dtype == value.dtype and torch.equal(settled[name], value), name


def test_what_would_come_to_other_numbers_is_read_at_once(tmp_path: Path) -> None:
    step = train_step(FULL)
    mixed, scored = _stored(tmp_path / "mixed", weight=torch.float32, bias=torch.bfloat16), _stored(tmp_path / "scored")
    reward = replace(step, objective=ObjectiveConfig(kind="reward"))
    for built in (_built(step, "fsdp2", mixed), _built(reward, "fsdp2", scored)):
        assert {value.dtype for value in built.module.parameters()} == {torch.float32}


def test_the_format_of_the_files_counts_and_not_what_the_config_says_of_them(tmp_path: Path) -> None:
    out = _stored(tmp_path, weight=torch.float32, bias=torch.float32)
    shared, whole = (_built(train_step(FULL), strategy, out) for strategy in ("fsdp2", "single"))
    for one, other in zip(shared.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_training_on_weights_from_files_has_the_losses_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sharing sets it for the libraries, and it is to go with the test.
    monkeypatch.setenv("LOCAL_RANK", "0")
    for strategy in ("fsdp2", "single"):
        stage.run(placed(train_step(FULL, max_steps=4), strategy, 1), _stored(tmp_path / strategy))
    assert losses(tmp_path / "fsdp2") == losses(tmp_path / "single")
    one, other = (load_file(tmp_path / name / "merged/model.safetensors") for name in ("fsdp2", "single"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
