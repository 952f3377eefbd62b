"""Compares two GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf

Fields = dict[str, tuple[Any, Any]]


def differing_tensors(ours: Path, theirs: Path) -> list[str]:
    """Names of the tensors that one file lacks, or that differ in type, shape or bytes."""
    left, right = _tensors(ours), _tensors(theirs)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def differing_fields(left: Fields, right: Fields) -> set[str]:
    """Keys of the metadata that one file lacks or that differ in type or value."""
    return {key for key in left.keys() | right.keys() if left.get(key) != right.get(key)}


def read_fields(file: Path) -> Fields:
    """Value and type of every metadata key."""
    reader = gguf.GGUFReader(file)
    # Counts of the header itself: they follow from the rest.
    return {key: (field.contents(), field.types) for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def _tensors(file: Path) -> dict[str, Any]:
    return {
        tensor.name: (tensor.tensor_type.name, tensor.shape.tolist(), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(file).tensors
    }
