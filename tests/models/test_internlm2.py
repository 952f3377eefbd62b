"""InternLM2 checkpoints read as Llama, against InternLM2's own arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_tokenizer
from tunerun import artifacts
from tunerun.base_model import read_base
from tunerun.config.schema import ModelConfig
from tunerun.errors import UserError
from tunerun.models import fetch, load
from tunerun.models.internlm2 import write_as_llama
from tunerun.plan.steps import ModelStep

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCABULARY = 32, 48, 2, 4, 2, 320
WIDTH, GROUPS = HIDDEN // HEADS, HEADS // KV_HEADS
CONFIG = {
    "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "auto_map": {"AutoModel": "x.Y"},
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 256, "bias": False, "tie_word_embeddings": False, "hidden_act": "silu",
    "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "internlm2"
    tiny_tokenizer(made)
    (made / "config.json").write_text(json.dumps(CONFIG))
    draw = torch.Generator().manual_seed(0)
    shapes = {"model.tok_embeddings.weight": (VOCABULARY, HIDDEN), "output.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes[f"{name}.attention.wqkv.weight"] = ((HEADS + 2 * KV_HEADS) * WIDTH, HIDDEN)
        shapes[f"{name}.attention.wo.weight"] = (HIDDEN, HIDDEN)
        shapes |= {f"{name}.feed_forward.{w}.weight": (INNER, HIDDEN) for w in ("w1", "w3")}
        shapes[f"{name}.feed_forward.w2.weight"] = (HIDDEN, INNER)
    weights = {name: torch.randn(shape, generator=draw) * 0.2 for name, shape in shapes.items()}
    for name in [
        "model.norm",
        *(f"model.layers.{i}.{n}" for i in range(LAYERS) for n in ("attention_norm", "ffn_norm")),
    ]:
        weights[f"{name}.weight"] = torch.rand(HIDDEN, generator=draw) + 0.5
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    return made


def internlm2_logits(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """What modeling_internlm2.py computes, written out for one text."""
    length = len(ids)
    turns = torch.arange(length)[:, None] / 10000.0 ** (torch.arange(0, WIDTH, 2) / WIDTH)
    cos, sin = (torch.cat([part, part], -1)[:, None] for part in (turns.cos(), turns.sin()))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weights[f"{name}.weight"]

    def turned(x: torch.Tensor) -> torch.Tensor:
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    x = weights["model.tok_embeddings.weight"][ids]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        fused = norm(x, f"{name}.attention_norm") @ weights[f"{name}.attention.wqkv.weight"].T
        fused = fused.view(length, KV_HEADS, GROUPS + 2, WIDTH)
        queries = turned(fused[:, :, :GROUPS].reshape(length, HEADS, WIDTH))
        keys = turned(fused[:, :, -2]).repeat_interleave(GROUPS, 1)
        values = fused[:, :, -1].repeat_interleave(GROUPS, 1)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) / WIDTH**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).reshape(length, HIDDEN)
        x = x + mixed @ weights[f"{name}.attention.wo.weight"].T
        inner = norm(x, f"{name}.ffn_norm")
        gate, up, down = (weights[f"{name}.feed_forward.{w}.weight"] for w in ("w1", "w3", "w2"))
        x = x + (torch.nn.functional.silu(inner @ gate.T) * (inner @ up.T)) @ down.T
    return norm(x, "model.norm") @ weights["output.weight"].T


@torch.no_grad()
def test_it_computes_what_internlm2_computes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fetch.run(ModelStep(model=ModelConfig(path=str(folder)), cache_dir=None, weights=True), tmp_path)
    base = read_base(tmp_path)
    assert base.path == str(folder)
    ids = torch.arange(3, 40)
    found = load.load_model(base.folder, dtype=torch.float32, device="cpu")(ids[None]).logits[0]
    wanted = internlm2_logits(load_file(folder / "model.safetensors"), ids)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (base.folder / "tokenizer.json").is_file()
    again = base.folder.stat().st_mtime_ns
    fetch.run(ModelStep(model=ModelConfig(path=str(folder)), cache_dir=None, weights=True), tmp_path)
    assert read_base(tmp_path).folder.stat().st_mtime_ns == again


def test_a_fused_tensor_of_another_size_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_key_value_heads": 4}))
    with pytest.raises(UserError, match=r"wqkv.weight: it has 64 rows where 4 heads and 4 key heads of 8 need 96"):
        write_as_llama(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert artifacts.read_json(folder / "config.json")["model_type"] == "internlm2"
