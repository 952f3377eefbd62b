"""Merging against peft's own `merge_and_unload`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from tunerun.errors import StageError, UserError
from tunerun.merge.merge import merge_adapter

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "all-linear": {"r": 16, "lora_alpha": 32, "target_modules": ALL},
    "patterns": {
        "r": 64,
        "lora_alpha": 11,
        "use_rslora": True,
        "target_modules": ["q_proj", "down_proj", "o_proj"],
        "rank_pattern": {"q_proj": 5},
        "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 3},
    },
    "high-rank": {"r": 192, "lora_alpha": 16, "target_modules": ["gate_proj", "o_proj"]},
    "saved-modules": {"r": 4, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved-head": {"r": 4, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    "dora": {"r": 16, "lora_alpha": 32, "target_modules": ALL, "use_dora": True},
    "dora-rslora": {"r": 3, "use_dora": True, "use_rslora": True, "target_modules": ["o_proj", "down_proj"]},
    "trained-biases": {"r": 4, "target_modules": ["q_proj", "o_proj"], "bias": "all"},
    "adapted-biases": {"r": 4, "target_modules": ["q_proj", "v_proj"], "lora_bias": True},
    "trained-tokens": {"r": 4, "target_modules": ["v_proj"], "trainable_token_indices": [3, 130, 7]},
}
TIED = {"r": 4, "target_modules": ["v_proj"], "ensure_weight_tying": True}
PROMPT = torch.arange(40)[None]

# peft warns of tied models, which is what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def build_base(folder: Path, *, dtype: torch.dtype = torch.bfloat16, tied: bool = True) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=131,
        hidden_size=96,
        intermediate_size=200,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = Qwen2ForCausalLM(config).to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB")
    return model


def build_adapter(folder: Path, model: Any, *, embeddings: bool | str = "auto", **config: Any) -> None:
    tuned = get_peft_model(model, LoraConfig(**config))
    for name, parameter in tuned.named_parameters():
        if "magnitude" in name:
            parameter.data *= torch.rand_like(parameter) + 0.5
        elif "lora_" in name or "modules_to_save" in name or "tokens_delta" in name or name.endswith(".bias"):
            torch.nn.init.normal_(parameter.data, std=0.05)
    tuned.save_pretrained(folder, save_embedding_layers=embeddings)


def reference(base: Path, adapter: Path, out: Path, dtype: torch.dtype) -> torch.Tensor:
    """Merges with peft; returns the logits of the unmerged model with the adapter."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)
    with torch.no_grad():
        logits = model(PROMPT).logits
    model.merge_and_unload().save_pretrained(out)
    return logits


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def same(left: Path, right: Path) -> bool:
    mine, theirs = weights(left), weights(right)
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine
    )


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A base model and an adapter of it."""
    build_adapter(tmp_path / "adapter", build_base(tmp_path / "base"), **ADAPTERS["all-linear"])
    return tmp_path / "base", tmp_path / "adapter"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=["bf16", "fp32", "fp16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_bits_are_those_of_peft(adapter: str, tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    build_adapter(tmp_path / "adapter", build_base(base, dtype=dtype, tied=tied), **ADAPTERS[adapter])
    reference(base, tmp_path / "adapter", tmp_path / "reference", dtype)
    merge_adapter(base, tmp_path / "adapter", out, max_shard_size_bytes=50_000)
    assert len(list(out.glob("*.safetensors"))) > 1
    assert same(out, tmp_path / "reference")
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (out, tmp_path / "reference"))
    assert ours["tie_word_embeddings"] == theirs["tie_word_embeddings"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head", "v_proj"], ["embed_tokens", "lm_head"]], ids=str)
def test_changed_embeddings_answer_like_the_adapter(targets: list[str], tied: bool, tmp_path: Path) -> None:
    """peft's merge adds to both ends of a tied model; what counts is what the adapter computed."""
    base, out = tmp_path / "base", tmp_path / "out"
    build_adapter(tmp_path / "adapter", build_base(base, dtype=torch.float32, tied=tied), r=4, target_modules=targets)
    expected = reference(base, tmp_path / "adapter", tmp_path / "reference", torch.float32)
    merge_adapter(base, tmp_path / "adapter", out, max_shard_size_bytes=1 << 30)
    with torch.no_grad():
        found = Qwen2ForCausalLM.from_pretrained(out, dtype=torch.float32)(PROMPT).logits
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"]], ids=str)
def test_tied_matrices_that_were_trained_as_one_stay_one(saved: list[str], tmp_path: Path) -> None:
    build_adapter(tmp_path / "adapter", build_base(tmp_path / "base"), modules_to_save=saved, **TIED)
    reference(tmp_path / "base", tmp_path / "adapter", tmp_path / "reference", torch.bfloat16)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", max_shard_size_bytes=1 << 30)
    assert same(tmp_path / "out", tmp_path / "reference")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_gpt2_stores_its_layers_the_other_way_round(dtype: torch.dtype, dora: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=131, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config).to(dtype)
    model.save_pretrained(tmp_path / "base")
    targets = ["c_attn", "c_proj", "c_fc"]
    build_adapter(tmp_path / "adapter", model, r=8, target_modules=targets, fan_in_fan_out=True, use_dora=dora)
    reference(tmp_path / "base", tmp_path / "adapter", tmp_path / "reference", dtype)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", max_shard_size_bytes=1 << 30)
    assert same(tmp_path / "out", tmp_path / "reference")


