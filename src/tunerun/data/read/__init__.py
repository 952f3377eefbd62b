"""Reads files of rows: JSON, CSV, TSV and text, each also packed by gzip or zstd; Excel workbooks, Parquet and Arrow.

Every row knows its file and line. Nothing is guessed about values: "007" stays "007" and "NA" stays "NA".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from tunerun.data.read.columnar import SPLITS, STATE, columnar, saved_files
from tunerun.data.read.delimited import delimited
from tunerun.data.read.hub import hub_files
from tunerun.data.read.index import INDEX, indexed_files
from tunerun.data.read.json_rows import json_array, json_lines, json_value
from tunerun.data.read.modelscope import modelscope_files
from tunerun.data.read.remote import open_remote
from tunerun.data.read.source import (
    FOREIGN_TABLES,
    check_file,
    decode_fault,
    fail,
    lines,
    reading,
    text_stream,
)
from tunerun.data.rows import BadRow, DataFile, Row
from tunerun.errors import Problem, UserError
from tunerun.paths import (
    COLUMNAR_SUFFIXES,
    DATA_SUFFIXES,
    DELIMITED_SUFFIXES,
    PACKABLE_SUFFIXES,
    PACKED_SUFFIXES,
    TEXT_SUFFIXES,
    WORKBOOK_SUFFIXES,
    looks_local,
    resolve_asset,
)

_KNOWN = f"{', '.join(DATA_SUFFIXES)}; texts also as {' and '.join(PACKED_SUFFIXES)}"


def find_files(
    paths: Sequence[str],
    key: str = "data.path",
    cache_dir: Path | None = None,
    streaming: bool = False,
    hub: Literal["hf", "modelscope"] = "hf",
) -> list[DataFile]:
    """Lists the data files that paths name, downloading those of a hub.

    Args:
        paths: Files, folders and hub ids. A folder stands for the files that its `dataset.json` lists, for the train
            split that `datasets` saved in it, or else for its data files in order of name.
        key: Config key, for messages.
        cache_dir: Folder for downloads; None takes the hub's own.
        streaming: Whether files of a hub are read as they come instead of being downloaded.
        hub: Where ids are looked up.

    Raises:
        UserError: A path does not exist, a folder holds no data file, or a split has to be chosen.
        StageError: A data set cannot be downloaded.
    """
    problems: list[Problem] = []
    found: list[DataFile] = []
    for text in paths:
        path = Path(resolve_asset(text)).expanduser()
        try:
            if path.exists() or looks_local(text):
                found += _files_of(path, key)
            elif hub == "modelscope":
                found += modelscope_files(text, key, cache_dir, lambda file: bool(kind_of(file)))
            else:
                found += hub_files(text, key, cache_dir, lambda file: bool(kind_of(file)), streaming)
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(Problem(where=key, what=f"{text} cannot be read: {error.strerror or error}."))
    if problems:
        raise UserError(problems)
    return found


def _files_of(path: Path, key: str) -> list[DataFile]:
    if not path.exists():
        if path.is_symlink():
            what = f"{path} is a link that leads to no file, or round in a circle."
            raise UserError(Problem(where=key, what=what))
        fix = "Give a file, a folder, or a data set on a hub as org/name."
        raise UserError(Problem(where=key, what=f"{path} does not exist.", fix=fix))
    if path.is_dir() and (path / INDEX).is_file():
        return indexed_files(path / INDEX)
    return [DataFile(file, str(file), str(file)) for file in ([path] if not path.is_dir() else _inside(path, key))]


def _inside(path: Path, key: str) -> list[Path]:
    """Lists the data files of a folder without an index."""
    if (path / STATE).is_file() or (path / SPLITS).is_file():
        return saved_files(path)
    inside = sorted(
        item for item in path.iterdir() if kind_of(item) and not item.name.startswith(".") and not item.is_dir()
    )
    if not inside:
        what = f"the folder {path} holds no data file ({_KNOWN})."
        raise UserError(Problem(where=key, what=what))
    return inside


def kind_of(path: Path) -> str:
    """Returns the suffix that says how a file is read, without `.gz` or `.zst`; empty when it is no data file."""
    name = path.name.lower()
    packing = next((suffix for suffix in PACKED_SUFFIXES if name.endswith(suffix)), "")
    known = PACKABLE_SUFFIXES if packing else DATA_SUFFIXES
    return next((suffix for suffix in known if name.removesuffix(packing).endswith(suffix)), "")


def read_file(file: DataFile, sheet: str | None = None) -> Iterator[Row | BadRow]:
    """Yields the rows of a file that `find_files` found, also of one that is read from its hub as it comes.

    Args:
        file: The file.
        sheet: Of a workbook whose `dataset.json` names none.

    Raises:
        UserError: As `read_rows`.
        StageError: The hub does not go on.
    """
    sheet = sheet if file.sheet is None else file.sheet
    if not file.streamed:
        yield from read_rows(file.path, file.name, sheet)
        return
    with open_remote(file) as raw:
        yield from _parsed(raw, kind_of(file.path), file.name, sheet)


def read_rows(path: Path, name: str = "", sheet: str | None = None) -> Iterator[Row | BadRow]:
    """Yields the rows of a file, streaming, with bounded memory.

    Args:
        path: The file.
        name: How messages name it; the path when empty.
        sheet: Of a workbook; None takes the only one that has rows.

    Raises:
        UserError: The file as a whole cannot be read: missing, empty, binary, cut off, or of an unknown kind.
    """
    name = name or str(path)
    kind = _readable_kind(path, name)
    with reading(name), path.open("rb") as raw:
        yield from _parsed(raw, kind, name, sheet)


def check_files(files: Iterable[DataFile]) -> None:
    """Refuses files that cannot be read, before anything opens them: to hash a pipe would wait for ever.

    Raises:
        UserError: A file is of an unknown kind, no ordinary file, or closed to this user; all such are named.
    """
    problems: list[Problem] = []
    for file in files:
        try:
            if not file.streamed:
                _readable_kind(file.path, file.name)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)


def _readable_kind(path: Path, name: str) -> str:
    kind = kind_of(path)
    if not kind:
        fix = FOREIGN_TABLES.get(path.suffix.lower(), f"Known are {_KNOWN}.")
        fail(name, None, "is not a kind of file that is read.", fix)
    check_file(path, name)
    return kind


def _parsed(raw: BinaryIO, kind: str, name: str, sheet: str | None) -> Iterator[Row | BadRow]:
    if kind in COLUMNAR_SUFFIXES:
        yield from columnar(raw, kind, name)
    elif kind in WORKBOOK_SUFFIXES:
        # lxml, where it is installed, would let through the entities that defusedxml refuses.
        os.environ["OPENPYXL_LXML"] = "False"
        # openpyxl takes longer to import than most files to read.
        from tunerun.data.read.workbook import workbook

        yield from workbook(raw, name, sheet)
    else:
        with text_stream(raw, name) as (stream, head):
            yield from _text_rows(stream, head, kind, name)


def _text_rows(stream: BinaryIO, head: bytes, kind: str, name: str) -> Iterator[Row | BadRow]:
    if kind in DELIMITED_SUFFIXES:
        return delimited(stream, name)
    if kind in TEXT_SUFFIXES:
        return _text_lines(stream, name)
    # By content: a .jsonl often holds one array, and a .json holds lines.
    start = head.lstrip()
    if start.startswith(b"["):
        return json_array(stream, name)
    first = start.split(b"\n", 1)[0].rstrip()
    return json_value(stream, name) if first == b"{" else json_lines(stream, name)


def _text_lines(file: BinaryIO, name: str) -> Iterator[Row | BadRow]:
    for number, line in lines(file, name):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield BadRow(name, number, "bad-encoding", decode_fault(error))
            continue
        if "\x00" in text:
            yield BadRow(name, number, "bad-encoding", "holds a NUL byte.")
        elif text.strip():
            yield Row(name, number, text)
