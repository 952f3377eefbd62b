"""Base and adapter written as GGUF without a merged copy on disk."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from tests.export.compare import differing_fields, differing_tensors, read_fields
from tests.export.families import build_family
from tests.export.models import edit_json
from tunerun import artifacts
from tunerun.base_model import BaseModel, write_base
from tunerun.config.schema import GgufConfig
from tunerun.errors import StageError
from tunerun.export import stage
from tunerun.formats.handoff import read_handoff
from tunerun.merge.merge import merge_adapter
from tunerun.plan.steps import ExportStep

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "qwen2": {"target_modules": LINEAR, "use_rslora": True},
    "llama3": {"target_modules": LINEAR, "modules_to_save": ["lm_head"]},
    "gemma2": {"target_modules": ["q_proj", "k_proj", "down_proj"]},
    "phi3": {"target_modules": ["qkv_proj", "gate_up_proj"]},
}
TYPES = ("bf16", "q4_k_m", "q8_0")


def build_adapter(base: Path, adapter: Path, **config: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    tuned = get_peft_model(model, LoraConfig(r=8, **config))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter.data, std=0.05)
    tuned.save_pretrained(adapter)


def export_step(adapter: str | None, *, merged: bool) -> ExportStep:
    gguf = GgufConfig(types=TYPES)
    return ExportStep(name="demo", merged=merged, gguf=gguf, chat_template=None, adapter=adapter)


def start_run(tmp_path: Path, family: str) -> Path:
    """A run directory with a base and an adapter."""
    base, run = tmp_path / "base", tmp_path / "run"
    build_family(base, family)
    build_adapter(base, run / "adapter", **ADAPTERS[family])
    write_base(run, BaseModel(folder=base, path=str(base), revision=None, sha256="0" * 64))
    return run


@pytest.mark.parametrize("family", ADAPTERS)
def test_one_pass_gives_the_bytes_of_merging_first(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(tmp_path, family)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    stage.run(export_step("adapter", merged=False), run)
    assert not any(scratch.iterdir())
    assert sorted(path.name for path in run.iterdir()) == ["adapter", "export", "model.json"]
    shutil.move(run / "export", tmp_path / "fused")
    merge_adapter(tmp_path / "base", run / "adapter", run / artifacts.MERGED, max_shard_size_bytes=1 << 30)
    stage.run(export_step(None, merged=True), run)
    for kind in TYPES:
        ours, theirs = (folder / f"demo-{kind}.gguf" for folder in (tmp_path / "fused", run / "export"))
        assert not differing_tensors(ours, theirs)
        assert not differing_fields(read_fields(ours), read_fields(theirs))


def test_the_adapter_brings_its_template(tmp_path: Path) -> None:
    run = start_run(tmp_path, "qwen2")
    (run / "adapter" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    stage.run(export_step("adapter", merged=False), run)
    fields = read_fields(run / "export" / "demo-bf16.gguf")
    assert fields["tokenizer.chat_template"][0].startswith("{% for m in messages %}{{ m.content }}")


def test_an_adapter_alone_comes_with_what_a_server_has_to_know(tmp_path: Path) -> None:
    run = start_run(tmp_path, "qwen2")
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    (run / "adapter" / "chat_template.jinja").write_text(template)
    made = stage.run(replace(export_step("adapter", merged=False), gguf=GgufConfig(adapter=True), system="Hi."), run)
    assert ("gguf_adapter", "export/demo-lora.gguf") in {(item.kind, item.path) for item in made}
    assert not (run / "export" / "Modelfile").exists()
    assert (run / "export" / "chat_template.jinja").read_text() == template
    facts = read_handoff(run / "export" / "serve.json")
    assert (facts.default, facts.files, facts.system) == (None, {}, "Hi.")
    assert "<|im_end|>" in facts.stops


def test_a_broken_adapter_publishes_nothing(tmp_path: Path) -> None:
    run = start_run(tmp_path, "qwen2")
    file = run / "adapter" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(StageError, match="not a number"):
        stage.run(export_step("adapter", merged=False), run)
    assert not (run / "export").exists()


def test_a_window_that_llama_cpp_ignores_bounds_what_is_served(tmp_path: Path) -> None:
    run = tmp_path / "run"
    build_family(run / artifacts.MERGED, "mistral")
    edit_json(run / artifacts.MERGED / "config.json", sliding_window=96)
    stage.run(export_step(None, merged=True), run)
    assert artifacts.read_json(run / "export" / "serve.json")["context"] == 96
