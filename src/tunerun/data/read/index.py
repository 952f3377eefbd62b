"""Reads the `dataset.json` of a folder, which lists its files and what each needs.

`{"files": ["a.jsonl", {"path": "b.xlsx", "sheet": "DrugQA", "columns": {"user": "A", "assistant": "D"}}]}`
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from tunerun.config import typed
from tunerun.config.schema import DataFormat
from tunerun.data.rows import DataFile
from tunerun.errors import Problem, UserError

INDEX = "dataset.json"

_KEYS = ("path", "sheet", "columns", "format")
_FIX = 'Write {"files": ["NAME", {"path": "NAME", "sheet": ..., "columns": {...}, "format": ...}]}.'
_MAX_BYTES = 16 << 20


def indexed_files(index: Path) -> list[DataFile]:
    """Returns the files that a folder's dataset.json names, in its order.

    Args:
        index: The dataset.json.

    Raises:
        UserError: It is not such a list, names unknown keys, or names files that do not exist or are elsewhere; all
            that is wrong with it.
    """
    if index.stat().st_size > _MAX_BYTES:
        raise UserError(Problem(where=str(index), what=f"is larger than {_MAX_BYTES >> 20} MiB.", fix=_FIX))
    try:
        data = json.loads(index.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(Problem(where=str(index), what=f"is not valid JSON: {error}.")) from error
    if not isinstance(data, dict) or not isinstance(data.get("files"), list) or not data["files"]:
        raise UserError(Problem(where=str(index), what="does not list the files of the data set.", fix=_FIX))
    wrong = [f"has the unknown key {key!r}. {typed.nearest(key, ('files',))}" for key in data if key != "files"]
    for number, entry in enumerate(data["files"], start=1):
        wrong += [f"file {number} {what}" for what in _faults(entry, index.parent)]
    if wrong:
        raise UserError([Problem(where=str(index), what=what) for what in wrong])
    return [_file(entry, index.parent) for entry in data["files"]]


def _file(entry: str | Mapping[str, Any], folder: Path) -> DataFile:
    facts = {"path": entry} if isinstance(entry, str) else dict(entry)
    path = folder / facts.pop("path")
    return DataFile(path, str(path), str(path), **facts)


def _faults(entry: Any, folder: Path) -> list[str]:
    """Lists what is wrong with the entry of one file."""
    if isinstance(entry, str):
        return _path_faults(entry, folder)
    if not isinstance(entry, dict):
        return ["is neither a name nor an object with a `path`."]
    found = [f"has the unknown key {key!r}. {typed.nearest(key, _KEYS)}" for key in entry if key not in _KEYS]
    if not isinstance(entry.get("path"), str):
        found.append("needs `path`, the name of the file.")
    else:
        found += _path_faults(entry["path"], folder)
    if "sheet" in entry and not isinstance(entry["sheet"], str):
        found.append("has a `sheet` that is not a text.")
    columns = entry.get("columns", {})
    if not isinstance(columns, dict) or not all(isinstance(name, str) for name in columns.values()):
        found.append('has `columns` that are not names by part, such as {"user": "question", "assistant": "D"}.')
    formats = get_args(DataFormat)
    if "format" in entry and entry["format"] not in formats:
        found.append(f"has an unknown format {entry['format']!r}. {typed.nearest(str(entry['format']), formats)}")
    return found


def _path_faults(name: str, folder: Path) -> list[str]:
    if not name or "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        return ["has an empty or impossible name."]
    # Not Path.resolve, which raises RuntimeError for links that lead round in a circle.
    real = Path(os.path.realpath(folder / name))
    if Path(name).is_absolute() or not real.is_relative_to(os.path.realpath(folder)):
        return [f"is outside of the folder: {name}."]
    return [] if real.is_file() else [f"does not exist: {name}."]