def test_a_grown_vocabulary_is_followed(tmp_path: Path) -> None:
    model = build_base(tmp_path / "base", dtype=torch.float32, tied=False)
    model.resize_token_embeddings(140)
    build_adapter(tmp_path / "adapter", model, embeddings=True, r=4, target_modules=["v_proj"])
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", max_shard_size_bytes=1 << 30)
    merged = Qwen2ForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert merged.config.vocab_size == 140
    assert torch.equal(merged.lm_head.weight, model.lm_head.weight)


def test_files_beside_the_weights_go_along(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    (base / "LICENSE").write_text("free")
    (base / "tokenizer.json").write_text("base")
    (base / "chat_template.jinja").write_text("base")
    (base / "vocab.json").write_text("base")
    (adapter / "tokenizer.json").write_text("adapter")
    (adapter / "tokenizer_config.json").write_text('{"chat_template": "adapter"}')
    out = tmp_path / "out"
    merge_adapter(base, adapter, out, max_shard_size_bytes=1 << 30)
    assert (out / "LICENSE").read_text() == "free"
    assert (out / "generation_config.json").read_text() == (base / "generation_config.json").read_text()
    assert (out / "vocab.json").read_text() == "base"
    assert (out / "tokenizer.json").read_text() == "adapter"
    # The base's template file would win over the one in the adapter's tokenizer_config.json.
    assert not (out / "chat_template.jinja").exists()
    assert not (out / "adapter_config.json").exists()


def test_a_named_chat_template_replaces_the_others(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    (base / "tokenizer_config.json").write_text('{"chat_template": "old", "eos_token": "x"}')
    merge_adapter(base, adapter, tmp_path / "out", max_shard_size_bytes=1 << 30, chat_template="new")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "new"
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"eos_token": "x"}


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "IA3"),
        ("target_parameters", ["experts.down_proj"]),
        ("layer_replication", [[0, 2]]),
        ("init_lora_weights", "pissa"),
        ("fan_in_fan_out", True),
        ("some_field_of_next_year", 7),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    pair: tuple[Path, Path], tmp_path: Path, field: str, value: Any
) -> None:
    base, adapter = pair
    edit(adapter / "adapter_config.json", **{field: value})
    with pytest.raises(UserError, match=field):
        merge_adapter(base, adapter, tmp_path / "out", max_shard_size_bytes=1 << 30)
    assert not (tmp_path / "out").exists()


def test_a_quantised_base_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    edit(pair[0] / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(UserError, match="quantised"):
        merge_adapter(*pair, tmp_path / "out", max_shard_size_bytes=1 << 30)


def test_every_tensor_that_does_not_fit_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    config = Qwen2Config(
        vocab_size=131, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2
    )
    Qwen2ForCausalLM(config).save_pretrained(other)
    with pytest.raises(UserError, match="right base model") as raised:
        merge_adapter(other, pair[1], tmp_path / "out", max_shard_size_bytes=1 << 30)
    assert len(raised.value.problems) == 14


def test_a_rank_that_the_config_denies_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    edit(pair[1] / "adapter_config.json", r=8)
    with pytest.raises(UserError, match="rank 8"):
        merge_adapter(*pair, tmp_path / "out", max_shard_size_bytes=1 << 30)


def test_a_broken_adapter_leaves_nothing_behind(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = pair[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layers.1.self_attn.v_proj.lora_B.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(StageError, match=r"layers\.1\.self_attn\.v_proj"):
        merge_adapter(*pair, tmp_path / "out", max_shard_size_bytes=1 << 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_adapter_file_is_named(pair: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    (pair[1] / name).unlink()
    with pytest.raises(UserError, match=name):
        merge_adapter(*pair, tmp_path / "out", max_shard_size_bytes=1 << 30)
