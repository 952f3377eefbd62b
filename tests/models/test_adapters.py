from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_qwen2
from tunerun import artifacts
from tunerun.config.schema import MethodConfig
from tunerun.errors import UserError
from tunerun.models import adapters, load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_qwen2(tmp_path / "model")


def _load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load.load_model(folder, dtype=dtype, device="cpu")


def _lora(model: Any, **options: Any) -> Any:
    return adapters.add_adapter(model, MethodConfig(rank=4, alpha=8.0, **options), seed=3)


def test_all_linear_adapts_every_linear_layer_but_the_head(folder: Path) -> None:
    adapted = _lora(_load(folder))
    names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * 2 * 7
    assert all("lora_" in name for name in names)


def test_the_same_seed_gives_the_same_bytes_and_peft_reads_them(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        adapters.save_adapter(_lora(_load(folder)), tmp_path / name, base_name="org/tiny")
    one, other = ((tmp_path / name / artifacts.ADAPTER_WEIGHTS).read_bytes() for name in ("a", "b"))
    assert one == other
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny"
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])


def test_a_saved_adapter_comes_back_to_the_bit_on_a_bfloat16_base(folder: Path, tmp_path: Path) -> None:
    adapted = _lora(_load(folder, torch.bfloat16), modules_to_save=("embed_tokens",))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape))
    adapters.save_adapter(adapted, tmp_path / "adapter", base_name="org/tiny")
    back = adapters.load_adapter(_load(folder, torch.bfloat16), tmp_path / "adapter", trainable=True)
    wanted = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    found = {name: value for name, value in back.named_parameters() if value.requires_grad}
    assert wanted.keys() == found.keys()
    assert all(value.dtype == torch.float32 for value in found.values())
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_modules_that_do_not_exist_are_named_all_at_once(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        _lora(_load(folder), target_modules=("q_proj", "qproj"), modules_to_save=("embeddings",))
    message = str(caught.value)
    assert "method.target_modules: the model has no module `qproj`" in message
    assert "method.modules_to_save: the model has no module `embeddings`" in message
    assert "q_proj" in message


def test_a_folder_without_safetensors_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"is no adapter folder: adapter_config.json and adapter_model.safetensors"):
        adapters.load_adapter(_load(folder), tmp_path / "adapter", trainable=False)
