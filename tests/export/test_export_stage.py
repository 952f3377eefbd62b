"""The export stage in a run directory."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.export.models import TEMPLATE
from tunerun import artifacts
from tunerun.base_model import BaseModel, write_base
from tunerun.config.schema import GgufConfig
from tunerun.errors import UserError
from tunerun.export.modelfile import render_modelfile
from tunerun.export.stage import run
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
        ("modelfile", "export/Modelfile"),
        ("serve", "export/serve.json"),
    ]
    assert artifacts.read_json(tmp_path / "export" / "serve.json") == {
        "schema": 1,
        "default": "demo-q4_k_m.gguf",
        "files": {"q4_k_m": "demo-q4_k_m.gguf", "f16": "demo-f16.gguf"},
        "context": 512,
        "stops": ["<|im_end|>"],
        "template_sha256": hashlib.sha256(TEMPLATE.encode()).hexdigest(),
        "tool_parser": None,
    }
    assert (tmp_path / "export" / "Modelfile").read_text() == (
        'REQUIRES 0.30.11\nFROM ./demo-q4_k_m.gguf\nPARAMETER num_ctx 512\nPARAMETER stop "<|im_end|>"\n'
    )


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


def test_a_stop_with_quotes_keeps_them() -> None:
    modelfile = render_modelfile("x.gguf", stops=['<"end">'], context_tokens=8)
    assert modelfile.endswith('PARAMETER stop """<"end">"""\n')
