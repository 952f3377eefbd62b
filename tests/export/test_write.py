"""What cannot be exported is refused, each fault by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.export.conftest import export, open_model
from tests.export.models import PATTERN, edit_json
from tunerun.errors import StageError, UserError


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, r"MambaForCausalLM is not supported.*Supported: Qwen2ForCausalLM"),
        ({"architectures": None}, "names no architecture"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
    ],
)
def test_models_that_llama_cpp_would_run_otherwise_are_refused(
    model: Path, fields: dict[str, Any], message: str
) -> None:
    edit_json(model / "config.json", **fields)
    with pytest.raises(UserError, match=message):
        open_model(model)


def edit_tokenizer(model: Path, field: str, value: Any) -> None:
    data = json.loads((model / "tokenizer.json").read_text())
    *parents, last = field.split(".")
    place = data
    for parent in parents:
        place = place[int(parent)] if parent.isdigit() else place[parent]
    place[last] = value
    (model / "tokenizer.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("pre_tokenizer.pretokenizers.0.pattern", {"Regex": PATTERN + "|x"}, "pre_tokenizer"),
        (
            "pre_tokenizer",
            {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True, "trim_offsets": True},
            "pre_tokenizer",
        ),
        ("normalizer", {"type": "Lowercase"}, "normalizer"),
        ("model.ignore_merges", True, "model.ignore_merges"),
        ("model.byte_fallback", True, "normalizer"),
    ],
)
def test_tokenizers_without_an_equal_are_refused(model: Path, field: str, value: Any, where: str) -> None:
    edit_tokenizer(model, field, value)
    with pytest.raises(UserError, match=rf"tokenizer\.json: {where}: llama\.cpp has no tokenizer with"):
        open_model(model)


def test_more_tokens_than_rows_are_refused(model: Path) -> None:
    added = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    edit_tokenizer(model, "added_tokens", [*added, added[-1] | {"id": 448, "content": "<|one-too-many|>"}])
    with pytest.raises(UserError, match="448 rows"):
        open_model(model)


def test_missing_and_unknown_tensors_are_all_named(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.experts.0.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(UserError) as raised:
        open_model(model)
    assert len(raised.value.problems) == 2


def test_a_weight_that_is_not_a_number_is_named(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(StageError, match=r"layers\.1\.mlp\.up_proj"):
        export(model, tmp_path / "out", ["f16"])


def test_a_stored_head_of_a_tied_model_is_left_out(model: Path, tmp_path: Path, tiny: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}, model / "model.safetensors")
    ours = export(model, tmp_path / "a", ["bf16"])["bf16"]
    assert ours.read_bytes() == export(tiny, tmp_path / "b", ["bf16"])["bf16"].read_bytes()
