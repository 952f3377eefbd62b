"""Reads files of rows: JSON arrays, JSON lines, CSV, TSV and plain text, each also compressed by gzip.

Every row knows its file and line. Nothing is guessed about values: "007" stays "007" and "NA" stays "NA".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tunerun.data.read.delimited import delimited
from tunerun.data.read.json_rows import json_array, json_lines, json_value
from tunerun.data.read.source import decode_fault, fail, head_of, lines, open_text_bytes
from tunerun.data.rows import BadRow, Row
from tunerun.errors import Problem, UserError
from tunerun.paths import resolve_asset

Parser = Callable[[BinaryIO, str], Iterator[Row | BadRow]]

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
DELIMITED_SUFFIXES = (".csv", ".tsv")
TEXT_SUFFIXES = (".txt",)
SUFFIXES = (*JSON_SUFFIXES, *DELIMITED_SUFFIXES, *TEXT_SUFFIXES)


def find_files(paths: Sequence[str], key: str = "data.path") -> list[Path]:
    """Lists the data files that paths name.

    Args:
        paths: Files and folders; a folder stands for its data files in order of name.
        key: Config key, for messages.

    Raises:
        UserError: A path does not exist, or a folder holds no data file.
    """
    problems: list[Problem] = []
    found: list[Path] = []
    for text in paths:
        path = Path(resolve_asset(text)).expanduser()
        try:
            if path.is_dir():
                inside = sorted(item for item in path.iterdir() if kind_of(item) and not item.name.startswith("."))
                what = f"the folder {text} holds no data file ({', '.join(SUFFIXES)}, also .gz)."
                if not inside:
                    problems.append(Problem(where=key, what=what))
                found += inside
            elif path.exists():
                found.append(path)
            else:
                problems.append(Problem(where=key, what=f"{text} does not exist."))
        except OSError as error:
            problems.append(Problem(where=key, what=f"{text} cannot be read: {error.strerror or error}."))
    if problems:
        raise UserError(problems)
    return found


def kind_of(path: Path) -> str:
    """Returns the suffix that says how a file is read, without `.gz`; empty when it is no data file."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def read_rows(path: Path) -> Iterator[Row | BadRow]:
    """Yields the rows of a file, streaming, with bounded memory.

    Raises:
        UserError: The file as a whole cannot be read: missing, empty, binary, cut off, or of an unknown kind.
    """
    name, kind = str(path), kind_of(path)
    if not kind:
        fail(name, None, "is not a kind of file that is read.", f"Known are {', '.join(SUFFIXES)}, also .gz.")
    if not path.is_file():
        fail(name, None, "is not a file.")
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
