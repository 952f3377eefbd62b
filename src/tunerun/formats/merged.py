"""What each tensor of a merged model is made of, decided from headers alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunerun.errors import Problem, UserError
from tunerun.formats.delta import Delta
from tunerun.formats.floats import STORAGE, Array, from_float32, to_float32
from tunerun.formats.lora import EMBEDDINGS, HEAD, Adapter, Update, read_adapter
from tunerun.formats.safetensors import TensorInfo, read_rows, read_table

# Values merged at once: small enough to stay in the cache through every pass.
_CACHED_VALUES = 1 << 18

# Reads rows `[first, first + count)` of a tensor.
RowReader = Callable[[int, int], Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedTensor:
    """A tensor of the merged model."""

    dtype: str
    source: TensorInfo
    """Where its values come from; in another type when the adapter brings them."""
    update: Update | None = None
    """What is added to them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MergePlan:
    """A merged model: its config.json and its tensors by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, MergedTensor]


def plan_merge(base: Path, adapter: Path) -> MergePlan:
    """Reads the headers of base and adapter and decides what the merged model holds.

    Raises:
        UserError: One of them is missing or broken, or they do not fit; names each field or tensor at fault.
    """
    config = _read_config(base)
    changes = read_adapter(adapter, model_type=config["model_type"])
    tensors = {name: MergedTensor(dtype=info.dtype, source=info) for name, info in read_table(base).items()}
    problems = _missing(tensors, changes)
    if problems:
        raise UserError(problems)
    for name, info in changes.base_copies.items():
        # The copy of a tied head is the embedding once more.
        if name in tensors:
            tensors[name] = replace(tensors[name], source=info)
    config = _resize_vocabulary(config, tensors, changes)
    config = _untie(config, tensors, changes)
    problems = _misfits(tensors, changes)
    if problems:
        raise UserError(problems)
    for name, info in changes.replacements.items():
        tensors[name] = replace(tensors[name], source=info)
    for name, update in changes.updates.items():
        tensors[name] = replace(tensors[name], update=update)
    return MergePlan(config=config, tensors=tensors)


def plan_copy(folder: Path) -> MergePlan:
    """Reads a model that is taken as it is.

    Raises:
        UserError: It is missing or broken.
    """
    tensors = {name: MergedTensor(dtype=info.dtype, source=info) for name, info in read_table(folder).items()}
    return MergePlan(config=_read_config(folder), tensors=tensors)


def row_reader(tensor: MergedTensor) -> RowReader:
    """Returns what reads rows of a merged tensor, in its type; an update's factors are read once, here."""
    delta = Delta(tensor.update) if tensor.update else None

    def read(first: int, count: int) -> Array:
        values = read_rows(tensor.source, first, count)
        if tensor.source.dtype != tensor.dtype:
            values = from_float32(to_float32(values, tensor.source.dtype), tensor.dtype)
        if delta:
            step = max(1, _CACHED_VALUES // tensor.source.row_values)
            for start in range(0, count, step):
                rows = slice(start, start + step)
                values[rows] = delta.merge(values[rows], tensor.dtype, first + start)
        return values

    return read


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(Problem(where=str(folder), what="there is no config.json.", fix="Is it a model folder?"))
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(Problem(where=str(file), what=f"it is not JSON ({error}).")) from None
    if "model_type" not in config:
        raise UserError(Problem(where=str(file), what="it has no model_type."))
    if "quantization_config" in config:
        what = "an adapter cannot be merged into quantised weights."
        fix = "Merge it into the original model instead."
        raise UserError(Problem(where=f"{file}: quantization_config", what=what, fix=fix))
    return config


def _missing(tensors: Mapping[str, MergedTensor], changes: Adapter) -> list[Problem]:
    wanted = {**changes.updates, **changes.replacements, **changes.base_copies}
    # The head of a tied model is not stored: it is the embedding.
    known = {*tensors, HEAD} if _embedding(tensors) else set(tensors)
    return [
        _problem(changes, name, "the base model has no such tensor", "Is it the right base model?")
        for name in wanted
        if name not in known
    ]


def _resize_vocabulary(config: dict[str, Any], tensors: Mapping[str, MergedTensor], changes: Adapter) -> dict[str, Any]:
    """Follows an embedding that training has resized."""
    embedding = _embedding(tensors)
    if embedding is None or embedding not in changes.base_copies or "vocab_size" not in config:
        return config
    return config | {"vocab_size": tensors[embedding].source.rows}


def _untie(config: dict[str, Any], tensors: dict[str, MergedTensor], changes: Adapter) -> dict[str, Any]:
    """Gives the output head its own tensor when the adapter changes it or the embedding it is tied to.

    An adapter changes one of the two and not the other; merged into a shared tensor it would change both.
    """
    embedding = _embedding(tensors)
    if embedding is None or not config.get("tie_word_embeddings", False):
        return config
    # A stored head of a tied model is ignored by every loader: the embedding is what counts.
    tensors.pop(HEAD, None)
    if not {*changes.updates, *changes.replacements} & {HEAD, embedding}:
        return config
    tensors[HEAD] = tensors[embedding]
    return config | {"tie_word_embeddings": False}


def _misfits(tensors: Mapping[str, MergedTensor], changes: Adapter) -> list[Problem]:
    shapes: dict[str, tuple[int, ...]] = {name: update.shape for name, update in changes.updates.items()}
    shapes |= {name: info.shape for name, info in changes.replacements.items()}
    problems = []
    for name, shape in shapes.items():
        target = tensors[name]
        if target.source.shape != shape:
            what = f"it fits a weight of shape {list(shape)}; the base model's has {list(target.source.shape)}"
            problems.append(_problem(changes, name, what, "Is it the right base model?"))
        if target.dtype not in STORAGE:
            what = f"the base model's tensor has the type {target.dtype}, into which nothing can be merged"
            problems.append(_problem(changes, name, what, "Merge into the 16 or 32 bit original instead."))
    embedding = _embedding(tensors)
    if embedding and HEAD in tensors and tensors[HEAD].source.shape != tensors[embedding].source.shape:
        problems.append(_problem(changes, HEAD, f"its shape is not that of {embedding}", ""))
    return problems


def _embedding(tensors: Mapping[str, MergedTensor]) -> str | None:
    return next((name for name in tensors if name.endswith(EMBEDDINGS)), None)


def _problem(changes: Adapter, name: str, what: str, fix: str) -> Problem:
    return Problem(where=f"{changes.folder}: {name}", what=f"{what}.", fix=fix)
