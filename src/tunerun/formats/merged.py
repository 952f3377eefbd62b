"""What each tensor of a merged model is made of, decided from headers alone, and its values, row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunerun.errors import Problem, UserError
from tunerun.formats.bitsandbytes import round_trip
from tunerun.formats.delta import BiasDelta, Delta
from tunerun.formats.dora import DoraDelta
from tunerun.formats.floats import STORAGE, Array, from_float32, to_float32
from tunerun.formats.lora import EMBEDDINGS, HEAD, Adapter, Shift, TokenRows, Update, read_adapter
from tunerun.formats.safetensors import TensorInfo, read_rows, read_table
from tunerun.plan.steps import Quantisation

# Values merged at once: few enough to stay in a core's cache through every pass.
_CACHED_VALUES = 1 << 17

# Reads rows `[first, first + count)` of a tensor; threads may do so at once.
RowReader = Callable[[int, int], Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedTensor:
    """A tensor of the merged model."""

    dtype: str
    source: TensorInfo
    """Where its values come from; in another type when the adapter brings them."""
    update: Update | Shift | None = None
    """What is added to them."""
    token_rows: TokenRows | None = None
    """Rows that get other values; those beyond the source's are new."""
    quantisation: Quantisation | None = None
    """What they go through before anything is added."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the merged tensor."""
        if self.token_rows is None:
            return self.source.shape
        return max(self.source.rows, 1 + max(self.token_rows.indices)), *self.source.shape[1:]

    @property
    def untouched(self) -> bool:
        """Whether it is the source's bytes as they are."""
        changes = (self.update, self.token_rows, self.quantisation)
        return self.source.dtype == self.dtype and all(change is None for change in changes)


@dataclass(frozen=True, kw_only=True, slots=True)
class MergePlan:
    """A merged model: its config.json and its tensors by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, MergedTensor]


def plan_merge(base: Path, adapter: Path, quantisation: Quantisation | None = None) -> MergePlan:
    """Reads the headers of base and adapter and decides what the merged model holds.

    Args:
        base: The base model's folder.
        adapter: The adapter's folder.
        quantisation: What the linear layers but the head go through first; None leaves them as they are.

    Raises:
        UserError: One of them is missing or broken, or they do not fit; names each field or tensor at fault.
    """
    config = _read_config(base)
    changes = read_adapter(adapter, model_type=config["model_type"])
    tensors = {
        name: MergedTensor(
            dtype=info.dtype, source=info, quantisation=quantisation if is_linear(name, info.shape) else None
        )
        for name, info in read_table(base).items()
    }
    problems = _missing(tensors, changes)
    if problems:
        raise UserError(problems)
    for name, info in changes.base_copies.items():
        # The copy of a tied head is the embedding once more.
        if name in tensors:
            tensors[name] = replace(tensors[name], source=info)
    config = _untie(config, tensors, changes)
    problems = _misfits(tensors, changes)
    if problems:
        raise UserError(problems)
    for name, info in changes.replacements.items():
        if name in tensors:
            tensors[name] = replace(tensors[name], source=info, quantisation=None)
    for name, update in changes.updates.items():
        tensors[name] = replace(tensors[name], update=update)
    for name, rows in changes.token_rows.items():
        tensors[name] = replace(tensors[name], token_rows=rows)
    config = _resize_vocabulary(config, tensors)
    problems = _uneven(tensors, changes)
    if problems:
        raise UserError(problems)
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
    source, change = tensor.source, _change(tensor)

    def merged(first: int, count: int) -> Array:
        values, dtype = _convert(read_rows(source, first, count), source.dtype, tensor.dtype), tensor.dtype
        if tensor.quantisation is not None:
            # What quantisation leaves is no number of the stored type: it is rounded once, with the update.
            values, dtype = round_trip(to_float32(values, dtype), tensor.quantisation), "F32"
        if change is not None:
            values = change.merge(values, dtype, first)
        return _convert(values, dtype, tensor.dtype)

    # Scales that are quantised in turn, and the lengths of a transposed weight's rows, need all of it.
    if tensor.quantisation is not None or (isinstance(change, DoraDelta) and change.transposed):
        stored = merged(0, source.rows)
        return lambda first, count: stored[first : first + count]
    step = max(1, _CACHED_VALUES // source.row_values)

    def read(first: int, count: int) -> Array:
        end = min(first + count, source.rows)
        blocks = [merged(start, min(step, end - start)) for start in range(first, end, step)]
        if tensor.token_rows is None:
            return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return _with_token_rows(tensor, tensor.token_rows, blocks, first, count)

    return read


def _with_token_rows(tensor: MergedTensor, rows: TokenRows, blocks: list[Array], first: int, count: int) -> Array:
    """Puts trained rows in their places, those beyond the source's too."""
    trained = _convert(read_rows(rows.values, 0, rows.values.rows), rows.values.dtype, tensor.dtype)
    values = np.empty((count, *trained.shape[1:]), trained.dtype)
    known = np.concatenate(blocks) if blocks else values[:0]
    values[: len(known)] = known
    for index, row in zip(rows.indices, trained, strict=True):
        if first <= index < first + count:
            values[index - first] = row
    return values


