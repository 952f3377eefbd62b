"""Runs the export stage."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import read_base
from tunerun.chat.template import ChatTemplate, load_template, without_generation_blocks
from tunerun.chat.tokenizer import Tokenizer, load_tokenizer, read_object
from tunerun.config.schema import Bnb4Config
from tunerun.errors import Problem, UserError, require
from tunerun.export.adapter import write_adapter
from tunerun.export.bnb4 import write_bnb4
from tunerun.export.companions import Exported, write_companions
from tunerun.export.compressed import write_awq, write_fp8
from tunerun.export.converter import convert, find_converter
from tunerun.export.gptq import write_gptq
from tunerun.export.importance import read_importance
from tunerun.export.model import read_model
from tunerun.export.special import SpecialTokens, read_special
from tunerun.export.write import write_gguf
from tunerun.formats.architectures import GGUF_ARCHITECTURES, Architecture
from tunerun.formats.merged import MergePlan, plan_copy, plan_merge
from tunerun.formats.share import cores
from tunerun.models.folder import carry_files, set_chat_template
from tunerun.plan.steps import ExportStep, Quantisation

# Some minutes for a model of a billion weights on a laptop; more changes the files little.
_IMPORTANCE_TOKENS = 65536
# Attention memory grows with the context: enough for chat, little enough for a laptop.
_MAX_DEFAULT_CONTEXT_TOKENS = 8192


def run(step: ExportStep, out: Path) -> list[Artifact]:
    """Writes what is deployed of a run, and beside it what servers have to know.

    Args:
        step: What to write.
        out: The run directory.

    Returns:
        Each file or folder in `export/`.
    """
    source = out / artifacts.MERGED if step.merged else read_base(out).folder
    made: list[tuple[str, str]] = []
    described: Exported | None = None
    with (
        tempfile.TemporaryDirectory(prefix="tunerun-export-") as scratch,
        artifacts.publish(out / artifacts.EXPORT) as staging,
    ):
        staging.mkdir()
        if step.gguf.types:
            described = _write_gguf(step, source, out, Path(scratch), staging)
            made += [("gguf", name) for name in described.files.values()]
        if step.bnb4 is not None:
            folder, weights = _weights(step, source, out, Path(scratch))
            made.append(("bnb4", _write_bnb4(step, step.bnb4, folder, weights, staging)))
        if step.gptq is not None:
            target = staging / Path(artifacts.GPTQ).name
            write_gptq(source, out, target, step.gptq, step.python or sys.executable)
            made.append(("gptq", target.name))
        if step.awq is not None:
            target = staging / Path(artifacts.AWQ).name
            write_awq(source, out, target, step.awq, step.python or sys.executable)
            made.append(("awq", target.name))
        if step.fp8 is not None:
            target = staging / Path(artifacts.FP8).name
            write_fp8(source, target, step.python or sys.executable)
            made.append(("fp8", target.name))
        if step.gguf.adapter:
            assert step.adapter is not None, "checked with the config"
            target = staging / f"{step.name}-lora.gguf"
            write_adapter(out / step.adapter, read_object(source / "config.json"), target, name=step.name)
            made.append(("gguf_adapter", target.name))
        _set_template(step, [staging / name for kind, name in made if kind in ("gptq", "awq", "fp8")])
        described = described or _describe(step, source, out, Path(scratch))
        made += write_companions(staging, described)
    return [artifacts.describe(out, kind, f"{artifacts.EXPORT}/{name}") for kind, name in made]


def _write_gguf(step: ExportStep, source: Path, out: Path, scratch: Path, staging: Path) -> Exported:
    require("gguf", "gguf")
    known = set(read_object(source / "config.json").get("architectures") or []) & set(GGUF_ARCHITECTURES)
    write = _write_own if known else _write_foreign
    return write(step, source, out, scratch, staging)


def _describe(step: ExportStep, source: Path, out: Path, scratch: Path) -> Exported:
    """Returns what is known of a model of which no GGUF file was written, or its adapter alone."""
    folder = source
    if not step.merged and step.adapter is not None:
        # It may bring tokens along.
        folder, _ = _weights(step, source, out, scratch)
    tokenizer = load_tokenizer(folder)
    template = load_template(folder, tokenizer.named, step.chat_template)
    special = read_special(folder, tokenizer, template)
    context = _context_tokens(step, read_object(folder / "config.json"), None)
    return _exported(step, {}, tokenizer, template, special, context)


def _set_template(step: ExportStep, folders: Sequence[Path]) -> None:
    """Gives folders that another library wrote the template that is used instead of the model's own."""
    for folder in folders if step.chat_template is not None else ():
        template = load_template(folder, load_tokenizer(folder).named, step.chat_template)
        assert template is not None, "one is named"
        set_chat_template(folder, template.text)


