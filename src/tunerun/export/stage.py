"""Runs the export stage."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import read_base
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer, read_object
from tunerun.errors import require
from tunerun.export.adapter import write_adapter
from tunerun.export.modelfile import render_modelfile, serve_facts
from tunerun.export.special import read_special
from tunerun.export.model import Model, read_model
from tunerun.export.write import write_gguf
from tunerun.formats.merged import MergePlan, plan_copy, plan_merge
from tunerun.models.folder import carry_files
from tunerun.plan.steps import ExportStep

MODELFILE = "Modelfile"
SERVE_FACTS = "serve.json"

# Attention memory grows with the context: enough for chat, little enough for a laptop.
_MAX_DEFAULT_CONTEXT_TOKENS = 8192


def run(step: ExportStep, out: Path) -> list[Artifact]:
    """Writes the GGUF files of a run, the Modelfile and serve.json.

    Args:
        step: What to write.
        out: The run directory.

    Returns:
        Each file of `export/`.
    """
    require("gguf", "gguf")
    source = out / artifacts.MERGED if step.merged else read_base(out).folder
    with tempfile.TemporaryDirectory(prefix="tunerun-export-") as scratch:
        if step.merged or step.adapter is None:
            folder, weights = source, plan_copy(source)
        else:
            folder = Path(scratch)
            weights = _merge_files(source, out / step.adapter, folder)
        model = _read(folder, step, weights)
        with artifacts.publish(out / artifacts.EXPORT) as staging:
            staging.mkdir()
            paths = write_gguf(model, step.gguf.types, staging, threads=os.cpu_count() or 1)
            files = {kind: path.name for kind, path in paths.items()}
            _write_companions(staging, model, files, _context_tokens(step, model))
            if step.gguf.adapter:
                assert step.adapter is not None, "checked with the config"
                config = read_object(read_base(out).folder / "config.json")
                write_adapter(out / step.adapter, config, staging / _adapter_file(step), name=step.name)
    published = [("gguf", name) for name in files.values()] + [("modelfile", MODELFILE), ("serve", SERVE_FACTS)]
    if step.gguf.adapter:
        published.append(("gguf_adapter", _adapter_file(step)))
    return [artifacts.describe(out, kind, f"{artifacts.EXPORT}/{name}") for kind, name in published]


def _adapter_file(step: ExportStep) -> str:
    return f"{step.name}-lora.gguf"


def _merge_files(base: Path, adapter: Path, folder: Path) -> MergePlan:
    """Puts together all of the merged model but its weights, which are merged as they are written."""
    weights = plan_merge(base, adapter)
    carry_files(base, folder, adapter=adapter)
    artifacts.write_json(folder / "config.json", dict(weights.config))
    return weights


def _read(folder: Path, step: ExportStep, weights: MergePlan) -> Model:
    tokenizer = load_tokenizer(folder)
    template = load_template(folder, tokenizer.named, step.chat_template)
    special = read_special(folder, tokenizer, template)
    return read_model(folder, step.name, weights=weights, tokenizer=tokenizer, special=special, template=template)


def _write_companions(folder: Path, model: Model, files: dict[str, str], context_tokens: int) -> None:
    stops = model.special.stops
    modelfile = render_modelfile(next(iter(files.values())), stops=stops, context_tokens=context_tokens)
    (folder / MODELFILE).write_text(modelfile, encoding="utf-8")
    facts = serve_facts(files, template=model.template, stops=stops, context_tokens=context_tokens)
    artifacts.write_json(folder / SERVE_FACTS, facts)


def _context_tokens(step: ExportStep, model: Model) -> int:
    own: int = model.config["max_position_embeddings"]
    if not model.architecture.full_attention_every and model.config.get("use_sliding_window", True):
        # llama.cpp attends to all of the context where these models saw a window.
        own = min(own, model.config.get("sliding_window") or own)
    return step.gguf.context or min(own, _MAX_DEFAULT_CONTEXT_TOKENS)
