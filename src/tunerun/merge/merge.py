"""A LoRA merge streamed over safetensors: a few rows in memory, the bits that peft's `merge_and_unload` gives.

Tensors that the adapter does not touch are copied by the kernel. The others are widened to float32, the update is
added, and the sum is rounded back to the base's type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunerun.artifacts import publish
from tunerun.errors import Problem, StageError, UserError
from tunerun.formats.floats import STORAGE, from_float32, is_finite, to_float32
from tunerun.formats.lora import Adapter, Delta, read_adapter
from tunerun.formats.safetensors import ModelWriter, TensorInfo, read_rows, read_table
from tunerun.merge.carry import carry_files
from tunerun.progress import Progress

# Values worked on at once: small enough to stay in the cache through every pass.
_BLOCK_VALUES = 1 << 18
_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Base:
    """The base model as the merged model sees it."""

    config: dict[str, Any]
    sources: Mapping[str, TensorInfo]
    """Every tensor of the merged model, and where its base values are."""


def merge_adapter(base: Path, adapter: Path, out: Path, *, max_shard_size_bytes: int) -> None:
    """Writes a base model with an adapter merged in, published atomically.

    Args:
        base: Folder with config.json and safetensors weights in a float type.
        adapter: Folder with a LoRA adapter in peft's format.
        out: The merged model's folder; replaced when it exists.
        max_shard_size_bytes: Of data in one weight file; a larger tensor gets a file to itself.

    Raises:
        UserError: The base or the adapter is missing, broken, or cannot be merged; names the field or tensor.
        StageError: A merged weight is infinite or not a number.
        OSError: The file system refused a read or a write (a full disk, say).
    """
    config = read_config(base)
    changes = read_adapter(adapter, model_type=config["model_type"])
    plan = _untie(_Base(config=config, sources=read_table(base)), changes, base)
    _check_fit(plan, changes)
    with publish(out) as staging:
        staging.mkdir()
        carry_files(base, adapter, staging)
        text = json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n"
        (staging / "config.json").write_text(text, encoding="utf-8")
        _write_weights(plan.sources, changes, staging, max_shard_size_bytes)


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a model's config.json.

    Raises:
        UserError: It is missing or broken, or the model's weights are quantised.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            Problem(where=str(folder), what="there is no config.json.", fix="Is it a model folder?")
        )
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(Problem(where=str(file), what=f"it is not JSON ({error}).")) from None
    if "model_type" not in config:
        raise UserError(Problem(where=str(file), what="it has no model_type."))
    if "quantization_config" in config:
        raise UserError(
            Problem(
                where=f"{file}: quantization_config",
                what="an adapter cannot be merged into quantised weights.",
                fix="Merge it into the original model instead.",
            )
        )
    return config


def _untie(base: _Base, changes: Adapter, folder: Path) -> _Base:
    """Gives the output head its own tensor when the adapter changes it or the embedding it is tied to.

    An adapter changes one of the two and not the other; merged into a shared tensor it would change both.
    """
    if not base.config.get("tie_word_embeddings", False):
        return base
    embedding = next((name for name in base.sources if name.endswith(_EMBEDDINGS)), None)
    changed = {*changes.updates, *changes.replacements}
    if embedding is None or not changed & {_HEAD, embedding}:
        return base
    # A stored head of a tied model is ignored by every loader: the embedding is what counts.
    sources = dict(base.sources) | {_HEAD: base.sources[embedding]}
    return _Base(config=base.config | {"tie_word_embeddings": False}, sources=sources)


def _check_fit(base: _Base, changes: Adapter) -> None:
    shapes = {name: update.shape for name, update in changes.updates.items()}
    shapes |= {name: info.shape for name, info in changes.replacements.items()}
    problems = []
    for name, shape in shapes.items():
        where = f"{changes.folder}: {name}"
        source = base.sources.get(name)
        if source is None:
            problems.append(
                Problem(where=where, what="the base model has no such tensor.", fix="Is it the right one?")
            )
        elif source.shape != shape:
            what = f"it fits a weight of shape {list(shape)}; the base model's has {list(source.shape)}."
            problems.append(Problem(where=where, what=what, fix="Is it the right base model?"))
        elif source.dtype not in STORAGE:
            what = f"the base model's tensor has the type {source.dtype}, into which nothing can be merged."
            problems.append(Problem(where=where, what=what))
    if problems:
        raise UserError(problems)


def _write_weights(
    sources: Mapping[str, TensorInfo], changes: Adapter, out: Path, max_shard_size_bytes: int
) -> None:
    slots = [(name, info.dtype, info.shape) for name, info in sources.items()]
    total = sum(info.bytes for info in sources.values())
    with (
        ModelWriter(out, slots, max_shard_size_bytes=max_shard_size_bytes) as writer,
        Progress("merge", total=total, unit="bytes") as progress,
    ):
        for name, source in sources.items():
            if name in changes.updates:
                _write_updated(writer, name, source, Delta(changes.updates[name]))
            elif name in changes.replacements:
                _write_replaced(writer, name, changes.replacements[name], source.dtype)
            else:
                writer.copy(source, name)
            progress.advance(source.bytes)


def _write_updated(writer: ModelWriter, name: str, source: TensorInfo, delta: Delta) -> None:
    step = max(1, _BLOCK_VALUES // source.row_values)
    for first in range(0, source.rows, step):
        stored = read_rows(source, first, min(step, source.rows - first))
        values = to_float32(stored, source.dtype)
        delta.add_to(values, first)
        merged = from_float32(values, source.dtype)
        if not is_finite(merged, source.dtype):
            raise StageError(
                f"{name}: the merged weight is infinite or not a number; the adapter or the base is broken."
            )
        writer.write_rows(name, first, merged)


def _write_replaced(writer: ModelWriter, name: str, source: TensorInfo, dtype: str) -> None:
    step = max(1, _BLOCK_VALUES // source.row_values)
    for first in range(0, source.rows, step):
        stored = read_rows(source, first, min(step, source.rows - first))
        values = stored if source.dtype == dtype else from_float32(to_float32(stored, source.dtype), dtype)
        writer.write_rows(name, first, np.ascontiguousarray(values))
