"""What each tensor of a GGUF file is made of: rows of the model's tensors, reordered or shifted, or values computed."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.errors import Problem, UserError
from tunerun.export.parameters import head_size, rotary_factors
from tunerun.formats.architectures import Architecture
from tunerun.formats.floats import STORAGE, Array, to_float32
from tunerun.formats.merged import MergedTensor, RowReader, row_reader

# Values worked on at once by a thread: few enough to stay in its cache. Every type of file takes them from here, so
# that the model is read once.
_BLOCK_VALUES = 1 << 17
_HEAD = "output.weight"

Order = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A tensor of the file, made of one of the model's."""

    tensor: MergedTensor
    order: Order | None = None
    """The model's row for each row of the file; None when they are the same."""
    offset: int = 0
    """Added to every value."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost axis first."""
        own = self.tensor.source.shape
        return own if self.order is None else (len(self.order), *own[1:])

    @property
    def where(self) -> str:
        """The tensor's place, for messages."""
        return f"{self.tensor.source.file}: {self.tensor.source.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """A vector of the file that follows from config.json."""

    values: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the vector."""
        return (len(self.values),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some rows of a tensor of the file."""

    first: int
    """Index of the first one."""
    read: Callable[[], tuple[Array, str]]
    """Returns the rows, of shape (rows, values in a row), a vector being one row, and their type, a key of `STORAGE`;
    threads may read several at once."""


def blocks_of(source: Source | Computed) -> Iterator[Block]:
    """Yields all rows of a tensor, a few at a time."""
    if isinstance(source, Computed):
        values = np.array([source.values], np.float32)
        yield Block(first=0, read=lambda: (values, "F32"))
        return
    read, rows = row_reader(source.tensor), source.shape[0]
    step = rows if len(source.shape) == 1 else max(1, _BLOCK_VALUES // source.tensor.source.row_values)
    for first in range(0, rows, step):
        yield Block(first=first, read=partial(_read_block, source, read, first, min(step, rows - first)))


def _read_block(source: Source, read: RowReader, first: int, count: int) -> tuple[Array, str]:
    block, dtype = _read_ordered(read, source.order, first, count, source.tensor.source.rows), source.tensor.dtype
    if len(source.shape) == 1:
        block = block.reshape(1, -1)
    if source.offset:
        # Added in the stored type, as llama.cpp's converter does; it has no bfloat16.
        block, dtype = (to_float32(block, dtype), "F32") if dtype == "BF16" else (block, dtype)
        block = block + block.dtype.type(source.offset)
    return block, dtype


def _read_ordered(read: RowReader, order: Order | None, first: int, count: int, rows: int) -> Array:
    if order is None:
        return read(first, count)
    wanted = order[first : first + count]
    low, high = int(wanted.min()), int(wanted.max()) + 1
    assert high <= rows, f"row {high} of {rows}"
    return read(low, high - low)[wanted - low]


def name_tensors(
    tensors: Mapping[str, MergedTensor], config: Mapping[str, Any], architecture: Architecture, folder: Path
) -> dict[str, Source | Computed]:
    """Finds what every tensor of the file is made of.

    Args:
        tensors: The model's.
        config: Filled.
        architecture: Of the model.
        folder: Of the model, for messages.

    Returns:
        By GGUF name, in the order of the file.

    Raises:
        UserError: A tensor is missing, unknown, or in a type that is no float; names each.
    """
    names = file_names(tensors, config, architecture)
    fused = fused_orders(config, architecture)
    head = next(theirs for theirs, ours in architecture.outer.items() if ours == _HEAD)
    wanted = {*names, *fused}
    problems = [_problem(folder, name, "is missing from the weights") for name in sorted(wanted - set(tensors))]
    for name, tensor in tensors.items():
        if name not in wanted and not (name == head and config.get("tie_word_embeddings", False)):
            problems.append(_problem(folder, name, f"is no tensor of llama.cpp's {architecture.name}"))
        elif tensor.dtype not in STORAGE:
            problems.append(_problem(folder, name, f"has the type {tensor.dtype}, not one of {', '.join(STORAGE)}"))
    if problems:
        raise UserError(problems)
    sources: dict[str, Source | Computed] = {
        ours: _source(tensors[theirs], ours, config, architecture) for theirs, ours in names.items()
    }
    for theirs, parts in fused.items():
        sources |= {ours: Source(tensor=tensors[theirs], order=order) for ours, order in parts.items()}
    return sources | {name: Computed(values=tuple(values)) for name, values in rotary_factors(config).items()}


def file_names(present: Container[str], config: Mapping[str, Any], architecture: Architecture) -> dict[str, str]:
    """Maps the model's names to the file's; a tied model has no head, and llama.cpp then takes the embedding.

    Args:
        present: Names that there are; of the tensors that not every model has, only these are mapped.
        config: Filled.
        architecture: Of the model.
    """
    tied = config.get("tie_word_embeddings", False)
    names = {
        theirs: ours
        for theirs, ours in architecture.outer.items()
        if ours != _HEAD or (architecture.has_head and not tied)
    }
    inner = [(pair, True) for pair in architecture.layer.items()]
    inner += [(pair, False) for pair in architecture.optional.items()]
    for layer in range(config["num_hidden_layers"]):
        for (theirs, ours), needed in inner:
            name = f"model.layers.{layer}.{theirs}"
            if needed or name in present:
                names[name] = f"blk.{layer}.{ours}"
    return names


def _source(tensor: MergedTensor, ours: str, config: Mapping[str, Any], architecture: Architecture) -> Source:
    order = head_order(ours, tensor.source.rows, config, architecture)
    is_norm = ours.split(".")[-2].endswith("_norm")
    return Source(tensor=tensor, order=order, offset=architecture.norm_offset if is_norm else 0)


def head_order(ours: str, rows: int, config: Mapping[str, Any], architecture: Architecture) -> Order | None:
    """Returns the order of a tensor's rows in the file, or None when it is the model's."""
    part = ours.split(".")[-2]
    if not architecture.interleaves_heads or part not in ("attn_q", "attn_k"):
        return None
    heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
    return interleaved(heads, rows // heads)


def interleaved(heads: int, size: int) -> Order:
    """Returns the order of rows in which values that rotate together are neighbours.

    transformers rotates value j of a head with value j + size / 2; llama.cpp's llama has them side by side.

    Args:
        heads: Number of heads.
        size: Rows of each.
    """
    within = np.arange(size).reshape(2, size // 2).T.reshape(-1)
    return (np.arange(heads)[:, None] * size + within).reshape(-1)


def fused_orders(config: Mapping[str, Any], architecture: Architecture) -> dict[str, dict[str, Order]]:
    """Takes InternLM2's wqkv apart: the rows of each key/value head are its queries, one key and one value."""
    if not architecture.fused:
        return {}
    size, groups = head_size(config), config["num_key_value_heads"]
    queries = config["num_attention_heads"] // groups
    blocks = np.arange(groups * (queries + 2) * size).reshape(groups, queries + 2, size)
    parts = {
        "attn_q": blocks[:, :queries].reshape(-1)[interleaved(groups * queries, size)],
        "attn_k": blocks[:, queries].reshape(-1)[interleaved(groups, size)],
        "attn_v": blocks[:, queries + 1].reshape(-1),
    }
    return {
        f"model.layers.{layer}.{architecture.fused}": {
            f"blk.{layer}.{part}.weight": order for part, order in parts.items()
        }
        for layer in range(config["num_hidden_layers"])
    }


def _problem(folder: Path, name: str, what: str) -> Problem:
    return Problem(where=f"{folder}: {name}", what=f"{what}.")
