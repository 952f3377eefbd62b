"""Reads files of rows: JSON arrays, JSON lines, CSV, TSV and plain text, each also compressed by gzip, and Parquet.

Every row knows its file and line. Nothing is guessed about values: "007" stays "007" and "NA" stays "NA".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tunerun.data.read.columnar import COLUMNAR_SUFFIXES, SPLITS, STATE, columnar, saved_files
from tunerun.data.read.delimited import delimited
from tunerun.data.read.hub import hub_files
from tunerun.data.read.json_rows import json_array, json_lines, json_value
from tunerun.data.read.source import decode_fault, fail, head_of, lines, open_text_bytes
from tunerun.data.rows import BadRow, DataFile, Row
from tunerun.errors import Problem, UserError
from tunerun.paths import looks_local, resolve_asset

Parser = Callable[[BinaryIO, str], Iterator[Row | BadRow]]

INDEX = "dataset.json"

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
DELIMITED_SUFFIXES = (".csv", ".tsv")
TEXT_SUFFIXES = (".txt",)
SUFFIXES = (*JSON_SUFFIXES, *DELIMITED_SUFFIXES, *TEXT_SUFFIXES, *COLUMNAR_SUFFIXES)


def find_files(
    paths: Sequence[str], key: str = "data.path", cache_dir: Path | None = None, streaming: bool = False
) -> list[DataFile]:
    """Lists the data files that paths name, downloading those of a hub.

    Args:
        paths: Files, folders and hub ids. A folder stands for the files that its `dataset.json` lists, for the train
            split that `datasets` saved in it, or else for its data files in order of name.
        key: Config key, for messages.
        cache_dir: Folder for downloads; None takes the hub's own.
        streaming: Whether files of a hub are read as they come instead of being downloaded.

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
                found += [DataFile(file, str(file), str(file)) for file in _files_of(path, key)]
            else:
                found += hub_files(text, key, cache_dir, SUFFIXES)
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(Problem(where=key, what=f"{text} cannot be read: {error.strerror or error}."))
    if problems:
        raise UserError(problems)
    return found


def _files_of(path: Path, key: str) -> list[Path]:
    if not path.exists():
        fix = "Give a file, a folder, or a data set on a hub as org/name."
        raise UserError(Problem(where=key, what=f"{path} does not exist.", fix=fix))
    if not path.is_dir():
        return [path]
    if (path / INDEX).is_file():
        return _indexed(path / INDEX)
    if (path / STATE).is_file() or (path / SPLITS).is_file():
        return saved_files(path)
    inside = sorted(item for item in path.iterdir() if kind_of(item) and not item.name.startswith("."))
    if not inside:
        what = f"the folder {path} holds no data file ({', '.join(SUFFIXES)}, also .gz)."
        raise UserError(Problem(where=key, what=what))
    return inside


def _indexed(index: Path) -> list[Path]:
    """Returns the files that a folder's dataset.json names, in its order: `{"files": ["a.jsonl", ...]}`."""
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(Problem(where=str(index), what=f"is not valid JSON: {error}.")) from error
    listed = isinstance(data, dict) and data.keys() == {"files"} and isinstance(data["files"], list) and data["files"]
    if not listed or not all(isinstance(name, str) for name in data["files"]):
        fix = 'Write {"files": ["NAME", ...]}.'
        raise UserError(Problem(where=str(index), what="does not list the files of the data set.", fix=fix))
    missing = [name for name in data["files"] if not (index.parent / name).is_file()]
    if missing:
        raise UserError([Problem(where=str(index), what=f"{name} does not exist.") for name in missing])
    return [index.parent / name for name in data["files"]]


def kind_of(path: Path) -> str:
    """Returns the suffix that says how a file is read, without `.gz`; empty when it is no data file."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def read_file(file: DataFile, sheet: str | None = None) -> Iterator[Row | BadRow]:
    """Yields the rows of a file that `find_files` found, also of one that is read from its hub as it comes.

    Args:
        file: The file.
        sheet: Of a workbook whose `dataset.json` names none.

    Raises:
        UserError: As `read_rows`.
        StageError: The hub does not go on.
    """
    return read_rows(file.path, file.name, sheet if file.sheet is None else file.sheet)


def read_rows(path: Path, name: str = "", sheet: str | None = None) -> Iterator[Row | BadRow]:
    """Yields the rows of a file, streaming, with bounded memory.

    Args:
        path: The file.
        name: How messages name it; the path when empty.
        sheet: Of a workbook; None takes the only one that has rows.

    Raises:
        UserError: The file as a whole cannot be read: missing, empty, binary, cut off, or of an unknown kind.
    """
    name, kind = name or str(path), kind_of(path)
    if not kind:
        fail(name, None, "is not a kind of file that is read.", f"Known are {', '.join(SUFFIXES)}, also .gz.")
    if not path.is_file():
        fail(name, None, "is not a file.")
    if kind in COLUMNAR_SUFFIXES:
        yield from columnar(path, name)
        return
    parse: Parser
    if kind in DELIMITED_SUFFIXES:
        parse = delimited
    elif kind in TEXT_SUFFIXES:
        parse = _text_lines
    else:
        parse = _json_parser(path, name)
    with open_text_bytes(path, name) as file:
        yield from parse(file, name)


def _json_parser(path: Path, name: str) -> Parser:
    # By content: a .jsonl often holds one array, and a .json holds lines.
    head = head_of(path, name)
    if head.startswith(b"["):
        return json_array
    first = head.split(b"\n", 1)[0].rstrip()
    return json_value if first == b"{" else json_lines


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