def _write_bnb4(step: ExportStep, bnb4: Bnb4Config, folder: Path, weights: MergePlan, staging: Path) -> str:
    template = None
    if step.chat_template is not None:
        template = load_template(folder, load_tokenizer(folder).named, step.chat_template)
    target = staging / Path(artifacts.BNB4).name
    write_bnb4(
        folder,
        weights,
        target,
        double=bnb4.double_quant,
        template=None if template is None else template.text,
        max_shard_size_bytes=step.max_shard_size_bytes,
    )
    return target.name


def _weights(step: ExportStep, source: Path, out: Path, scratch: Path) -> tuple[Path, MergePlan]:
    """Returns the folder of a model's files and its weights, merged as they are read when merged/ is not there."""
    if step.merged or step.adapter is None:
        return source, plan_copy(source)
    return scratch, _merge_files(source, out / step.adapter, scratch, step.quantisation)


def _write_own(step: ExportStep, source: Path, out: Path, scratch: Path, staging: Path) -> Exported:
    """Writes a model that there are facts about, and merges the adapter on the way when merged/ is not there."""
    folder, weights = _weights(step, source, out, scratch)
    tokenizer = load_tokenizer(folder)
    template = load_template(folder, tokenizer.named, step.chat_template)
    special = read_special(folder, tokenizer, template)
    model = read_model(folder, step.name, weights=weights, tokenizer=tokenizer, special=special, template=template)
    importance = None
    if step.gguf.imatrix:
        adapter = None if step.merged or step.adapter is None else out / step.adapter
        importance = read_importance(model, source, adapter, out, most_tokens=_IMPORTANCE_TOKENS)
    paths = write_gguf(model, step.gguf.types, staging, threads=cores(), importance=importance)
    context = _context_tokens(step, model.config, model.architecture)
    return _exported(step, paths, tokenizer, template, special, context)


def _write_foreign(step: ExportStep, source: Path, out: Path, scratch: Path, staging: Path) -> Exported:
    """Lets llama.cpp's own tools write a model that there are no facts about."""
    if step.adapter is not None and not step.merged:
        what = f"llama.cpp's converter writes this model, and it needs {out / artifacts.MERGED}."
        raise UserError(Problem(where="stages", what=what, fix="Add merge to the stages."))
    if step.gguf.imatrix:
        what = "an importance matrix is not measured for models that llama.cpp's converter writes."
        raise UserError(Problem(where="export.gguf.imatrix", what=what, fix="Set export.gguf.imatrix=false."))
    converter = find_converter(step.gguf.llama_cpp)
    tokenizer = load_tokenizer(source)
    template = load_template(source, tokenizer.named, step.chat_template)
    special = read_special(source, tokenizer, template)
    carry_files(source, scratch)
    if template is not None:
        set_chat_template(scratch, without_generation_blocks(template.text))
    for path in source.iterdir():
        if not (scratch / path.name).exists():
            (scratch / path.name).symlink_to(path.resolve())
    paths = convert(converter, scratch, step.gguf.types, staging, name=step.name)
    context = _context_tokens(step, read_object(source / "config.json"), None)
    return _exported(step, paths, tokenizer, template, special, context)


def _exported(
    step: ExportStep,
    paths: Mapping[str, Path],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    special: SpecialTokens,
    context_tokens: int,
) -> Exported:
    if template is not None:
        template = replace(template, text=without_generation_blocks(template.text))
    return Exported(
        name=step.name,
        files={kind: path.name for kind, path in paths.items()},
        template=template,
        tokenizer=tokenizer,
        special=special,
        context_tokens=context_tokens,
        system=step.system,
    )


def _merge_files(base: Path, adapter: Path, folder: Path, quantisation: Quantisation | None) -> MergePlan:
    """Puts together all of the merged model but its weights, which are merged as they are written."""
    weights = plan_merge(base, adapter, quantisation)
    carry_files(base, folder, adapter=adapter)
    artifacts.write_json(folder / "config.json", dict(weights.config))
    return weights


def _context_tokens(step: ExportStep, config: Mapping[str, Any], architecture: Architecture | None) -> int:
    own: int = config.get("max_position_embeddings") or _MAX_DEFAULT_CONTEXT_TOKENS
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if architecture is not None and not architecture.full_attention_every:
        # llama.cpp attends to all of the context where these models saw a window.
        own = min(own, window or own)
    return step.gguf.context or min(own, _MAX_DEFAULT_CONTEXT_TOKENS)
