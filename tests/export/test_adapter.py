"""LoRA adapters as GGUF: in llama.cpp like in peft, and the bytes of llama.cpp's own converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from tests.export import upstream
from tests.export.compare import differing_fields, differing_tensors, read_fields
from tests.export.conftest import export
from tests.export.families import build_family
from tests.export.test_one_pass import LINEAR, build_adapter
from tunerun.chat.tokenizer import read_object
from tunerun.errors import UserError
from tunerun.export.adapter import write_adapter

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "all-linear": ("llama3", {"target_modules": LINEAR, "lora_alpha": 16}),
    "rslora": ("qwen2", {"target_modules": LINEAR, "lora_alpha": 11, "use_rslora": True}),
    "patterns": ("mistral", {"target_modules": LINEAR, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 3}}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "embedding": ("llama2", {"target_modules": ["embed_tokens", "v_proj"]}),
}
IDS = list(range(20, 60))


def pair(tmp_path: Path, name: str) -> tuple[Path, Path, Path]:
    """A base, an adapter, and the adapter as GGUF."""
    family, config = ADAPTERS[name]
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    build_family(base, family)
    build_adapter(base, adapter, **config)
    file = tmp_path / "lora.gguf"
    write_adapter(adapter, read_object(base / "config.json"), file, name="demo")
    return base, adapter, file


@pytest.mark.parametrize("name", ADAPTERS)
def test_llama_cpp_adds_what_peft_adds(name: str, tmp_path: Path) -> None:
    base, adapter, file = pair(tmp_path, name)
    path = export(base, tmp_path / "out", ["f32"])["f32"]
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    loaded = llama_cpp.Llama(
        str(path), lora_path=str(file), n_ctx=256, n_threads=2, logits_all=True, verbose=False, **exact
    )
    loaded.eval(IDS)
    found = np.array(loaded.scores[: len(IDS)])
    loaded.close()
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        plain = model(torch.tensor([IDS])).logits[0].numpy()
        expected = PeftModel.from_pretrained(model, adapter)(torch.tensor([IDS])).logits[0].numpy()
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 5e-3 * scale
    assert np.abs(plain - expected).max() > 5e-2 * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all-linear", "fused"])
def test_an_adapter_is_converted_alike(name: str, tmp_path: Path, source: Path) -> None:
    base, adapter, file = pair(tmp_path, name)
    theirs = tmp_path / "upstream.gguf"
    upstream.convert_lora(source, base, adapter, theirs)
    assert not differing_tensors(file, theirs)
    # Upstream copies what the model card says.
    differing = differing_fields(read_fields(file), read_fields(theirs))
    assert {key for key in differing if not key.startswith("general.")} == set()
    assert read_fields(file)["general.type"] == read_fields(theirs)["general.type"]


def test_modules_trained_whole_are_named(tmp_path: Path) -> None:
    build_family(tmp_path / "base", "llama2")
    build_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    config = read_object(tmp_path / "base" / "config.json")
    with pytest.raises(UserError, match=r"lm_head\.weight: was trained whole"):
        write_adapter(tmp_path / "adapter", config, tmp_path / "lora.gguf", name="demo")
    assert not (tmp_path / "lora.gguf").exists()
