"""Reads Parquet and Arrow files, and folders that `datasets` wrote by `save_to_disk`.

Both are read with pyarrow, which `datasets` stands on, batch by batch; `datasets` itself would decode pictures and make
a second copy in its cache.
"""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tunerun.data.read.source import fail
from tunerun.data.rows import Row

# Of `save_to_disk`: the first for one split, the second for several.
STATE = "state.json"
SPLITS = "dataset_dict.json"

_BATCH_ROWS = 256


def columnar(source: BinaryIO, kind: str, name: str) -> Iterator[Row]:
    """Yields the rows of a Parquet or Arrow file as dicts by column name, counted from 1.

    Keys that a nested value lacks, which Arrow fills with null because all rows share one type, are left out again.

    Args:
        source: The file.
        kind: `.parquet` or `.arrow`.
        name: How messages name it.

    Raises:
        UserError: The file is damaged, cut off, or of another kind.
    """
    import pyarrow

    line = 0
    try:
        for batch in _batches(source, kind):
            # A damaged file gives offsets beyond the data, which end the process when they are followed.
            batch.validate(full=True)
            names = batch.schema.names
            if len(set(names)) != len(names):
                fail(name, None, f"has two columns called {max(names, key=names.count)!r}.")
            foreign = [field.name for field in batch.schema if not _is_plain(field.type)]
            for value in batch.to_pylist():
                line += 1
                for key in foreign:
                    value[key] = _json_value(value[key])
                yield Row(name, line, value)
    # LookupError and OverflowError: a time zone that is not known, a day beyond the calendar.
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        fail(name, None, f"cannot be read after row {line}: {str(error).rstrip('.')}.", "Is it cut off?")
    if not line:
        fail(name, None, "is empty.")


def saved_files(folder: Path) -> list[Path]:
    """Lists the Arrow files of a folder that `datasets` saved: of its train split, or of the only one.

    Raises:
        UserError: The folder is damaged, or has several splits and none is `train`.
    """
    if not (folder / STATE).is_file():
        splits = _listed(folder / SPLITS, "splits")
        if "train" not in splits and len(splits) > 1:
            fix = f"Name the folder of one, such as {folder / splits[0]}."
            fail(str(folder), None, f"has the splits {', '.join(splits)}, and none is train.", fix)
        folder = folder / ("train" if "train" in splits else splits[0])
    files = [folder / name for name in _listed(folder / STATE, "_data_files")]
    for file in files:
        if not file.is_file():
            fail(str(folder), None, f"{file.name} is missing.")
    return files


def _listed(path: Path, key: str) -> list[str]:
    """Returns the names in a file that `datasets` wrote: texts, or objects with a `filename`."""
    try:
        items = json.loads(path.read_text(encoding="utf-8"))[key]
        names = [item["filename"] if isinstance(item, dict) else item for item in items]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(str(path), None, f"is not what datasets saves: {type(error).__name__}: {error}.")
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        fail(str(path), None, f"names no files in {key!r}.")
    return names


def _batches(source: BinaryIO, kind: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    # A file object, not mapped into memory: a file that is cut off meanwhile would end the process.
    if kind == ".parquet":
        # Buffering ahead would hold most of the file in memory.
        with pyarrow.parquet.ParquetFile(source, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS)
        return
    for batch in _arrow_batches(source):
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)


def _arrow_batches(source: BinaryIO) -> Iterator[Any]:
    import pyarrow.ipc

    # A stream is what `datasets` writes; other tools write the format with an index at the end.
    head = source.read(6)
    source.seek(0)
    if head == b"ARROW1":
        file = pyarrow.ipc.open_file(source)
        yield from (file.get_batch(index) for index in range(file.num_record_batches))
    else:
        yield from pyarrow.ipc.open_stream(source)


def _is_plain(kind: Any) -> bool:
    """Says whether the values of a type are those of JSON as they are."""
    import pyarrow.types as types

    tests = (types.is_string, types.is_large_string, types.is_boolean, types.is_integer, types.is_floating)
    return any(test(kind) for test in tests)


def _json_value(value: Any) -> Any:
    """Turns what Arrow knows and JSON does not into texts, and drops the nulls of nested objects."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    # Pictures and sounds: there is no text in them, and a row that uses one is told so.
    return None if isinstance(value, bytes) else value
