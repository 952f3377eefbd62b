"""The export stage in a run directory."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.export.models import TEMPLATE
from tunerun import artifacts
from tunerun.base_model import BaseModel, write_base
from tunerun.chat import go_template
from tunerun.chat.template import ChatTemplate
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.config.schema import GgufConfig
from tunerun.errors import UserError
from tunerun.export.companions import Exported, write_companions
from tunerun.export.special import read_special
from tunerun.export.stage import run
from tunerun.formats.handoff import Handoff, Rendering, read_handoff
from tunerun.formats.modelfile import read_modelfile
from tunerun.models.folder import set_chat_template
from tunerun.plan.steps import ExportStep

pytest.importorskip("llama_cpp")


def step(**changes: object) -> ExportStep:
    fields = {
        "name": "demo",
        "merged": True,
        "gguf": GgufConfig(types=("q4_k_m", "f16")),
        "chat_template": None,
    }
    return ExportStep(**(fields | changes))  # type: ignore[arg-type]


def test_a_merged_model_becomes_files_that_say_how_to_be_served(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / artifacts.MERGED)
    made = run(step(), tmp_path)
    assert [(item.kind, item.path) for item in made] == [
        ("gguf", "export/demo-q4_k_m.gguf"),
        ("gguf", "export/demo-f16.gguf"),
        ("chat_template", "export/chat_template.jinja"),
        ("modelfile", "export/Modelfile"),
        ("modelfile", "export/Modelfile.go-template"),
        ("serve", "export/serve.json"),
    ]
    facts = read_handoff(tmp_path / "export" / "serve.json")
    assert facts == Handoff(
        default="demo-q4_k_m.gguf",
        files={"q4_k_m": "demo-q4_k_m.gguf", "f16": "demo-f16.gguf"},
        context=512,
        stops=("<|im_end|>",),
        template="chat_template.jinja",
        template_sha256=hashlib.sha256(TEMPLATE.encode()).hexdigest(),
        tool_parser=None,
        ollama=Rendering(file="Modelfile.go-template"),
        lmdeploy=facts.lmdeploy,
    )
    assert facts.lmdeploy.file is None
    assert "export.system" in facts.lmdeploy.reason
    assert (tmp_path / "export" / "chat_template.jinja").read_text() == TEMPLATE
    assert (tmp_path / "export" / "Modelfile").read_text() == (
        'REQUIRES 0.30.11\nFROM ./demo-q4_k_m.gguf\nPARAMETER num_ctx 512\nPARAMETER stop "<|im_end|>"\n'
    )


def test_a_system_prompt_reaches_ollama_and_lmdeploy(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / artifacts.MERGED)
    run(step(system="Be kind.", gguf=GgufConfig(types=("f16",))), tmp_path)
    for name in ("Modelfile", "Modelfile.go-template"):
        assert read_modelfile((tmp_path / "export" / name).read_text()).system == "Be kind."
    fields = artifacts.read_json(tmp_path / "export" / "lmdeploy_chat_template.json")
    assert fields["meta_instruction"] == "Be kind."
    assert fields["stop_words"] == ["<|im_end|>"]


def test_a_modelfile_for_older_releases_has_a_template_that_renders_the_same(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / artifacts.MERGED)
    run(step(gguf=GgufConfig(types=("f16",))), tmp_path)
    content = read_modelfile((tmp_path / "export" / "Modelfile.go-template").read_text())
    assert (content.weights, content.requires, content.stops) == ("demo-f16.gguf", None, ("<|im_end|>",))
    assert content.template is not None
    messages = [{"role": "user", "content": "Who are you?"}]
    wanted = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    assert go_template.render(content.template, messages) == wanted


def test_a_template_that_cannot_be_written_otherwise_says_why(tiny: Path, tmp_path: Path) -> None:
    merged = shutil.copytree(tiny, tmp_path / artifacts.MERGED)
    set_chat_template(merged, TEMPLATE.replace("message['content']", "message['content'].replace('42', '43')"))
    run(step(gguf=GgufConfig(types=("f16",))), tmp_path)
    facts = read_handoff(tmp_path / "export" / "serve.json")
    assert facts.ollama.file is None
    assert "does not write these texts as others" in facts.ollama.reason
    assert not (tmp_path / "export" / "Modelfile.go-template").exists()


def test_a_start_token_is_left_to_engines_that_write_it(tiny: Path, tmp_path: Path) -> None:
    tokenizer = replace(load_tokenizer(tiny), named={"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"})
    template = ChatTemplate(text="{{ bos_token }}" + TEMPLATE, tool_text=None, variables=tokenizer.named, source="")
    special = replace(read_special(tiny, tokenizer, template), adds_bos=True)
    model = Exported(
        name="demo",
        files={"f16": "demo-f16.gguf"},
        template=template,
        tokenizer=tokenizer,
        special=special,
        context_tokens=512,
        system="x",
    )
    write_companions(tmp_path, model)
    source = read_modelfile((tmp_path / "Modelfile.go-template").read_text()).template
    assert source is not None
    assert "<|endoftext|>" not in source
    assert artifacts.read_json(tmp_path / "lmdeploy_chat_template.json")["system"] == "<|im_start|>system\n"
    write_companions(tmp_path, replace(model, template=replace(template, text=TEMPLATE)))
    assert "begins every prompt with" in read_handoff(tmp_path / "serve.json").ollama.reason


def test_without_a_chat_template_any_release_of_ollama_will_do(tiny: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    model = Exported(
        name="demo",
        files={"f16": "demo-f16.gguf"},
        template=None,
        tokenizer=tokenizer,
        special=read_special(tiny, tokenizer, None),
        context_tokens=512,
        system=None,
    )
    assert write_companions(tmp_path, model) == [("modelfile", "Modelfile"), ("serve", "serve.json")]
    assert read_modelfile((tmp_path / "Modelfile").read_text()).requires is None


def test_an_unmerged_base_is_exported_with_another_template(tiny: Path, tmp_path: Path) -> None:
    write_base(tmp_path, BaseModel(folder=tiny, path=str(tiny), revision=None, sha256="0" * 64))
    run(step(merged=False, chat_template="chatml", gguf=GgufConfig(types=("f16",), context=64)), tmp_path)
    facts = artifacts.read_json(tmp_path / "export" / "serve.json")
    assert facts["context"] == 64
    assert facts["template_sha256"] != hashlib.sha256(TEMPLATE.encode()).hexdigest()


def test_a_failed_export_leaves_the_old_one(tiny: Path, tmp_path: Path) -> None:
    merged = tmp_path / artifacts.MERGED
    shutil.copytree(tiny, merged)
    (tmp_path / artifacts.EXPORT).mkdir()
    (tmp_path / artifacts.EXPORT / "old.gguf").write_text("old")
    config = json.loads((merged / "config.json").read_text()) | {"hidden_act": "gelu"}
    (merged / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        run(step(), tmp_path)
    assert [path.name for path in (tmp_path / artifacts.EXPORT).iterdir()] == ["old.gguf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "merged"]
