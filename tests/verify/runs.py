"""A verify step, and what it reported, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tunerun import artifacts
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.config.schema import GgufConfig
from tunerun.plan.placement import Placement
from tunerun.plan.steps import ExportStep, VerifyStep


def state_template(out: Path) -> None:
    template = load_template(out / "base", load_tokenizer(out / "base").named)
    assert template is not None
    for folder in (artifacts.DATA, artifacts.EVAL_DATA):
        manifest = json.loads((out / folder / "manifest.json").read_text())
        manifest["template_sha256"] = template.sha256
        (out / folder / "manifest.json").write_text(json.dumps(manifest))


def verify_step(**values: Any) -> VerifyStep:
    defaults: dict[str, Any] = {
        "level": "quick",
        "adapter": artifacts.ADAPTER,
        "merged": True,
        "gguf_types": (),
        "chat": True,
        "chat_template": None,
        "prompts": ("Who are you?",),
        "placement": Placement(threads=1),
        "seed": 1,
    }
    return VerifyStep(**{**defaults, **values})


def read_gates(out: Path) -> dict[str, dict[str, Any]]:
    report = json.loads((out / "verify" / "report.json").read_text())
    assert report["schema"] == 1
    assert report["passed"] == all(gate["verdict"] != "fail" for gate in report["gates"])
    return {gate["name"]: gate for gate in report["gates"]}


def change(path: Path, name: str, factor: float) -> None:
    tensors = load_file(path)
    found = next(key for key in tensors if name in key)
    tensors[found] = tensors[found] * factor
    save_file(tensors, path, metadata={"format": "pt"})


def export(out: Path, types: tuple[str, ...], **values: Any) -> None:
    from tunerun.export.stage import run

    gguf: Any = GgufConfig(types=types)  # type: ignore[arg-type]
    run(ExportStep(name="tiny", merged=True, gguf=gguf, chat_template=None, **values), out)
