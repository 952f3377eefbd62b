"""How much data there is, as far as a look at local files tells: the plan's guess before the data stage counts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from tunerun import paths
from tunerun.config.data_sources import data_sources
from tunerun.config.schema import DataConfig, RunConfig

_SAMPLE_BYTES = 1 << 18
# Byte-level BPE vocabularies of 32k to 152k entries come to 3.5 to 4.5 bytes a token on English text.
_BYTES_PER_TOKEN = 4.0
# Of a model whose config does not say it.
_COMMON_CONTEXT = 2048
# What a chat template puts around the texts of a row, about.
_TEMPLATE_TOKENS = 64
# A limit so many times the longest row makes the plan compute too few rows at a time.
_FAR_ABOVE = 4
# Their size says little about their text, and their bytes nothing about their rows.
_COMPRESSED = (*paths.PACKED_SUFFIXES, *paths.WORKBOOK_SUFFIXES, *paths.COLUMNAR_SUFFIXES)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSize:
    """A guess from the size of the files and a sample of their rows."""

    rows: int
    tokens: int
    longest: int
    """Tokens of the longest of the rows in the sample."""


def measure(data: DataConfig) -> DataSize | None:
    """Looks at the files that are trained on.

    Args:
        data: Names files and folders; hub ids tell nothing.

    Returns:
        A guess, or None when nothing can be told without a download or without reading it all.
    """
    rows = tokens = longest = 0.0
    for source in data_sources(data):
        files = [file for path in source.path for file in _files(Path(paths.resolve_asset(path)))]
        if not files or any(file.name.lower().endswith(_COMPRESSED) for file in files):
            return None
        found = [_rows(file) for file in files]
        counted, longest = sum(count for count, _ in found), max(longest, *(size for _, size in found))
        used = counted if source.max_rows is None else min(counted, source.max_rows)
        rows += used * source.weight
        tokens += sum(file.stat().st_size for file in files) / _BYTES_PER_TOKEN * source.weight * used / max(counted, 1)
    return DataSize(rows=math.ceil(rows), tokens=int(tokens), longest=math.ceil(longest / _BYTES_PER_TOKEN))


def row_tokens(config: RunConfig, data: DataSize | None) -> int:
    """Returns the longest row that is planned for, in tokens.

    Args:
        config: Has the limit, and the model's context.
        data: A guess, or None when nothing can be told.
    """
    if config.data.max_length is not None:
        return config.data.max_length
    context = config.model.shape.context or _COMMON_CONTEXT
    return context if data is None else min(data.longest + _TEMPLATE_TOKENS, context)


def length_notes(config: RunConfig, data: DataSize | None) -> list[str]:
    """Says what rows are planned for where that is not what the user set, or far from what the data need."""
    limit, planned = config.data.max_length, row_tokens(config, data)
    if limit is None:
        source = "the model's context" if data is None else "the longest of the first rows"
        return [f"planned for rows of {planned:,} tokens, {source}: data.max_length=null sets no other limit"]
    if data is None or config.data.packing or _FAR_ABOVE * (data.longest + _TEMPLATE_TOKENS) > limit:
        return []
    told = (
        f"planned for rows of data.max_length={limit}; the longest of the first rows has about {data.longest:,} tokens"
    )
    return [f"{told}: data.max_length=null plans with those"]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []


def _rows(file: Path) -> tuple[int, int]:
    """Returns about how many rows a file has, and the bytes of the longest one in its beginning."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        sample = stream.read(_SAMPLE_BYTES)
    if not sample:
        return 0, 0
    text = sample.decode("utf-8", errors="replace")
    rows = _array_items(text) if text.lstrip("\ufeff \t\r\n").startswith("[") else text.split("\n")[:-1]
    longest = max((len(row.encode()) for row in rows), default=len(sample))
    counted = len(rows) if len(sample) == size else round(len(rows) * size / len(sample))
    return max(counted, 1), longest


def _array_items(text: str) -> list[str]:
    """Returns the texts of the items of an array that are there as a whole."""
    decoder = json.JSONDecoder()
    position, items = text.index("[") + 1, list[str]()
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        try:
            _, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            # The end of the array, or of the sample.
            return items
        items.append(text[position:end])
        position = end
