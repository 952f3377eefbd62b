"""Opens data files as bytes and refuses what is not text, before anything is parsed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from tunerun.errors import Problem, UserError

MAX_LINE_BYTES = 64 << 20
"""Longest line, CSV record or JSON element that is read; more is a broken file, and would fill the memory."""

HEAD_BYTES = 1 << 16

UTF8_MARK = b"\xef\xbb\xbf"

# First bytes of files that people take for text.
_FOREIGN = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "Save it as UTF-8."),
    (b"\xff\xfe", "UTF-16 text", "Save it as UTF-8."),
    (b"\xfe\xff", "UTF-16 text", "Save it as UTF-8."),
    (b"PK\x03\x04", "a zip archive or an Office file", "Unpack it, or save the sheet as CSV."),
    (b"PAR1", "a Parquet file", "Name it .parquet."),
    (b"ARROW1", "an Arrow file", "Name it .arrow."),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "Unpack it, or compress it by gzip."),
    (b"BZh", "compressed by bzip2", "Unpack it, or compress it by gzip."),
    (b"\xfd7zXZ\x00", "compressed by xz", "Unpack it, or compress it by gzip."),
    (b"%PDF", "a PDF file", "Extract its text."),
    (b"SQLite format 3\x00", "an SQLite database", "Export the table as CSV."),
)


def fail(name: str, line: int | None, what: str, fix: str = "") -> NoReturn:
    """Raises the error of a file that cannot be read on.

    Args:
        name: The file.
        line: The line, counted from 1, or None when it is about the file.
        what: What is wrong, one sentence.
        fix: What to do.
    """
    where = name if line is None else f"{name}:{line}"
    raise UserError(Problem(where=where, what=what, fix=fix))


@contextmanager
def open_text_bytes(path: Path, name: str) -> Iterator[BinaryIO]:
    """Opens a text file, compressed by gzip or not, at its start; a UTF-8 mark is skipped.

    Raises:
        UserError: The file cannot be read, is empty, or is not UTF-8 text; also while it is read on.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            with gzip.open(raw) if packed else raw as file:
                stream = cast(BinaryIO, file)
                _check_head(stream.read(HEAD_BYTES), name)
                stream.seek(0)
                if stream.read(len(UTF8_MARK)) != UTF8_MARK:
                    stream.seek(0)
                yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(name, None, f"the gzip file is damaged or cut off: {error}.")
    except OSError as error:
        fail(name, None, f"cannot be read: {error.strerror or error}.")


def head_of(path: Path, name: str) -> bytes:
    """Returns the first bytes of a text file, without mark and leading white space.

    Raises:
        UserError: As `open_text_bytes`.
    """
    with open_text_bytes(path, name) as file:
        return file.read(HEAD_BYTES).lstrip()


def lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Yields each line with its number, counted from 1, with bounded memory.

    Raises:
        UserError: A line is longer than `MAX_LINE_BYTES`.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            fail(name, number, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB.", "Write one row per line.")
        yield number, line


def decode_fault(error: UnicodeDecodeError) -> str:
    """Describes bytes that are not UTF-8."""
    return f"byte 0x{error.object[error.start]:02x} at position {error.start + 1} is not UTF-8."


def _check_head(head: bytes, name: str) -> None:
    if not head.removeprefix(UTF8_MARK).strip():
        if len(head) < HEAD_BYTES:
            fail(name, None, "is empty.")
        fail(name, None, f"starts with {HEAD_BYTES} blank bytes.")
    for magic, kind, fix in _FOREIGN:
        if head.startswith(magic):
            fail(name, None, f"is {kind}, not UTF-8 text.", fix)
    zero = head.find(b"\x00")
    if zero >= 0:
        line = head.count(b"\n", 0, zero) + 1
        fail(name, line, "holds a NUL byte: it is binary, or UTF-16 without a mark.", "Save it as UTF-8 text.")