def _change(tensor: MergedTensor) -> Delta | DoraDelta | BiasDelta | None:
    update = tensor.update
    if isinstance(update, Shift):
        return BiasDelta(update)
    if update is None:
        return None
    return Delta(update) if update.lengths is None else DoraDelta(update, update.lengths)


def _convert(values: Array, source: str, target: str) -> Array:
    return values if source == target else from_float32(to_float32(values, source), target)


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Says whether bitsandbytes quantises a tensor: the weights of all linear layers but the head."""
    return len(shape) == 2 and ".layers." in name and name.endswith(".weight")


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
    wanted = {**changes.updates, **changes.replacements, **changes.base_copies, **changes.token_rows}
    # The head of a tied model is not stored: it is the embedding.
    known = {*tensors, HEAD} if _embedding(tensors) else set(tensors)
    return [
        _problem(changes, name, "the base model has no such tensor", "Is it the right base model?")
        for name in wanted
        if name not in known
    ]


def _resize_vocabulary(config: dict[str, Any], tensors: Mapping[str, MergedTensor]) -> dict[str, Any]:
    """Follows an embedding that training has resized."""
    embedding = _embedding(tensors)
    if embedding is None or "vocab_size" not in config:
        return config
    return config | {"vocab_size": tensors[embedding].shape[0]}


def _untie(config: dict[str, Any], tensors: dict[str, MergedTensor], changes: Adapter) -> dict[str, Any]:
    """Gives the output head its own tensor when the adapter changes it or the embedding it is tied to.

    An adapter changes one of the two and not the other, unless it keeps them tied; merged into a shared tensor it
    would change both.
    """
    embedding = _embedding(tensors)
    if embedding is None or not config.get("tie_word_embeddings", False):
        return config
    # A stored head of a tied model is ignored by every loader: the embedding is what counts.
    tensors.pop(HEAD, None)
    if changes.tied or not {*changes.updates, *changes.replacements} & {HEAD, embedding}:
        return config
    tensors[HEAD] = tensors[embedding]
    return config | {"tie_word_embeddings": False}


def _misfits(tensors: Mapping[str, MergedTensor], changes: Adapter) -> list[Problem]:
    shapes: dict[str, tuple[int, ...]] = {name: update.shape for name, update in changes.updates.items()}
    shapes |= {name: info.shape for name, info in changes.replacements.items() if name in tensors}
    problems = []
    for name, shape in shapes.items():
        if name not in tensors:
            problems.append(_problem(changes, name, "the base model ties it, and the adapter adds to one of two", ""))
            continue
        target = tensors[name]
        # An embedding that was trained whole may have been resized.
        resizable = name in changes.replacements and name.endswith((*EMBEDDINGS, HEAD))
        if target.source.shape[resizable:] != shape[resizable:]:
            what = f"it fits a weight of shape {list(shape)}; the base model's has {list(target.source.shape)}"
            problems.append(_problem(changes, name, what, "Is it the right base model?"))
    for name, rows in changes.token_rows.items():
        problems += _token_misfits(name, rows, tensors, changes)
    for name in (*shapes, *changes.token_rows):
        if name in tensors and tensors[name].dtype not in STORAGE:
            what = f"the base model's tensor has the type {tensors[name].dtype}, into which nothing can be merged"
            problems.append(_problem(changes, name, what, "Merge into the 16 or 32 bit original instead."))
    return problems


def _token_misfits(name: str, rows: TokenRows, tensors: Mapping[str, MergedTensor], changes: Adapter) -> list[Problem]:
    if name not in tensors:
        return [
            _problem(changes, name, "the base model has no tensor of its own for it", "Train the embedding's rows.")
        ]
    source = tensors[name].source
    if rows.values.shape[1:] != source.shape[1:]:
        what = f"its rows are {rows.values.shape[1]} wide; the base model's are {source.shape[1]}"
        return [_problem(changes, name, what, "Is it the right base model?")]
    gap = set(range(source.rows, 1 + max(rows.indices))) - set(rows.indices)
    if gap:
        what = f"row {min(gap)} is neither in the base model nor in the adapter"
        return [_problem(changes, name, what, "Is it the right base model?")]
    return []


def _uneven(tensors: Mapping[str, MergedTensor], changes: Adapter) -> list[Problem]:
    embedding = _embedding(tensors)
    if embedding is None or HEAD not in tensors or tensors[HEAD].shape == tensors[embedding].shape:
        return []
    return [_problem(changes, HEAD, f"its shape is not that of {embedding}", "")]


def _embedding(tensors: Mapping[str, MergedTensor]) -> str | None:
    return next((name for name in tensors if name.endswith(EMBEDDINGS)), None)


def _problem(changes: Adapter, name: str, what: str, fix: str) -> Problem:
    return Problem(where=f"{changes.folder}: {name}", what=f"{what}.", fix=fix)
