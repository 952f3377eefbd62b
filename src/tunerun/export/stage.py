"""Runs the export stage."""

from __future__ import annotations

import os
from pathlib import Path

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import read_base
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.errors import require
from tunerun.export.model import Model, read_model
from tunerun.export.modelfile import render_modelfile, serve_facts
from tunerun.export.special import read_special
from tunerun.export.write import write_gguf
from tunerun.formats.merged import plan_copy
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
    folder = out / artifacts.MERGED if step.merged else read_base(out).folder
    tokenizer = load_tokenizer(folder)
    template = load_template(folder, tokenizer.named, step.chat_template)
    special = read_special(folder, tokenizer, template)
    model = read_model(
        folder, step.name, weights=plan_copy(folder), tokenizer=tokenizer, special=special, template=template
    )
    with artifacts.publish(out / artifacts.EXPORT) as staging:
        staging.mkdir()
        paths = write_gguf(model, step.gguf.types, staging, threads=os.cpu_count() or 1)
        files = {kind: path.name for kind, path in paths.items()}
        _write_companions(staging, model, files, _context_tokens(step, model))
    published = [("gguf", name) for name in files.values()] + [("modelfile", MODELFILE), ("serve", SERVE_FACTS)]
    return [artifacts.describe(out, kind, f"{artifacts.EXPORT}/{name}") for kind, name in published]


def _write_companions(folder: Path, model: Model, files: dict[str, str], context_tokens: int) -> None:
    stops = model.special.stops
    modelfile = render_modelfile(next(iter(files.values())), stops=stops, context_tokens=context_tokens)
    (folder / MODELFILE).write_text(modelfile, encoding="utf-8")
    facts = serve_facts(files, template=model.template, stops=stops, context_tokens=context_tokens)
    artifacts.write_json(folder / SERVE_FACTS, facts)


def _context_tokens(step: ExportStep, model: Model) -> int:
    own: int = model.config["max_position_embeddings"]
    return step.gguf.context or min(own, _MAX_DEFAULT_CONTEXT_TOKENS)
