"""How much data there is, as far as a look at local files tells: the plan's guess before the data stage counts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from tunerun import paths
from tunerun.config.data_sources import data_sources
from tunerun.config.schema import DataConfig

_SAMPLE_BYTES = 1 << 18
# Byte-level BPE vocabularies of 32k to 152k entries come to 3.5 to 4.5 bytes a token on English text.
_BYTES_PER_TOKEN = 4.0
# Their size says little about their text, and their bytes nothing about their rows.
_COMPRESSED = (*paths.PACKED_SUFFIXES, *paths.WORKBOOK_SUFFIXES, *paths.COLUMNAR_SUFFIXES)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSize:
    """A guess from the size of the files and a sample of their rows."""

    rows: int
    tokens: int


def measure(data: DataConfig) -> DataSize | None:
    """Looks at the files that are trained on.

    Args:
        data: Names files and folders; hub ids tell nothing.

    Returns:
        A guess, or None when nothing can be told without a download or without reading it all.
    """
    rows = tokens = 0.0
    for source in data_sources(data):
        files = [file for path in source.path for file in _files(Path(paths.resolve_asset(path)))]
        if not files or any(file.name.lower().endswith(_COMPRESSED) for file in files):
            return None
        counted = sum(_rows(file) for file in files)
        used = counted if source.max_rows is None else min(counted, source.max_rows)
        rows += used * source.weight
        tokens += sum(file.stat().st_size for file in files) / _BYTES_PER_TOKEN * source.weight * used / max(counted, 1)
    return DataSize(rows=math.ceil(rows), tokens=int(tokens))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []


def _rows(file: Path) -> int:
    size = file.stat().st_size
    with file.open("rb") as stream:
        sample = stream.read(_SAMPLE_BYTES)
    if not sample:
        return 0
    text = sample.decode("utf-8", errors="replace")
    counted = _array_items(text) if text.lstrip("\ufeff \t\r\n").startswith("[") else text.count("\n")
    if len(sample) == size:
        return max(counted, 1)
    return max(round(counted * size / len(sample)), 1)


def _array_items(text: str) -> int:
    decoder = json.JSONDecoder()
    position, items = text.index("[") + 1, 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        try:
            _, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            # The end of the array, or of the sample.
            return items
        items += 1
